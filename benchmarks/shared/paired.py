"""Timing on machines with other load: systems take turns, and ratios are computed within a turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

MIN_TURNS = 3
"""Minimum number of turns for quartiles."""
MIN_SEC_WITHOUT_WARM_UP = 60.0
"""Duration of a turn in which a first call's own cost, some tenths of a second, is at most 1 %: no warm-up needed."""


@dataclass(frozen=True)
class Times:
    """Seconds taken in each turn."""

    seconds: list[float]

    @property
    def median(self) -> float:
        """Median in seconds."""
        return statistics.median(self.seconds)

    def over(self, other: Times) -> tuple[float, float, float]:
        """Return the median, lower and upper quartile, over turns, of the ratio of this time to another system's."""
        return summarise([seconds / others for seconds, others in zip(self.seconds, other.seconds, strict=True)])


def summarise(values: list[float]) -> tuple[float, float, float]:
    """Return the median, lower and upper quartile of values; the value three times if there is only one."""
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return median, low, high


@torch.no_grad()
def time_in_turns(
    systems: Mapping[str, Callable[[], object]], repeats: int, budget_sec: float = 240.0
) -> dict[str, Times]:
    """Run every system once per turn, in an order that shifts by one each turn.

    The first turn is a warm-up and does not count, unless it took `MIN_SEC_WITHOUT_WARM_UP`.

    Args:
        systems: functions to time, by name.
        repeats: number of turns that count.
        budget_sec: time after which `MIN_TURNS` are enough.
    """
    start = time.perf_counter()
    names = list(systems)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    count, is_warm_up = 0, True
    while count < repeats and not (count >= MIN_TURNS and time.perf_counter() - start > budget_sec):
        first = count % len(names)
        turn = {name: _time_call(systems[name]) for name in names[first:] + names[:first]}
        if is_warm_up and sum(turn.values()) < MIN_SEC_WITHOUT_WARM_UP:
            is_warm_up = False
            continue
        for name, value in turn.items():
            seconds[name].append(value)
        is_warm_up, count = False, count + 1
    return {name: Times(values) for name, values in seconds.items()}


def _time_call(system: Callable[[], object]) -> float:
    start = time.perf_counter()
    system()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start
