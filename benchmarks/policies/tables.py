"""Tables and sentences about exits and policies: noise_curve.json, policies.json, ideas.json and others."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy

from benchmarks.policies.guarantee import CEILING
from benchmarks.shared.rendering import format_interval, render_result
from benchmarks.shared.results import Row, read_result
from daisy.cli.options import DEFAULT_POLICY
from daisy.evaluation.figures import format_snr

SHOWN_POLICIES = ("forecast", "plateau", "entropy")


def _list_snrs(rows: list[Row]) -> list[float | None]:
    """List the ratios in the rows, starting with clean."""
    return [None, *dict.fromkeys(row["snr_db"] for row in rows if row["snr_db"] is not None)]


def _format_gain(row: Row) -> str:
    """Format a policy's lead over the static cut, with its interval."""
    return f"{row['gain']:+.3f} ({row['gain_low']:+.3f} to {row['gain_high']:+.3f})"


def render_exits(kinds: tuple[str, ...] = ()) -> str:
    """Render the mean exit layer of three policies by SNR, for some kinds of noise, or for all if none is given."""
    result = read_result("noise_curve")
    rows = [row for row in result["rows"] if row["set"] == "all"]
    snrs = _list_snrs(rows)
    rho = {(row["policy"], row["noise"]): row["spearman"] for row in read_result("adaptivity")["rows"]}
    lines = []
    for policy in SHOWN_POLICIES:
        of_policy = [row for row in rows if row["policy"] == policy]
        for kind in kinds or dict.fromkeys(row["noise"] for row in of_policy if row["snr_db"] is not None):
            by_snr = {row["snr_db"]: row for row in of_policy if row["noise"] in (kind, "none")}
            cells = [format_interval(by_snr[snr], "mean_exit_layer", digits=1) for snr in snrs]
            lines.append([policy, kind, *cells, f"{rho[policy, kind]:.2f}"])
    return render_result(result, ["policy", "noise", *map(format_snr, snrs), "Spearman"], lines)


def render_sets() -> str:
    """Render the default policy's mean exit layer by SNR of recorded noise, set by set."""
    result = read_result("noise_curve")
    rows = [row for row in result["rows"] if row["policy"] == DEFAULT_POLICY and row["noise"] in ("none", "recorded")]
    snrs = _list_snrs(rows)
    lines = []
    for name in dict.fromkeys(row["set"] for row in rows):
        by_snr = {row["snr_db"]: row for row in rows if row["set"] == name}
        layers = [f"{by_snr[snr]['mean_exit_layer']:.1f}" for snr in snrs]
        lines.append([name, str(by_snr[None]["num_utterances"]), *layers])
    return render_result(result, ["set", "utterances", *map(format_snr, snrs)], lines)


def render_exits_sentence() -> str:
    """Say how much deeper the default policy goes from clean audio to the loudest recorded noise, set by set."""
    rows = [row for row in read_result("noise_curve")["rows"] if row["policy"] == DEFAULT_POLICY]
    loudest = min(row["snr_db"] for row in rows if row["noise"] == "recorded")
    moves = {}
    for name in dict.fromkeys(row["set"] for row in rows):
        of_set = {(row["noise"], row["snr_db"]): row["mean_exit_layer"] for row in rows if row["set"] == name}
        moves[name] = f"{of_set['none', None]:.1f} to {of_set['recorded', loudest]:.1f}"
    of_all = moves.pop("all")
    sets = ", ".join(f"{move} on {name}" for name, move in moves.items())
    return (
        f"From clean audio to recorded noise at {format_snr(loudest)}, the mean exit layer of `{DEFAULT_POLICY}` goes "
        f"from {of_all} over all sets: from {sets}.\n"
    )


def render_policies(name: str) -> str:
    """Render each policy's fidelity at each depth, and its lead over the static cut, from results/NAME.json."""
    result = read_result(name)
    targets = list(dict.fromkeys(row["target_depth"] for row in result["rows"]))
    lines = []
    for policy in dict.fromkeys(row["policy"] for row in result["rows"]):
        rows = [row for row in result["rows"] if row["policy"] == policy]
        cells = [f"{row['depth']:.0%}: {row['unit_agreement']:.3f} ({row['gain']:+.3f})" for row in rows]
        lines.append([policy, *cells])
    return render_result(result, ["policy", *(f"set for {target:.0%}" for target in targets)], lines)


