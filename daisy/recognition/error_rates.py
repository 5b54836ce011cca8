"""Word and character error rates, computed by jiwer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from daisy.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class ErrorRates:
    """Errors of a set of utterances, over its words and over its characters."""

    wer: float
    """Word errors divided by words; above 1 with many insertions."""
    cer: float
    """Character errors divided by characters, spaces included."""
    num_words: int
    """Words in the references."""
    num_characters: int
    """Characters in the references."""


def count_errors(reference: str, hypothesis: str, unit: str = "words") -> tuple[int, int]:
    """Count the errors in an utterance, and its words or characters.

    Args:
        reference: the spoken text.
        hypothesis: the recognised text.
        unit: "words" or "characters".

    Returns:
        The number of insertions, deletions and substitutions together, and of the reference's words or characters.

    Raises:
        UsageError: where jiwer is missing.

    Example:
        >>> from daisy.recognition import count_errors
        >>> count_errors("the cat sat", "the cats sat"), count_errors("cat", "cats", "characters")
        ((1, 3), (1, 3))
    """
    counts = _process([reference], [hypothesis], unit)
    return counts.substitutions + counts.insertions + counts.deletions, _total(counts)


def measure_error_rates(references: Sequence[str], hypotheses: Sequence[str]) -> ErrorRates:
    """Measure word and character error rate over a set: all errors divided by all words, so long utterances weigh more.

    Texts are compared as they are, except for surrounding and repeated spaces: give them the same case and spelling.

    Args:
        references: spoken text of each utterance.
        hypotheses: recognised text of each utterance.

    Returns:
        The rates.

    Raises:
        UsageError: where jiwer is missing, the numbers of texts differ, or all references are empty.

    Example:
        >>> from daisy.recognition import measure_error_rates
        >>> measure_error_rates(["the cat sat", "on"], ["the cats sat", "on"]).wer
        0.25
    """
    if len(references) != len(hypotheses):
        raise UsageError(f"{len(references)} references and {len(hypotheses)} hypotheses")
    if not any(reference.strip() for reference in references):
        raise UsageError("no reference has a word: there is nothing to measure against")
    words, characters = (_process(references, hypotheses, unit) for unit in ("words", "characters"))
    return ErrorRates(wer=words.wer, cer=characters.cer, num_words=_total(words), num_characters=_total(characters))


def _process(references: Sequence[str], hypotheses: Sequence[str], unit: str) -> Any:
    try:
        import jiwer
    except ImportError:
        raise UsageError("error rates need the package jiwer", remedy="recognition") from None
    if unit not in ("words", "characters"):
        raise UsageError(f"errors are counted in words or characters, not in {unit!r}")
    process = jiwer.process_words if unit == "words" else jiwer.process_characters
    said, recognised = ([" ".join(text.split()) for text in texts] for texts in (references, hypotheses))
    return process(said, recognised)


def _total(counts: Any) -> int:
    return int(counts.hits + counts.substitutions + counts.deletions)
