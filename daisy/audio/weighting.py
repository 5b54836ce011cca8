"""Weight the sets of a manifest, folders below its root, that are listed more or less often than others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from math import floor
from pathlib import PurePath
from typing import Any

from daisy.errors import UsageError

HALF = Fraction(1, 2)
MAX_WEIGHT = 1000
"""Largest weight of a set: its lines are written that often, and nobody needs more."""


@dataclass(frozen=True, kw_only=True)
class SetShare:
    """Share of a set in a manifest."""

    folder: str | None
    """Folder below the manifest's root; None: all recordings of no named set."""
    weight: float
    recordings: int
    """Number of different lines."""
    listed: int
    """Number of lines, with repetitions."""
    recorded_sec: float
    heard_sec: float
    """Duration heard in an epoch, which takes every line once."""

    def describe(self) -> str:
        """Describe the share in words, such as ``keywords 74.0 min (weight 2, recorded 37.0 min)``."""
        name, recorded = self.folder or "the rest", format_duration(self.recorded_sec)
        weight = "" if self.folder is None else f"weight {self.weight:g}, "
        return f"{name} {format_duration(self.heard_sec)} ({weight}recorded {recorded})"

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a dictionary for JSON."""
        return asdict(self)


def check_weights(weights: Mapping[str, float]) -> None:
    """Check the weights of sets.

    Args:
        weights: weights by folder below a manifest's root.

    Raises:
        UsageError: where a weight is not above 0 or is above `MAX_WEIGHT`, or a folder is not below a root.
    """
    for folder, weight in weights.items():
        if not 0 < weight <= MAX_WEIGHT:  # neither holds of NaN
            raise UsageError(
                f"the weight of {folder} must be a number above 0 and at most {MAX_WEIGHT}, found {weight:g}"
            )
        if PurePath(folder).is_absolute() or ".." in PurePath(folder).parts:
            raise UsageError(f"a set is a folder below the manifest's root, found {folder}")


def find_sets(names: Sequence[str], folders: Sequence[str]) -> list[str | None]:
    """Find the set that each recording belongs to: the deepest folder that it lies below.

    Args:
        names: paths of recordings below the manifest's root.
        folders: folders below that root, such as ``keywords`` or ``librispeech/train``.

    Returns:
        For each recording a folder, as it was given, or None.

    Raises:
        UsageError: where a folder holds no recording, or is given twice.
    """
    known = {PurePath(folder): folder for folder in folders}
    if len(known) < len(folders):
        raise UsageError(f"a set is given twice: {', '.join(folders)}")
    sets = [next((known[folder] for folder in PurePath(name).parents if folder in known), None) for name in names]
    if empty := [folder for folder in folders if folder not in sets]:
        raise UsageError(f"no recording of the manifest is below {empty[0]}: sets are folders below its root")
    return sets


def weigh_sets(repeats: Sequence[int], sets: Sequence[str | None], weights: Mapping[str, float]) -> list[int]:
    """Count how often to list each recording, where sets have weights.

    A recording of a set with weight w is listed w times as often. If that is not a whole number, those that are listed
    once more than others are spread evenly over the set, in its order: with 1.5 every second recording is listed twice,
    with 0.5 every second one is left out. The same call gives the same lines.

    Args:
        repeats: how often each recording is listed without weights.
        sets: set of each recording, from `find_sets`.
        weights: weights of the sets, above 0. Recordings of no set stay as they are.

    Returns:
        A count for each recording.

    Raises:
        UsageError: where no recording of a set would be listed.

    Example:
        >>> from daisy import audio
        >>> audio.weigh_sets([1, 1, 1, 1, 1], ["a", "a", "a", "a", None], {"a": 1.5})
        [2, 1, 2, 1, 1]
    """
    exact = {folder: Fraction(str(weight)) for folder, weight in weights.items()}
    wanted = dict.fromkeys(weights, Fraction(0))
    listed = dict.fromkeys(weights, 0)
    result = []
    for count, folder in zip(repeats, sets, strict=True):
        times = count
        if folder is not None:
            wanted[folder] += count * exact[folder]
            times = floor(wanted[folder] + HALF) - listed[folder]
            listed[folder] += times
        result.append(times)
    if gone := [folder for folder, times in listed.items() if not times]:
        raise UsageError(f"the weight of {gone[0]} is {weights[gone[0]]:g}, with which none of its recordings is left")
    return result


def measure_shares(
    num_samples: Sequence[int],
    repeats: Sequence[int],
    sets: Sequence[str | None],
    weights: Mapping[str, float],
    sample_rate: int,
) -> list[SetShare]:
    """Measure how long each set is heard in an epoch of a manifest, sets with weights first.

    Args:
        num_samples: samples of each recording.
        repeats: how often each recording is listed.
        sets: set that each recording belongs to.
        weights: weights of the sets.
        sample_rate: sample rate in Hz.

    Returns:
        A share for each set, and for the recordings of no set if there are any.
    """
    shares = []
    for folder in [*weights, None]:
        chosen = [index for index, name in enumerate(sets) if name == folder]
        if not chosen:
            continue
        shares.append(
            SetShare(
                folder=folder,
                weight=1.0 if folder is None else weights[folder],
                recordings=len(chosen),
                listed=sum(repeats[index] for index in chosen),
                recorded_sec=sum(num_samples[index] for index in chosen) / sample_rate,
                heard_sec=sum(num_samples[index] * repeats[index] for index in chosen) / sample_rate,
            )
        )
    return shares


def format_duration(seconds: float) -> str:
    """Format a duration in hours, minutes or seconds, whichever is easiest to read."""
    if seconds >= 36000:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.1f} s"