def render_forecasts() -> str:
    """Render the learners and training noise of look-ahead policies: fidelity, and how well exits follow the noise."""
    result = read_result("forecasts")
    targets = list(dict.fromkeys(row["target_depth"] for row in result["rows"]))
    learnt: dict[tuple[str, str, str], list[str]] = {}
    for row in result["rows"]:
        worst = max(value for key, value in row.items() if key.startswith("spearman"))
        cell = f"{row['gain']:+.3f}, {row['over_chance']:+.3f}, {worst:.2f}"
        learnt.setdefault((row["policy"], row["learnt_on"], row["learner"]), []).append(cell)
    header = ["policy", "noise", "learner", *(f"set for {t:.0%}: static cut, chance, Spearman" for t in targets)]
    return render_result(result, header, [[*how, *cells] for how, cells in learnt.items()])


def render_default_policy() -> str:
    """Render the default policy at each depth, with intervals and comparisons."""
    result = read_result("policies")
    rows = {(row["policy"], row["target_depth"]): row for row in result["rows"]}
    header = [
        "set for", "depth", "agreement", "static cut", "best mixture of two cuts", "chance", "above the static cut by",
        "above chance by", "time", "static cut in that time", "oracle", "hindsight",
    ]  # fmt: skip
    lines = []
    for target in dict.fromkeys(target for _, target in rows):
        row, bounds = rows[DEFAULT_POLICY, target], [rows[name, target] for name in ("oracle", "hindsight")]
        lines.append(
            [
                f"{target:.0%}",
                f"{row['depth']:.1%}",
                format_interval(row, "unit_agreement"),
                *(f"{row[f'{name}_unit_agreement']:.3f}" for name in ("fixed", "mixture", "random")),
                _format_gain(row),
                _format_over(row, "over_random"),
                f"{row['time']:.2f}",
                f"{row['fixed_at_time_unit_agreement']:.3f}",
                *(f"{bound['unit_agreement']:.3f} at {bound['depth']:.0%}" for bound in bounds),
            ]
        )
    return render_result(result, header, lines)


def render_conditions(conditions: tuple[str, ...]) -> str:
    """Render the default policy's lead at each depth in some conditions, in the full model's and the clean units."""
    result = read_result("policy_conditions")
    header = ["set for", "audio", "depth"]
    for units in ("full model's units", "clean audio's units"):
        header += [units, "above the static cut", "above chance"]
    lines = []
    for row in (row for row in result["rows"] if row["condition"] in conditions):
        line = [f"{row['target_depth']:.0%}", row["condition"].removeprefix("recorded "), f"{row['depth']:.0%}"]
        for prefix in ("", "clean_"):
            line.append(f"{row[f'{prefix}agreement']:.3f}")
            line += [_format_over(row, f"{prefix}over_{other}") for other in ("static", "random")]
        lines.append(line)
    return render_result(result, header, lines)


def render_regimes() -> str:
    """Render where depth still helps."""
    result = read_result("regimes")
    header = [
        "condition", "full model's units, layer 1 to 12", "clean audio's units, layer 1 to the best",
        "gained after layer 6", "hindsight leaves at", "for the clean audio's units",
    ]  # fmt: skip
    lines = [
        [
            row["condition"], f"{row['unit_agreement_first']:.2f} to {row['unit_agreement_last']:.2f}",
            f"{row['clean_unit_agreement_first']:.2f} to {row['clean_unit_agreement_best']:.2f} "
            f"({row['clean_unit_agreement_best_layer']})",
            f"{row['clean_unit_agreement_after_layer_6']:.2f}", f"{row['hindsight_exit_layer']:.1f}",
            f"{row['hindsight_clean_exit_layer']:.1f}",
        ]
        for row in result["rows"]
    ]  # fmt: skip
    return render_result(result, header, lines)


