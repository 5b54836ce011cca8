"""A study as figures and tables."""

from __future__ import annotations

from collections.abc import Sequence

from daisy.calibration.intervals import Estimate
from daisy.evaluation.comparison import Evaluation
from daisy.evaluation.figures import Section, draw_exit_layers_by_snr, draw_lines, format_snr
from daisy.evaluation.study import Study, correlate_with_snr


def make_sections(found: Study, kinds: Sequence[str], snrs_db: Sequence[float | None]) -> list[Section]:
    """The page's parts, a question each.

    Args:
        found: the study.
        kinds: of noise, where conditions are "KIND SNR dB"; none for traces of other origin.
        snrs_db: the ratios, None for clean.
    """
    parts = [_frontier(found)]
    if kinds:
        parts.append(_adaptivity(found, kinds, snrs_db))
    if len(found.layers) > 1:
        parts.append(_conditions(found))
    return [*parts, _by_exit_layer(found), _layers(found), make_numbers_section(found)]


def format_estimate(value: Estimate, digits: int = 1) -> str:
    """A mean with its interval."""
    return f"{value.mean:.{digits}f} ({value.low:.{digits}f} to {value.high:.{digits}f})"


def _frontier(found: Study) -> Section:
    names = list(dict.fromkeys(verdict.policy for _, verdict in found.frontier))
    mine = {name: [verdict for _, verdict in found.frontier if verdict.policy == name] for name in names}
    losses = {name: [(v.depth, v.losses[found.loss].mean) for v in mine[name]] for name in names}
    ahead = {name: [(v.depth, v.gain[found.loss].mean) for v in mine[name]] for name in names if name != "fixed"}
    compared = [name for name in ("fixed", "oracle", "hindsight") if name in names]
    share = "executed share of the cost"
    return Section(
        title="Which policy wins at which depth?",
        text=(
            f"Every policy was tuned to each depth on {found.num_tuned} runs and judged on {found.num_judged} runs of "
            "other groups, all conditions together. fixed is the static cut, a mixture of two neighbouring layers, at "
            "the very depth that the policy came to. oracle and hindsight know what no policy can: the former leaves "
            "at the first layer that is close enough to the full model, the latter is the least loss that any exits "
            "could have at that depth. The table has how much lower each policy's loss is than the static cut's."
        ),
        figures=(
            (
                f"{found.loss} at the exit; lower is better",
                draw_lines(losses, across=share, up=found.loss, black=compared),
            ),
            (
                f"how much lower {found.loss} is than a static cut's at the same depth; higher is better",
                draw_lines(ahead, across=share, up="lower than fixed by", black=compared),
            ),
        ),
        header=("policy", *(f"set for {target:.0%}" for target in dict.fromkeys(t for t, _ in found.frontier))),
        rows=list_gains(found),
    )


def make_numbers_section(found: Study) -> Section:
    """The frontier in full."""
    return Section(
        title="Every depth in numbers",
        text="chance draws exits from the policy's own histogram.",
        header=("policy", "target", "depth", found.loss, "fixed", "chance", "lower than fixed by"),
        rows=tuple(
            (
                verdict.policy,
                f"{target:.0%}",
                f"{verdict.depth:.1%}",
                format_estimate(verdict.losses[found.loss], 4),
                f"{verdict.fixed[found.loss]:.4f}",
                f"{verdict.random[found.loss]:.4f}",
                format_estimate(verdict.gain[found.loss], 4),
            )
            for target, verdict in found.frontier
        ),
        folded=True,
    )


def _adaptivity(found: Study, kinds: Sequence[str], snrs_db: Sequence[float | None]) -> Section:
    named = {(verdict.policy, verdict.condition): verdict for verdict in found.verdicts}
    figures, rows = [], []
    num_layers = len(found.verdicts[0].histogram)
    ratios = [snr for snr in snrs_db if snr is not None]
    policies = [name for name in found.policies if name != "fixed"]
    for kind in kinds:
        names = {snr: "clean" if snr is None else f"{kind} {snr:g} dB" for snr in snrs_db}
        curves = {p: [named[p, names[snr]].mean_exit_layer for snr in snrs_db] for p in policies}
        title = f"{kind}; tuned to {found.depth:.0%} depth"
        figures.append(
            (f"{kind}: mean exit layer with 95 % intervals",
             draw_exit_layers_by_snr(snrs_db, curves, num_layers=num_layers, title=title))
        )  # fmt: skip
        for policy in policies:
            correlation = correlate_with_snr(found.verdicts, policy, kind, ratios)
            layers = [f"{named[policy, names[snr]].mean_exit_layer.mean:.2f}" for snr in snrs_db]
            rows.append((policy, kind, *layers, f"{correlation:.2f}"))
    return Section(
        title="Does the exit follow the noise?",
        text="Mean exit layer, and its rank correlation with the signal-to-noise ratio (RMS over whole utterances).",
        figures=tuple(figures),
        header=("policy", "noise", *map(format_snr, snrs_db), "Spearman"),
        rows=tuple(rows),
    )


