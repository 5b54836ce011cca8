"""Remove and restore repetitions in unit sequences."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from daisy.errors import UsageError


def deduplicate(units: Sequence[int]) -> tuple[list[int], list[int]]:
    """Write each run of one unit once.

    Args:
        units: unit of each frame.

    Returns:
        The units, of which no two neighbours are the same, and how many frames each lasts.

    Example:
        >>> from daisy.units import deduplicate
        >>> deduplicate([5, 5, 5, 12, 5])
        ([5, 12, 5], [3, 1, 1])
    """
    runs = [(unit, sum(1 for _ in run)) for unit, run in groupby(units)]
    return [unit for unit, _ in runs], [duration for _, duration in runs]


def repeat(units: Sequence[int], durations: Sequence[int]) -> list[int]:
    """Undo `deduplicate`, to one unit for each frame.

    Args:
        units: units without repetitions.
        durations: number of frames of each.

    Returns:
        A unit for each frame.

    Raises:
        UsageError: where the numbers of units and durations differ.

    Example:
        >>> from daisy.units import repeat
        >>> repeat([5, 12, 5], [3, 1, 1])
        [5, 5, 5, 12, 5]
    """
    if len(units) != len(durations):
        raise UsageError(f"{len(units)} units and {len(durations)} durations: each unit has one")
    return [unit for unit, duration in zip(units, durations, strict=True) for _ in range(duration)]