def render_regimes_sentence() -> str:
    """Say how many of the clean audio's units the middle and the best layer keep in recorded noise at 0 dB."""
    row = next(row for row in read_result("regimes")["rows"] if row["condition"] == "recorded 0 dB")
    best = row["clean_unit_agreement_best"]
    return (
        f"Under recorded noise at 0 dB, layer 6 keeps {best - row['clean_unit_agreement_after_layer_6']:.0%} of the "
        f"clean audio's units, and the best layer {best:.0%}.\n"
    )


def render_headroom_sentence() -> str:
    """Say what share of hindsight's gain at its depth the default policy reaches, set for 60 % of the layers."""
    rows = [row for row in read_result("ideas")["rows"] if row["learnt"] == "same input"]
    (policy,) = (row for row in rows if (row["idea"], row["target_depth"]) == (DEFAULT_POLICY, 0.6))
    hindsight = sorted((row["depth"], row["agreement"]) for row in rows if row["idea"] == "hindsight")
    best = float(numpy.interp(policy["depth"], *zip(*hindsight, strict=True)))
    shares = [(policy["agreement"] - policy[other]) / (best - policy[other]) for other in ("static", "mixture")]
    return (
        f"At the depth that it runs, {policy['depth']:.0%}, `{DEFAULT_POLICY}` reaches {shares[0]:.0%} of hindsight's "
        f"gain over the static cut, and {shares[1]:.0%} of its gain over the best mixture of two cuts.\n"
    )


def render_headroom() -> str:
    """Render hindsight's lead over the static cut, and over chance with its own histogram, at each depth."""
    result = read_result("ideas")
    rows = {(row["learnt"], row["target_depth"]): row for row in result["rows"] if row["idea"] == "hindsight"}
    header = ["depth"]
    for units in ("full model's units", "clean audio's units"):
        header += [f"{units}: static cut", "hindsight", "above the static cut", "above chance", "layers by noise"]
    lines = []
    for target in dict.fromkeys(target for _, target in rows):
        line = [f"{target:.0%}"]
        for learnt, prefix in (("same input", ""), ("clean recording", "clean_")):
            row = rows[learnt, target]
            line += [f"{row[f'{prefix}{name}']:.3f}" for name in ("static", "agreement")]
            line += [f"{row[f'{prefix}over_{other}']:+.3f}" for other in ("static", "random")]
            line.append(_list_layers(row))
        lines.append(line)
    return render_result(result, header, lines)


def render_ideas(target: float) -> str:
    """Render each idea's gain at one depth, in the full model's and in the clean audio's units."""
    result = read_result("ideas")
    header = ["idea", "learns", "depth"]
    for units in ("full model's units", "clean audio's units"):
        header += [units, "above the static cut", "above chance", "above the best mixture of two cuts"]
    header += ["layers by noise", "Spearman, worst kind"]
    lines = []
    for row in (row for row in result["rows"] if row["target_depth"] == target):
        line = [row["idea"], row["learnt"], f"{row['depth']:.0%}"]
        for prefix in ("", "clean_"):
            line.append(f"{row[f'{prefix}agreement']:.3f}")
            line += [_format_over(row, f"{prefix}over_{other}") for other in ("static", "random")]
            line.append(f"{row[f'{prefix}agreement'] - row[f'{prefix}mixture']:+.3f}")
        known = [row[name] for name in row if name.startswith("spearman") and row[name] is not None]
        lines.append([*line, _list_layers(row), f"{max(known):.1f}" if known else ""])
    return render_result(result, header, lines)


def _format_over(row: Row, name: str) -> str:
    return f"{row[name]:+.3f} ({row[f'{name}_low']:+.3f} to {row[f'{name}_high']:+.3f})"


def _list_layers(row: Row) -> str:
    """List the mean exit layers, from clean to the loudest noise."""
    return ", ".join(f"{row[name]:.1f}" for name in row if name.startswith("layers"))


