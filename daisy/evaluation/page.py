"""Turn a study into figures and tables."""

from __future__ import annotations

from collections.abc import Sequence

from daisy.calibration.intervals import Estimate
from daisy.evaluation.captions import choose_spoken, say_exits, say_points
from daisy.evaluation.comparison import Evaluation
from daisy.evaluation.figures import draw_exit_layers_by_snr, draw_lines, format_snr
from daisy.evaluation.html import Section
from daisy.evaluation.study import Study, correlate_with_snr
from daisy.evaluation.style import MAX_LINES


def make_sections(study: Study, kinds: Sequence[str], snrs_db: Sequence[float | None]) -> list[Section]:
    """Make the page's sections, one for each question.

    Args:
        study: study of the runs that policies were not tuned on.
        kinds: kinds of noise, if conditions are "KIND SNR dB"; none for traces of other origin.
        snrs_db: signal-to-noise ratios, None for clean.
    """
    parts = [_frontier(study)]
    if kinds:
        parts.append(_adaptivity(study, kinds, snrs_db))
    if len(study.layers) > 1:
        parts.append(_conditions(study))
    return [*parts, _by_exit_layer(study), _layers(study, kinds), make_numbers_section(study)]


def format_estimate(value: Estimate, digits: int = 1) -> str:
    """Format a mean with its interval."""
    return f"{value.mean:.{digits}f} ({value.low:.{digits}f} to {value.high:.{digits}f})"


def _frontier(study: Study) -> Section:
    names = list(dict.fromkeys(evaluation.policy for _, evaluation in study.frontier))
    mine = {name: [evaluation for _, evaluation in study.frontier if evaluation.policy == name] for name in names}
    losses = {name: [(v.depths[study.loss], v.losses[study.loss].mean) for v in mine[name]] for name in names}
    ahead = {
        name: [(v.depths[study.loss], v.gain[study.loss].mean) for v in mine[name]] for name in names if name != "fixed"
    }
    compared = [name for name in ("fixed", "oracle", "hindsight") if name in names]
    bands = {name: [_ends(v.losses[study.loss]) for v in mine[name]] for name in names}
    gain_bands = {name: [_ends(v.gain[study.loss]) for v in mine[name]] for name in ahead}
    share = "depth: share of the layers that ran"
    return Section(
        title="Which policy wins at which depth?",
        text=(
            f"Every policy was tuned to each depth on {study.num_tuned} runs and judged on {study.num_judged} runs "
            "of other speakers, all conditions together. fixed is the static cut, a mixture of two neighbouring "
            "layers, at the very depth that the policy came to; where the loss is counted among words, long runs count "
            "more in it, and so in the depth. oracle and hindsight know what no policy can: the "
            "former leaves at the first layer that is close enough to the full model, the latter is the least loss "
            "that any exits could have at that depth. The table has how much lower each policy's loss is than the "
            "static cut's."
        ),
        figures=(
            (
                f"{study.loss} at the exit, with 95 % intervals; lower is better",
                draw_lines(losses, across=share, up=study.loss, title=_say_losses(study), black=compared, bands=bands),
            ),
            (
                f"how much lower {study.loss} is than a static cut's at the same depth; higher is better",
                draw_lines(
                    ahead,
                    across=share,
                    up="below the static cut by",
                    title=_say_gains(study),
                    black=compared,
                    bands=gain_bands,
                ),
            ),
        ),
        header=("policy", *(f"set for {target:.0%}" for target in dict.fromkeys(t for t, _ in study.frontier))),
        rows=list_gains(study),
    )


def _ends(estimate: Estimate) -> tuple[float, float]:
    return estimate.low, estimate.high


def _speak_of(study: Study) -> tuple[float, list[Evaluation]]:
    """Return the target nearest to the study's depth, and its evaluations."""
    target = min((target for target, _ in study.frontier), key=lambda target: abs(target - study.depth))
    return target, [evaluation for t, evaluation in study.frontier if t == target]


def _say_losses(study: Study) -> str:
    _, at_target = _speak_of(study)
    spoken = choose_spoken(evaluation.policy for evaluation in at_target)
    for evaluation in at_target:
        if evaluation.policy == spoken:
            values = [(spoken, evaluation.losses[study.loss].mean), ("static cut", evaluation.fixed[study.loss])]
            return say_points(f"of the cost, {study.loss}:", evaluation.depths[study.loss], values)
    return ""


