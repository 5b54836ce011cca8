"""Policies at a depth, and the static cut that takes the same time."""

from __future__ import annotations

import numpy
from torch import Tensor

from daisy.calibration.depth import find_quantile
from daisy.calibration.families import PolicyFamily, readable_scores
from daisy.calibration.traces import Traces
from daisy.evaluation import comparison


def find_exits(family: PolicyFamily | None, tune: Traces, test: Traces, target: float, loss: str) -> Tensor:
    """Find the exits (B,) of test runs by a policy tuned to a depth; the best possible exits if the policy is None."""
    if family is None:
        return comparison.find_best_exits(test, target, loss)
    return family.at(find_quantile(family, tune, target)).exit_layers(readable_scores(test))


def average_exits(traces: Traces, loss: str) -> Tensor:
    """Average a loss at each exit, (E,): the results of static cuts."""
    weights = traces.weights_of(loss).double()
    return (traces.losses[loss].double() * weights[:, None]).sum(0) / weights.sum()


def average_time(times: Tensor, exits: Tensor, traces: Traces, loss: str) -> float:
    """Average the time over recordings, with the weights that they have in a loss.

    With other weights, a policy could gain merely from the lengths of recordings.

    Args:
        times: (E,) time until each exit, relative to all layers.
        exits: (B,) exits of the recordings.
        traces: full runs of the recordings.
        loss: name of the loss that the time is compared with.
    """
    weights = traces.weights_of(loss).double()
    return float(times[exits - 1].double() @ weights / weights.sum())


def cut_at_time(static: Tensor, times: Tensor, time: float) -> float:
    """Return the loss or agreement of a static cut that takes a given time, linear between layers.

    Args:
        static: (E,) loss or agreement at each exit.
        times: (E,) time until each exit, rising.
        time: see `average_time`; times above that of all layers give the last value.
    """
    return float(numpy.interp(time, times.double().numpy(), static.double().numpy()))