def render_guarantee() -> str:
    """Render the share of splits whose test risk exceeded the target, and the resulting depth."""
    result = read_result("guarantee")
    header = [
        "audio", "policy", "risk of", "target", "method", "nothing certified", "violations",
        "violations, not certified", "from clean, under noise", "depth", "depth, not certified",
    ]  # fmt: skip
    lines = [
        [
            row["audio"], row["policy"], row["risk_name"], _format_risk(row), row["method"],
            f"{row['none_certified']:.0%}", f"{row['violations']:.3f}", f"{row['uncertified_violations']:.3f}",
            f"{row['violations_under_noise']:.3f}" if row["audio"] == "clean" else "",
            f"{row['depth']:.3f}", f"{row['uncertified_depth']:.3f}",
        ]
        for row in result["rows"]
        if row["risk_name"] == "disagreement" or row["risk"] == 0.2  # the others are in the file
    ]  # fmt: skip
    return render_result(result, header, lines)


def _format_risk(row: Row) -> str:
    unit = " nats" if row["risk_name"] == "kl_nats" else ""
    return f"{row['risk'] * CEILING[row['risk_name']]:.1f}{unit}"


def render_guarantee_sentence() -> str:
    """Say how often certified risks were missed, with and without a bound on that probability."""
    rows = read_result("guarantee")["rows"]
    tested = [row for row in rows if row["method"] != "conformal"]
    could_fail = [row for row in tested if row["uncertified_violations"] > 0 and row["none_certified"] < 1]
    conformal = [row for row in rows if row["method"] == "conformal"]
    kept = sum(row["mean_test_risk"] <= row["risk"] for row in conformal)
    missed = max(row["violations"] for row in could_fail)
    share = f"at most {missed:.1%}" if missed else "none"
    return (
        f"Of {len(tested)} settings of Learn then Test, with a delta of {rows[0]['delta']:.0%}, {len(could_fail)} "
        "could fail: in these, something was certified, and the cheapest setting that only looked safe missed the "
        f"target at times. With the certificate, the target was missed in {share} of {rows[0]['splits']} random halves "
        "(of the same speakers, so not independent). Conformal risk control bounds the mean risk: it was below the "
        f"target in {kept} of {len(conformal)} "
        "settings.\n"
    )


def render_windows() -> str:
    """Render the published code's window by batch size."""
    result = read_result("windows")
    lines = [
        [
            row["policy"], str(row["batch"]), row["layers"], f"{row['depth']:.1%}", f"{row['unit_agreement']:.3f}",
            _format_gain(row), f"{row['other_than_alone']:.1%}",
        ]
        for row in result["rows"]
    ]  # fmt: skip
    header = [
        "policy", "batch", "layers looked at", "depth", "agreement", "against the static cut", "exits unlike alone",
    ]  # fmt: skip
    return render_result(result, header, lines)


def render_decisions() -> str:
    """Render microseconds per utterance for a decision."""
    result = read_result("decisions")
    cells: dict[str, list[str]] = {}
    for row in result["rows"]:
        cell = f"{row['decision_us']:.1f} ({row['low_us']:.1f}-{row['high_us']:.1f})"
        cells.setdefault(row["policy"], []).append(cell)
    sizes = list(dict.fromkeys(row["batch"] for row in result["rows"]))
    header = ["policy", *(f"batch of {size}: us" for size in sizes)]
    return render_result(result, header, [[policy, *times] for policy, times in cells.items()])


TABLES: dict[str, Callable[[], str]] = {
    "exits": partial(render_exits, ("recorded",)),
    "exits_by_noise": render_exits,
    "exits_sentence": render_exits_sentence,
    "sets": render_sets,
    "policies": partial(render_policies, "policies"),
    "policies_dev": partial(render_policies, "policies_dev"),
    "default_policy": render_default_policy,
    "policy_conditions": partial(render_conditions, ("clean", "recorded 10 dB", "recorded 0 dB")),
    "forecasts": render_forecasts,
    "regimes": render_regimes,
    "regimes_sentence": render_regimes_sentence,
    "headroom": render_headroom,
    "headroom_sentence": render_headroom_sentence,
    "ideas": partial(render_ideas, 0.6),
    "guarantee": render_guarantee,
    "guarantee_sentence": render_guarantee_sentence,
    "windows": render_windows,
    "decisions": render_decisions,
}