def _conditions(found: Study) -> Section:
    losses = list(found.verdicts[0].losses)
    return Section(
        title="What does leaving cost, condition by condition?",
        text=f"Policies tuned to {found.depth:.0%} depth over all conditions.",
        header=("policy", "condition", "exit layer", "depth", *losses, f"{found.loss}, fixed at that depth"),
        rows=tuple(
            (
                verdict.policy,
                verdict.condition,
                format_estimate(verdict.mean_exit_layer),
                f"{verdict.depth:.0%}",
                *(f"{verdict.losses[loss].mean:.3f}" for loss in losses),
                f"{verdict.fixed[found.loss]:.3f}",
            )
            for verdict in found.verdicts
        ),
        folded=True,
    )


def _by_exit_layer(found: Study) -> Section:
    """Whether early exits are worse than late ones: the loss conditional on the exit layer."""
    overall = [verdict for verdict in found.verdicts if verdict.condition == "all" and verdict.policy != "fixed"]
    last = len(overall[0].histogram) if overall else 0
    curves = {
        verdict.policy: [(layer, loss) for layer, loss in enumerate(by_layer, start=1) if loss is not None]
        for verdict in overall
        for by_layer in [verdict.by_exit_layer[found.loss]]
    }
    title = f"{found.loss} of those who left at each layer"
    return Section(
        title="Are early exits worse than late ones?",
        text=(
            f"Policies tuned to {found.depth:.0%} depth, all conditions. A mean over everybody may hide exits that are "
            "much worse than others. In brackets: how many runs left there."
        ),
        figures=((title, draw_lines(curves, across="exit", up=found.loss)),) if overall else (),
        header=("policy", *(str(layer) for layer in range(1, last + 1))),
        rows=tuple(
            (
                verdict.policy,
                *(
                    "" if loss is None else f"{loss:.3f} ({count})"
                    for loss, count in zip(verdict.by_exit_layer[found.loss], verdict.histogram, strict=True)
                ),
            )
            for verdict in overall
        ),
        folded=True,
    )


def _layers(found: Study) -> Section:
    """Where depth helps: each loss by layer."""
    figures = []
    for loss in next(iter(found.layers.values())):
        curves = {condition: list(enumerate(values[loss], start=1)) for condition, values in found.layers.items()}
        figures.append((f"{loss} of each layer", draw_lines(curves, across="exit", up=loss)))
    return Section(
        title="Where does depth still buy something?",
        text="Mean loss if everybody left at one layer. Where a curve is flat, leaving early is right.",
        figures=tuple(figures),
    )


def list_gains(found: Study) -> tuple[tuple[str, ...], ...]:
    """Policy, then at each target depth how much lower its loss is than the static cut's."""
    targets = list(dict.fromkeys(target for target, _ in found.frontier))
    table = []
    for name in dict.fromkeys(verdict.policy for _, verdict in found.frontier):
        by_target: dict[float, Evaluation] = {t: v for t, v in found.frontier if v.policy == name}
        table.append((name, *(f"{by_target[target].gain[found.loss].mean:+.4f}" for target in targets)))
    return tuple(table)


def summarize(found: Study) -> list[tuple[str, ...]]:
    """The frontier for a terminal, header first: no intervals."""
    table: list[tuple[str, ...]] = [("policy", "set for", "depth", found.loss[:18], "fixed", "chance", "gain")]
    for target, verdict in found.frontier:
        losses = (verdict.losses[found.loss].mean, verdict.fixed[found.loss], verdict.random[found.loss])
        cells = (f"{target:.0%}", f"{verdict.depth:.1%}", *(f"{loss:.4f}" for loss in losses))
        table.append((verdict.policy, *cells, f"{verdict.gain[found.loss].mean:+.4f}"))
    return table
