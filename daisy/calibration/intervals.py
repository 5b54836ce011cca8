"""Compute means, with intervals from resampling whole groups (speakers), because a group's recordings are alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy

from daisy.calibration._types import Floats
from daisy.errors import UsageError

DRAWS = 2000


class Estimate(NamedTuple):
    """A mean and its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float


class Resample:
    """Sums over runs: over the runs as they are (row 0), and over groups drawn with replacement (the other rows).

    Args:
        groups: group of each run.
        draws: number of bootstrap samples.
    """

    def __init__(self, groups: Sequence[str], draws: int = DRAWS):
        _, self.membership = numpy.unique(numpy.asarray(groups), return_inverse=True)
        self.num_groups = int(self.membership.max()) + 1
        picks = numpy.random.default_rng(0).integers(self.num_groups, size=(draws, self.num_groups))
        self.times = numpy.zeros((draws + 1, self.num_groups))
        self.times[0] = 1
        numpy.add.at(self.times, (numpy.arange(1, draws + 1)[:, None], picks), 1)

    def sums(self, values: Floats) -> Floats:
        """Sum (B, ...) values over the runs: (1 + draws, ...)."""
        by_group = numpy.zeros((self.num_groups, *values.shape[1:]))
        numpy.add.at(by_group, self.membership, values)
        return self.times @ by_group

    def sum_weights(self, weights: Floats, what: str) -> Floats:
        """Sum (B,) weights, (1 + draws,): NaN where only groups without weight were drawn, which have no mean.

        Args:
            weights: weights of the runs.
            what: name of the weighted quantity, for the error.

        Raises:
            UsageError: where no run has any weight.
        """
        totals = self.sums(weights)
        if not totals[0] > 0:
            raise UsageError(f"{what}: all runs have weight 0, so that there is no mean; leave them out")
        return numpy.where(totals > 0, totals, numpy.nan)

    def estimate(self, values: Floats) -> Estimate:
        """Return row 0 with the interval of the other rows, leaving out NaN."""
        low, high = numpy.nanquantile(values[1:], [0.025, 0.975])
        return Estimate(float(values[0]), float(low), float(high))


def bootstrap(values: Sequence[float], groups: Sequence[str]) -> Estimate:
    """Average values over runs, with an interval.

    Args:
        values: value of each run.
        groups: speaker of each run.

    Returns:
        The mean with its 95 % interval from resampling groups.

    Example:
        >>> from daisy.calibration import bootstrap
        >>> estimate = bootstrap([1.0, 1.0, 2.0, 4.0], ["anna", "anna", "ben", "carl"])
        >>> estimate.mean, estimate.low < 2.0 < estimate.high
        (2.0, True)
    """
    resample = Resample(groups)
    of = numpy.asarray(values, dtype=numpy.float64)
    return resample.estimate(resample.sums(of) / resample.sums(numpy.ones(len(of))))