def _say_gains(study: Study) -> str:
    """Say which policy is furthest ahead of the static cut."""
    target, at_target = _speak_of(study)
    real = [e for e in at_target if e.policy not in ("fixed", "hindsight", "oracle")]
    if not real:
        return ""
    best = max(real, key=lambda evaluation: evaluation.gain[study.loss].mean)
    gain = best.gain[study.loss]
    if gain.low > 0:
        return f"Set for {target:.0%}, the policy {best.policy} is furthest ahead of the static cut, by {gain.mean:.3f}"
    return f"Set for {target:.0%}, no policy is clearly ahead of the static cut"


def make_numbers_section(study: Study) -> Section:
    """Make the section with the table of the whole frontier."""
    return Section(
        title="Every depth in numbers",
        text="chance draws exits from the policy's own histogram.",
        header=("policy", "target", "depth", study.loss, "static cut", "chance", "below the static cut by"),
        rows=tuple(
            (
                evaluation.policy,
                f"{target:.0%}",
                f"{evaluation.depths[study.loss]:.1%}",
                format_estimate(evaluation.losses[study.loss], 4),
                f"{evaluation.fixed[study.loss]:.4f}",
                f"{evaluation.random[study.loss]:.4f}",
                format_estimate(evaluation.gain[study.loss], 4),
            )
            for target, evaluation in study.frontier
        ),
        folded=True,
    )


def _adaptivity(study: Study, kinds: Sequence[str], snrs_db: Sequence[float | None]) -> Section:
    named = {(evaluation.policy, evaluation.condition): evaluation for evaluation in study.evaluations}
    figures, rows = [], []
    num_layers = len(study.evaluations[0].histogram)
    ratios = [snr for snr in snrs_db if snr is not None]
    policies = [name for name in study.policies if name != "fixed"]
    for kind in kinds:
        names = {snr: "clean" if snr is None else f"{kind} {snr:g} dB" for snr in snrs_db}
        curves = {p: [named[p, names[snr]].mean_exit_layer for snr in snrs_db] for p in policies}
        spoken = choose_spoken(policies)
        title = say_exits(spoken, curves[spoken], [format_snr(snr) for snr in snrs_db], kind) if spoken else ""
        figures.append(
            (f"{kind}: mean exit layer with 95 % intervals; policies tuned to {study.depth:.0%} depth",
             draw_exit_layers_by_snr(snrs_db, curves, num_layers=num_layers, title=title))
        )  # fmt: skip
        for policy in policies:
            correlation = correlate_with_snr(study.evaluations, policy, kind, ratios)
            layers = [f"{named[policy, names[snr]].mean_exit_layer.mean:.2f}" for snr in snrs_db]
            rows.append((policy, kind, *layers, f"{correlation:.2f}"))
    return Section(
        title="Does the exit follow the noise?",
        text="Mean exit layer, and its rank correlation with the signal-to-noise ratio (RMS over whole utterances).",
        figures=tuple(figures),
        header=("policy", "noise", *map(format_snr, snrs_db), "Spearman"),
        rows=tuple(rows),
    )


def _conditions(study: Study) -> Section:
    losses = list(study.evaluations[0].losses)
    return Section(
        title="What does leaving cost, condition by condition?",
        text=f"Policies tuned to {study.depth:.0%} depth over all conditions.",
        header=("policy", "condition", "exit layer", "depth", *losses, f"{study.loss}, fixed at that depth"),
        rows=tuple(
            (
                evaluation.policy,
                evaluation.condition,
                format_estimate(evaluation.mean_exit_layer),
                f"{evaluation.depths[study.loss]:.0%}",
                *(f"{evaluation.losses[loss].mean:.3f}" for loss in losses),
                f"{evaluation.fixed[study.loss]:.3f}",
            )
            for evaluation in study.evaluations
        ),
        folded=True,
    )


