"""Word and character error rates, which are jiwer's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from daisy.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class ErrorRates:
    """Errors of a set of utterances, over its words and over its characters."""

    wer: float
    """Word errors over words; above 1 where many are inserted."""
    cer: float
    """Character errors over characters, spaces among them."""
    num_words: int
    """Of the references."""
    num_characters: int
    """Of the references."""


def count_errors(reference: str, hypothesis: str, unit: str = "words") -> tuple[int, int]:
    """Count the errors of an utterance, and what they are over.

    Args:
        reference: what was said.
        hypothesis: what was recognised.
        unit: "words" or "characters".

    Returns:
        Insertions, deletions and substitutions in all, and words or characters of the reference.

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
    """Measure word and character error rate over a set: its errors over its words, long utterances weigh more.

    Texts are compared as they are, but for spaces at their ends and in a row: bring them to one case and spelling.

    Args:
        references: what was said in each utterance.
        hypotheses: what was recognised.

    Returns:
        The rates.

    Raises:
        UsageError: where jiwer is missing, the numbers differ, or there is nothing to measure against.

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
