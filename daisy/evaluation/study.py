"""Compare policies on one table of full runs: which policy wins at which depth, and how noise changes the exits.

`daisy noise-curve` makes the table from recordings, `daisy replay` reads it from a file; the rest is the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy
from torch import Tensor

from daisy.calibration.depth import calibrate_depth, check_depth
from daisy.calibration.families import readable_scores
from daisy.calibration.traces import Traces
from daisy.errors import UsageError
from daisy.evaluation import comparison
from daisy.evaluation.comparison import Evaluation
from daisy.policies import Policy

DEPTHS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


@dataclass(frozen=True, kw_only=True)
class Study:
    """Results on the runs that policies were not tuned on."""

    loss: str
    """Loss by which policies are compared."""
    depth: float
    """Depth that policies were tuned to in `evaluations`."""
    policies: dict[str, Policy]
    """The policies as tuned to that depth."""
    evaluations: list[Evaluation]
    """Evaluation of each policy on all runs and on those of each condition."""
    frontier: list[tuple[float, Evaluation]]
    """Target depth and evaluation of each policy, all conditions together."""
    layers: dict[str, dict[str, list[float]]]
    """Mean loss at each layer, by condition and loss: shows where depth still helps."""
    exits: tuple[int, ...]
    """The layers at which utterances may leave."""
    num_tuned: int
    num_judged: int


def compare_policies(
    tune: Traces,
    test: Traces,
    *,
    names: Sequence[str] = (),
    depth: float = 0.6,
    depths: Sequence[float] = DEPTHS,
    loss: str = "",
) -> Study:
    """Tune policies on some runs, and evaluate them on others.

    Args:
        tune: full runs of other speakers than in ``test``.
        test: full runs.
        names: some of `daisy.calibration.families.FAMILIES`; if empty, all that the columns allow.
        depth: mean executed share for the table by condition.
        depths: mean executed shares of the frontier.
        loss: one of the traces' losses; if empty, the first.

    Returns:
        The results on ``test``.

    Raises:
        UsageError: where the tables have no losses or not this one, have groups in common, or have different layers.
        PolicyError: on a policy that the columns do not allow.
    """
    loss = loss or next(iter(test.losses), "")
    if loss not in test.losses or loss not in tune.losses:
        known = ", ".join(test.losses) or "none: name a column loss or errors"
        raise UsageError(f"the traces have no loss{f' {loss!r}' if loss else ''}; they have {known}")
    if set(tune.groups) & set(test.groups):
        shared = sorted(set(tune.groups) & set(test.groups))
        raise UsageError(f"policies would be judged on speakers that they were tuned on: {shared[0]} and so on")
    if tune.layers != test.layers:
        raise UsageError(f"the tables have other layers: {tune.layers} and {test.layers}")
    for target in (depth, *depths):
        check_depth(target)
    both = set(comparison.list_families(test, loss))
    names = list(names) or [name for name in comparison.list_families(tune, loss) if name in both]
    chosen, evaluations = {}, []
    for name in names:
        chosen[name] = calibrate_depth(name, tune, depth, loss).policy
        evaluations += comparison.evaluate_by_condition(name, chosen[name].exit_layers(readable_scores(test)), test)
    with_bound = [*names, "hindsight"]
    return Study(
        loss=loss,
        depth=depth,
        policies=chosen,
        evaluations=evaluations,
        frontier=comparison.trace_frontier(tune, test, with_bound, depths, loss),
        layers={
            condition: {name: _average(values, runs.weights_of(name)) for name, values in runs.losses.items()}
            for condition in dict.fromkeys(test.conditions)
            for runs in [test.of_condition(condition)]
        },
        exits=test.layers,
        num_tuned=len(tune),
        num_judged=len(test),
    )


def correlate_with_snr(evaluations: Sequence[Evaluation], policy: str, kind: str, snrs_db: Sequence[float]) -> float:
    """Compute the rank correlation of mean exit layer and SNR, clean being the highest; NaN where constant.

    Args:
        evaluations: evaluations of a study.
        policy: name of the policy.
        kind: kind of noise.
        snrs_db: signal-to-noise ratios of the study, in dB.
    """
    from scipy.stats import spearmanr

    by_name = {v.condition: v.mean_exit_layer.mean for v in evaluations if v.policy == policy}
    pairs = [(snr, by_name[f"{kind} {snr:g} dB"]) for snr in snrs_db if f"{kind} {snr:g} dB" in by_name]
    if "clean" in by_name:
        pairs.append((numpy.inf, by_name["clean"]))
    if len(pairs) < 3 or len({exit_layer for _, exit_layer in pairs}) < 2:
        return float("nan")
    return float(spearmanr(*zip(*pairs, strict=True)).statistic)


def _average(values: Tensor, weights: Tensor) -> list[float]:
    """Average (B, L) losses with weights, at each layer."""
    means: list[float] = ((values * weights[:, None]).sum(0) / weights.sum()).tolist()
    return means


def to_rows(study: Study) -> list[dict[str, Any]]:
    """Flatten a study's evaluations for CSV and JSON: by condition first, then the frontier (``target_depth``)."""
    flat = [_row(evaluation, None) for evaluation in study.evaluations]
    return flat + [_row(evaluation, target) for target, evaluation in study.frontier]


def _row(evaluation: Evaluation, target: float | None) -> dict[str, Any]:
    values = asdict(evaluation)
    row = {
        "policy": evaluation.policy,
        "condition": evaluation.condition,
        "target_depth": target,
        "num_runs": evaluation.num_runs,
        "depth": evaluation.depth,
        "mean_exit_layer": evaluation.mean_exit_layer.mean,
        "low": evaluation.mean_exit_layer.low,
        "high": evaluation.mean_exit_layer.high,
        "histogram": list(values["histogram"]),
    }
    for loss, estimate in evaluation.losses.items():
        row |= {loss: estimate.mean, f"{loss}_low": estimate.low, f"{loss}_high": estimate.high}
        row |= {
            f"{loss}_depth": evaluation.depths[loss],
            f"{loss}_fixed": evaluation.fixed[loss],
            f"{loss}_random": evaluation.random[loss],
        }
        gain = evaluation.gain[loss]
        row |= {f"{loss}_gain": gain.mean, f"{loss}_gain_low": gain.low, f"{loss}_gain_high": gain.high}
        row[f"{loss}_by_exit_layer"] = list(evaluation.by_exit_layer[loss])
    return row
