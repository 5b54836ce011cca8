"""Measure error rates and bitrates of unit sequences."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

from daisy.errors import UsageError
from daisy.policies.texts import edit_distance


def unit_error_rate(hypotheses: Sequence[Sequence[int]], references: Sequence[Sequence[int]]) -> float:
    """Compute the edit distance of unit sequences over the references' length, both summed over the utterances.

    Args:
        hypotheses: units of each utterance, usually deduplicated.
        references: reference units of each utterance, likewise.

    Returns:
        Insertions, deletions and substitutions per unit of the references.

    Raises:
        UsageError: where the numbers of hypotheses and references differ, or no reference has a unit.

    Example:
        >>> from daisy.units import unit_error_rate
        >>> unit_error_rate([[5, 12, 7, 5]], [[5, 12, 5, 9, 7]])
        0.6
    """
    if len(hypotheses) != len(references):
        raise UsageError(f"{len(hypotheses)} sequences and {len(references)} references: each sequence has one")
    total = sum(map(len, references))
    if not total:
        raise UsageError("no reference has a unit: there is nothing to compare with")
    return sum(map(edit_distance, hypotheses, references)) / total


def bitrate(sequences: Iterable[Sequence[int]], seconds: float) -> float:
    """Compute bits per second: units per second times the entropy of their distribution.

    This follows the ZeroSpeech challenge (arXiv:1904.11469, section 4): all utterances' units are one distribution, and
    durations cost nothing.

    Args:
        sequences: units of each utterance, deduplicated if that is what is sent.
        seconds: total duration of the audio.

    Returns:
        Bits per second.

    Raises:
        UsageError: where there is no audio.

    Example:
        >>> from daisy.units import bitrate
        >>> bitrate([[0, 1, 0, 1], [2, 3, 2, 3]], seconds=2.0)
        8.0
    """
    if not seconds > 0:
        raise UsageError(f"a bitrate needs some audio, found {seconds:g} s")
    counts = Counter(unit for sequence in sequences for unit in sequence)
    total = sum(counts.values())
    entropy = -sum(count / total * math.log2(count / total) for count in counts.values())
    return total / seconds * entropy
