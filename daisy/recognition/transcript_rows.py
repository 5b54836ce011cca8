"""The record of a transcribed recording, and the settings that determine it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from daisy import _files
from daisy.audio import Channel
from daisy.extraction.journal import Row
from daisy.recognition.beam import TOKENS_PER_FRAME
from daisy.recognition.decoding import Word

KIND = "transcripts"


@dataclass(frozen=True, kw_only=True)
class TranscriptSettings:
    """The settings that determine the texts; a run can only resume in a folder with the same settings."""

    checkpoint: str
    """SHA-256 of the checkpoint's file."""
    policy: dict[str, Any]
    """The policy, as `Policy.to_config`."""
    heads: str
    """Heads whose scores the policy reads: "ctc" or "units"."""
    exits: list[int]
    """Layers at which utterances may exit."""
    decoder: dict[str, Any] = field(default_factory=dict)
    """Settings of the search (`describe_decoder`); empty: greedy."""
    window_sec: float | None = None
    """Longer recordings run in windows of this many seconds (`daisy.recognition.long_audio`); None: in one run."""
    context_sec: float = 2.0
    """Half of the overlap of two windows, in seconds."""
    precision: str = "float32"
    """Data type in which the encoder computes."""
    channel: Channel = "mean"
    """How files with several channels are used."""
    kind: str = KIND
    """Distinguishes these journals from those of features."""


def describe_decoder(
    *,
    beam_size: int,
    attention: bool = False,
    lexicon: Path | None = None,
    language_model: Path | None = None,
    language_weight: float = 0.0,
    word_score: float = 0.0,
) -> dict[str, Any]:
    """Return the `TranscriptSettings` entry for a `BeamSearch`, with digests of its files, or an `AttentionSearch`."""
    if attention:
        return {"attention": True, "beam_size": beam_size}
    files = {"lexicon": lexicon, "language_model": language_model}
    digests = {name: _files.digest(path) for name, path in files.items() if path is not None}
    weights = {"language_weight": language_weight, "word_score": word_score}
    return {"beam_size": beam_size, "tokens_per_frame": TOKENS_PER_FRAME, **weights, **digests}


@dataclass(frozen=True, kw_only=True)
class TranscriptRow(Row):
    """One recording's text, its exit and how they were obtained."""

    text: str = ""
    """Words with one space between them."""
    confidence: float = 0.0
    """See `daisy.recognition.Transcript`."""
    words: list[Word] = field(default_factory=list)
    """Words in order, with times."""

    def __post_init__(self) -> None:
        words = [Word(**word) if isinstance(word, dict) else word for word in self.words]  # as read from a journal
        object.__setattr__(self, "words", words)

    def public(self) -> dict[str, Any]:
        """Return the fields to write for a recording."""
        said = {name: value for name, value in vars(self).items() if name not in ("source", "at", "output")}
        if self.channel is None:
            del said["channel"]
        return {**said, "words": [dict(vars(word)) for word in self.words]}
