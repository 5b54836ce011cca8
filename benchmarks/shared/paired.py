"""Timing on machines that are never quiet: systems take turns, and ratios are taken within a turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

ENOUGH = 3
"""Turns for quartiles."""
LONG_SEC = 60.0
"""A turn of which a first call's own cost, some tenths of a second, is a hundredth or less: it needs no warm-up."""


@dataclass(frozen=True)
class Times:
    """Seconds of each turn."""

    seconds: list[float]

    @property
    def median(self) -> float:
        """Seconds."""
        return statistics.median(self.seconds)

    def over(self, other: Times) -> tuple[float, float, float]:
        """Median of the turns' ratios of this to another system's time, with the lower and upper quartile."""
        ratios = [mine / theirs for mine, theirs in zip(self.seconds, other.seconds, strict=True)]
        if len(ratios) < 2:
            return ratios[0], ratios[0], ratios[0]
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
        return middle, low, high


@torch.no_grad()
def turns(systems: Mapping[str, Callable[[], object]], repeats: int, budget_sec: float = 240.0) -> dict[str, Times]:
    """Run every system once a turn, in an order that moves on by one each turn.

    A first turn does not count, unless it took `LONG_SEC`.

    Args:
        systems: name to what is timed.
        repeats: turns that count.
        budget_sec: after which three turns are enough.
    """
    begun = time.perf_counter()
    names = list(systems)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    done, warm_up = 0, True
    while done < repeats and not (done >= ENOUGH and time.perf_counter() - begun > budget_sec):
        first = done % len(names)
        turn = {name: _seconds(systems[name]) for name in names[first:] + names[:first]}
        if warm_up and sum(turn.values()) < LONG_SEC:
            warm_up = False
            continue
        for name, value in turn.items():
            seconds[name].append(value)
        warm_up, done = False, done + 1
    return {name: Times(values) for name, values in seconds.items()}


def _seconds(system: Callable[[], object]) -> float:
    start = time.perf_counter()
    system()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start
