"""Evaluate policies on full runs: depth and loss, beside the static cut and chance at the same depth.

All policies decide from the same traces, so that only their decisions differ. Intervals (95 %) resample whole groups
(speakers). A loss that is counted in words, characters or units gives long runs more weight. The depth of its static
cut and chance is then weighted likewise: else a policy that only sends long runs deeper would gain over both.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy
from torch import Tensor

from daisy.calibration._types import Floats
from daisy.calibration.depth import STEPS, find_quantile, mean_depth
from daisy.calibration.families import FAMILIES, LOOK_AHEAD, TEXT_FAMILIES, THRESHOLDS, fit_family, readable_scores
from daisy.calibration.intervals import DRAWS, Estimate, Resample
from daisy.calibration.traces import Traces
from daisy.policies import POLICIES


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Evaluation of one policy on one set of runs."""

    policy: str
    condition: str
    """"all" or the name of one condition."""
    num_runs: int
    mean_exit_layer: Estimate
    depth: float
    """Mean executed share of the cost of all layers; each run counts once."""
    depths: dict[str, float]
    """The same depth where each run counts as much as it does in a loss."""
    histogram: tuple[int, ...]
    """Number of exits at each layer at which utterances may leave."""
    losses: dict[str, Estimate]
    fixed: dict[str, float]
    """The same losses of a static cut at their depth in `depths` (a mixture of two neighbouring layers)."""
    gain: dict[str, Estimate]
    """How much lower the losses are than the static cut's."""
    random: dict[str, float]
    """Expected losses of exits drawn from the policy's own, where each run is as likely as it counts in the loss."""
    gain_over_random: dict[str, Estimate]
    """How much lower the losses are than those of random exits."""
    by_exit_layer: dict[str, tuple[float | None, ...]]
    """The same losses over the runs that left at each layer; None where no run with any weight left."""


def evaluate(name: str, exit_layers: Tensor, traces: Traces, condition: str = "all", draws: int = DRAWS) -> Evaluation:
    """Evaluate a policy's exits on these runs.

    Args:
        name: name of the policy.
        exit_layers: (B,) int64, exits of the runs, counted from 1 to L.
        traces: B full runs.
        condition: name of the runs' condition, or "all".
        draws: number of bootstrap samples for the intervals.

    Returns:
        Depth and losses with their intervals, beside those of the static cut and chance at the same depth.

    Raises:
        UsageError: where no run has any weight in a loss.
    """
    exits = exit_layers.numpy()
    costs = (traces.costs.double() / traces.costs[-1].double()).numpy()
    histogram = numpy.bincount(exits, minlength=traces.num_layers + 1)[1:]
    resample = Resample(traces.groups, draws)
    count = resample.sums(numpy.ones(len(exits)))
    losses, depths, fixed, gain, random, gain_over_random, by_exit_layer = {}, {}, {}, {}, {}, {}, {}
    for loss, values in traces.losses.items():
        weights = traces.weights_of(loss).double().numpy()
        total = resample.sum_weights(weights, f"{loss}, {condition}")
        at_layer = values.double().numpy() * weights[:, None]  # (B, L)
        at_exit = resample.sums(at_layer[numpy.arange(len(exits)), exits - 1]) / total
        static = resample.sums(at_layer) / total[:, None]
        shares = resample.sums(numpy.eye(traces.num_layers)[exits - 1] * weights[:, None]) / total[:, None]  # (R, L)
        spent = shares @ costs
        cut, drawn = cut_at_depth(static, costs, spent), (static * shares).sum(1)
        losses[loss], gain[loss] = resample.estimate(at_exit), resample.estimate(cut - at_exit)
        depths[loss], fixed[loss] = float(spent[0]), float(cut[0])
        random[loss], gain_over_random[loss] = float(drawn[0]), resample.estimate(drawn - at_exit)
        left = [exits == layer for layer in range(1, traces.num_layers + 1)]
        by_exit_layer[loss] = tuple(
            float(at_layer[rows, place].sum() / weights[rows].sum()) if weights[rows].any() else None
            for place, rows in enumerate(left)
        )
    return Evaluation(
        policy=name,
        condition=condition,
        num_runs=len(traces),
        mean_exit_layer=resample.estimate(resample.sums(numpy.array(traces.layers, dtype=float)[exits - 1]) / count),
        depth=mean_depth(exit_layers, traces),
        depths=depths,
        histogram=tuple(histogram.tolist()),
        losses=losses,
        fixed=fixed,
        gain=gain,
        random=random,
        gain_over_random=gain_over_random,
        by_exit_layer=by_exit_layer,
    )


