"""Policies at a depth, and the static cut at the same time as one."""

from __future__ import annotations

import numpy
from torch import Tensor

from daisy.calibration.depth import find_quantile
from daisy.calibration.families import PolicyFamily, readable_scores
from daisy.calibration.traces import Traces
from daisy.evaluation import comparison


def find_exits(family: PolicyFamily | None, tune: Traces, test: Traces, target: float, loss: str) -> Tensor:
    """Find the exits (B,) of test runs by a policy tuned to a depth; the best that there are where it is None."""
    if family is None:
        return comparison.find_best_exits(test, target, loss)
    return family.at(find_quantile(family, tune, target)).exit_layers(readable_scores(test))


def average_exits(traces: Traces, loss: str) -> Tensor:
    """Average a loss at each exit, (E,): what static cuts come to."""
    weights = traces.weights_of(loss).double()
    return (traces.losses[loss].double() * weights[:, None]).sum(0) / weights.sum()


def average_time(times: Tensor, exits: Tensor, traces: Traces, loss: str) -> float:
    """Average the time over recordings, each as often as it counts in a loss.

    Were they weighed otherwise, a policy could gain by nothing but the lengths of recordings.

    Args:
        times: (E,) of leaving at each exit, relative to all layers.
        exits: (B,) where recordings left.
        traces: their full runs.
        loss: what the time is held against.
    """
    weights = traces.weights_of(loss).double()
    return float(times[exits - 1].double() @ weights / weights.sum())


def cut_at_time(static: Tensor, times: Tensor, time: float) -> float:
    """Return what a static cut comes to in some time, linear between layers.

    Args:
        static: (E,) its loss or agreement at each exit.
        times: (E,) of leaving there, rising.
        time: see `average_time`; more than all layers take buys no more than these.
    """
    return float(numpy.interp(time, times.double().numpy(), static.double().numpy()))
