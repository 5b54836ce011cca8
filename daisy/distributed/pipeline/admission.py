"""Decide at the source which tasks are admitted, and how early they may leave."""

from __future__ import annotations

import math
from collections.abc import Sequence
from random import Random
from typing import Any

from daisy.distributed.pipeline.rules import RUN_ALL, Rules
from daisy.distributed.pipeline.topology import Topology
from daisy.errors import UsageError

MIN_RATE, MAX_RATE = 1e-3, 1e5
"""Range of an adapted rate, in tasks per second."""


def make_admissions(topology: Topology, *, rate: float, **settings: Any) -> list[Admission]:
    """Create the admission of each source.

    Args:
        topology: the sources, some of which may have rates of their own.
        rate: tasks per second of the other sources.
        settings: further arguments of `Admission`.

    Raises:
        UsageError: as `Admission` does.
    """
    return [Admission(topology.rules, rate=source.rate or rate, **settings) for source in topology.sources]


class Admission:
    """The rate and exit level of a source.

    Levels are settings of the exit policy, counted from 0, the one with the latest exits. In ``rate`` mode the level is
    constant and the rate follows the source's queues; in ``threshold`` mode it is the other way round.

    Args:
        rules: rules of the whole system.
        rate: tasks per second, initially or throughout.
        level: exit level, initially or throughout.
        num_levels: number of exit levels.
        load: times in seconds, each with a factor on the rate from then on, for a load that changes.
        even: whether tasks arrive at even intervals; otherwise they arrive independently (a Poisson process).

    Raises:
        UsageError: if a rate or load is not above 0, or the level does not exist.
    """

    def __init__(
        self,
        rules: Rules,
        *,
        rate: float,
        level: int = 0,
        num_levels: int = 1,
        load: Sequence[tuple[float, float]] = (),
        even: bool = False,
    ):
        if not 0 < rate < math.inf:
            raise UsageError(f"the rate must be above 0 tasks a second, found {rate!r}")
        for when, times in load:
            if not (math.isfinite(when) and math.isfinite(times) and when >= 0 and times > 0):
                raise UsageError(f"a load has seconds, at least 0, and a factor above 0, found {when:g}:{times:g}")
        if rules.exits and not 0 <= level < num_levels:
            raise UsageError(f"level {level} does not exist: there are {num_levels}, from 0 on")
        self.rules, self.rate, self.num_levels = rules, rate, num_levels
        self.level = level if rules.exits else RUN_ALL
        self._load, self._even = sorted(load), even

    def adapt(self, waiting: int) -> None:
        """Adapt the rate or level by one step, given the number of tasks in the source's two queues."""
        rules = self.rules
        low, high = waiting < rules.low_mark, waiting > rules.high_mark
        if rules.admission == "rate":
            factor = rules.speed_up if low else 1 / rules.slow_down if high else 1.0
            self.rate = min(max(self.rate * factor, MIN_RATE), MAX_RATE)
        elif rules.admission == "threshold" and rules.exits:
            self.level = min(max(self.level + high - low, 0), self.num_levels - 1)

    def next_interval(self, now: float, random: Random) -> float:
        """Draw the seconds until the next task arrives, at ``now`` seconds after the start."""
        factor = 1.0
        for begins, times in self._load:
            if now >= begins:
                factor = times
        mean = 1 / (self.rate * factor)
        interval = mean if self._even else random.expovariate(1 / mean)
        for begins, times in self._load:
            rest = now + interval - begins
            if begins > now and rest > 0:  # from there on it passes at another rate
                interval, factor = begins - now + rest * factor / times, times
        return interval