def evaluate_by_condition(name: str, exit_layers: Tensor, traces: Traces) -> list[Evaluation]:
    """Evaluate exits on all runs and, if there are several conditions, on the runs of each."""
    evaluations = [evaluate(name, exit_layers, traces)]
    conditions = list(dict.fromkeys(traces.conditions))
    for condition in conditions if len(conditions) > 1 else ():
        rows = traces.rows_of(condition)
        evaluations.append(evaluate(name, exit_layers[rows], traces.select(rows), condition))
    return evaluations


def trace_frontier(
    tune: Traces, test: Traces, names: Sequence[str], depths: Iterable[float], loss: str
) -> list[tuple[float, Evaluation]]:
    """Tune policies to given depths on some runs, and evaluate them on other runs.

    Args:
        tune: full runs that policies are learnt and tuned on.
        test: full runs of other speakers.
        names: some of `daisy.calibration.families.FAMILIES`; ``hindsight`` is the lowest loss possible at a depth.
        depths: mean executed shares to tune for.
        loss: loss for the policies that learn one.

    Returns:
        Target depth and evaluation, policy by policy.
    """
    evaluations = []
    for name in names:
        if name == "hindsight":
            evaluations += [(target, evaluate(name, find_best_exits(test, target, loss), test)) for target in depths]
            continue
        family = fit_family(name, tune, loss)
        for target in depths:
            policy = family.at(find_quantile(family, tune, target))
            evaluations.append((target, evaluate(name, policy.exit_layers(readable_scores(test)), test)))
    return evaluations


def find_best_exits(traces: Traces, target: float, loss: str) -> Tensor:
    """Find the (B,) exits with the lowest mean loss at a mean depth: each run's best layer at one price for all.

    Depth is as in `Evaluation.depths`.
    """
    weights = traces.weights_of(loss).double()
    values = traces.losses[loss].double()
    costs = traces.costs.double() / traces.costs[-1].double()
    low, high = 0.0, float((values.amax() - values.amin()) / (costs[1:] - costs[:-1]).min())
    for _ in range(STEPS):
        price = (low + high) / 2
        exits = (values + price * costs).argmin(1) + 1
        if float(costs[exits - 1] @ weights / weights.sum()) > target:
            low = price
        else:
            high = price
    return (values + high * costs).argmin(1) + 1


def list_families(traces: Traces, loss: str) -> list[str]:
    """List the families that the traces' columns allow, and a threshold on each score that no family reads.

    Scores without a value at the first layer are left to the families that expect this.
    """
    known = set(traces.scores) | set(traces.losses)
    reads = {name: set(POLICIES[name].scores) for name in THRESHOLDS} | {"agreement": {"entropy", loss}, "fixed": set()}
    allowed = []
    for name in (*FAMILIES, *TEXT_FAMILIES):
        if name in LOOK_AHEAD:
            target, features = LOOK_AHEAD[name]
            target = loss if target == "disagreement" else target
            fits = target in known and bool(set(features) & set(traces.scores))
        else:
            fits = reads[name] <= known
        if fits:
            allowed.append(name)
    used = {"num_frames", "draw", *FAMILIES, *TEXT_FAMILIES}.union(*(reads[name] for name in THRESHOLDS))
    rest = {column: values for column, values in traces.scores.items() if column not in used}
    return allowed + [column for column, values in rest.items() if values[:, :-1].isfinite().all()]


def cut_at_depth(static: Floats, costs: Floats, depths: Floats) -> Floats:
    """Interpolate losses of static cuts (R, L), which cost (L,), linearly between layers: (R,) at (R,) depths."""
    upper = numpy.clip(numpy.searchsorted(costs, depths), 1, len(costs) - 1)
    share = numpy.clip((depths - costs[upper - 1]) / (costs[upper] - costs[upper - 1]), 0, 1)
    rows = numpy.arange(len(depths))
    losses: Floats = static[rows, upper - 1] * (1 - share) + static[rows, upper] * share
    return losses