def _by_exit_layer(study: Study) -> Section:
    """Show whether early exits are worse than late ones: the loss conditional on the exit layer."""
    overall = [
        evaluation for evaluation in study.evaluations if evaluation.condition == "all" and evaluation.policy != "fixed"
    ]
    curves = {
        evaluation.policy: [
            (layer, loss) for layer, loss in zip(study.exits, by_layer, strict=True) if loss is not None
        ]
        for evaluation in overall
        for by_layer in [evaluation.by_exit_layer[study.loss]]
    }
    caption = f"{study.loss} of those who left at each layer"
    spoken = choose_spoken(curves)
    title = ""
    if len(curves.get(spoken, ())) > 1:
        (first, before), (last, after) = curves[spoken][0], curves[spoken][-1]
        title = f"{spoken}: {study.loss} {before:.3f} of those who leave at {first}, {after:.3f} at {last}"
    return Section(
        title="Are early exits worse than late ones?",
        text=(
            f"Policies tuned to {study.depth:.0%} depth, all conditions. A mean over everybody may hide exits that are "
            "much worse than others. In brackets: how many runs left there."
        ),
        figures=((caption, draw_lines(curves, across="exit", up=study.loss, title=title)),) if overall else (),
        header=("policy", *(str(layer) for layer in study.exits)),
        rows=tuple(
            (
                evaluation.policy,
                *(
                    "" if loss is None else f"{loss:.3f} ({count})"
                    for loss, count in zip(evaluation.by_exit_layer[study.loss], evaluation.histogram, strict=True)
                ),
            )
            for evaluation in overall
        ),
        folded=True,
    )


def _layers(study: Study, kinds: Sequence[str]) -> Section:
    """Show where depth helps: the loss by layer, also against the clean audio, in a figure for each kind of noise."""
    figures = []
    for loss in (study.loss, f"clean_{study.loss}"):
        if loss not in next(iter(study.layers.values())):
            continue
        for kind, conditions in _group_conditions(list(study.layers), kinds).items():
            curves = {
                condition: list(zip(study.exits, study.layers[condition][loss], strict=True))
                for condition in conditions
            }
            says = [f"{curve[0][1]:.2f} to {curve[-1][1]:.2f} ({name})" for name, curve in curves.items()]
            title = f"{loss}, first exit to last: {', '.join(dict.fromkeys([says[0], says[-1]]))}"
            figure = draw_lines(curves, across="exit", up=loss, title=title, in_order=True)
            figures.append((f"{loss} of each layer{f', {kind}' if kind else ''}", figure))
    return Section(
        title="Where does depth still buy something?",
        text="Mean loss if everybody left at one layer. Where a curve is flat, leaving early is right.",
        figures=tuple(figures),
    )


def _group_conditions(conditions: Sequence[str], kinds: Sequence[str]) -> dict[str, list[str]]:
    """Group conditions by kind of noise, each with clean audio, and the rest; few enough for a figure."""
    groups = {kind: [name for name in conditions if name == "clean" or name.startswith(f"{kind} ")] for kind in kinds}
    named = {name for group in groups.values() for name in group}
    groups[""] = [name for name in conditions if name not in named]
    return {
        f"{kind}{f' ({place // MAX_LINES + 1})' if place else ''}": group[place : place + MAX_LINES]
        for kind, group in groups.items()
        for place in range(0, len(group), MAX_LINES)
    }


def list_gains(study: Study) -> tuple[tuple[str, ...], ...]:
    """List how much lower the loss is than the static cut's, for each policy and target depth."""
    targets = list(dict.fromkeys(target for target, _ in study.frontier))
    table = []
    for name in dict.fromkeys(evaluation.policy for _, evaluation in study.frontier):
        by_target: dict[float, Evaluation] = {t: v for t, v in study.frontier if v.policy == name}
        table.append((name, *(f"{by_target[target].gain[study.loss].mean:+.4f}" for target in targets)))
    return tuple(table)


def summarize(study: Study) -> list[tuple[str, ...]]:
    """List the policies at the study's depth for a terminal, header first, without intervals."""
    header = ("policy", "set for", "depth", study.loss[:18], "static cut", "chance", "below the cut by")
    table: list[tuple[str, ...]] = [header]
    target, at_target = _speak_of(study)
    for evaluation in at_target:
        losses = (evaluation.losses[study.loss].mean, evaluation.fixed[study.loss], evaluation.random[study.loss])
        depth = evaluation.depths[study.loss]
        cells = (f"{target:.0%}", f"{depth:.1%}", *(f"{loss:.4f}" for loss in losses))
        table.append((evaluation.policy, *cells, f"{evaluation.gain[study.loss].mean:+.4f}"))
    return table
