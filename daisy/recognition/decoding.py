"""Decode CTC outputs to tokens, and tokens to words with times."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from daisy.models import Tokens


@dataclass(frozen=True, kw_only=True)
class Hypothesis:
    """A decoder's result for an utterance."""

    tokens: tuple[int, ...]
    """Token indices, without blanks."""
    frames: tuple[range, ...]
    """For each token, its frames: at least one."""
    words: tuple[str, ...] | None = None
    """Words as written in a lexicon; None where the text is spelt by the tokens."""
    score: float
    """The decoder's objective: log-probability in nats, with a language model's part where there is one."""


@dataclass(frozen=True, kw_only=True)
class Word:
    """A word and its time."""

    text: str
    """The word, without spaces."""
    start_sec: float
    """Start, from the beginning of the waveform."""
    end_sec: float
    """End of its last frame."""
    confidence: float
    """Geometric mean of its tokens' probabilities over their frames, 0 to 1."""


def decode_greedily(log_probs: Tensor, blank: int = 0) -> Hypothesis:
    """Take the likeliest token of each frame; repetitions count once, blanks not at all.

    Args:
        log_probs: log-probabilities (T, V).
        blank: index of the blank among the V tokens.

    Returns:
        The tokens of the best path.

    Example:
        >>> import torch
        >>> from daisy.recognition import decode_greedily
        >>> path = torch.tensor([0, 2, 2, 0, 2, 1])
        >>> decode_greedily(torch.nn.functional.one_hot(path).float().log()).frames
        (range(1, 3), range(4, 5), range(5, 6))
    """
    best = log_probs.max(-1)
    runs = find_runs(best.indices.tolist(), blank)
    return Hypothesis(
        tokens=tuple(token for token, _ in runs),
        frames=tuple(frames for _, frames in runs),
        score=float(best.values.double().sum()),
    )


def find_runs(path: Sequence[int], blank: int) -> list[tuple[int, range]]:
    """Find the tokens of a path, which has one token per frame, and the frames of each; skip blanks."""
    runs, start = [], 0
    for token, run in groupby(path):
        stop = start + sum(1 for _ in run)
        if token != blank:
            runs.append((token, range(start, stop)))
        start = stop
    return runs


def align(log_probs: Tensor, tokens: list[int], blank: int) -> tuple[range, ...]:
    """Find the frames of each token, by forced alignment.

    Args:
        log_probs: log-probabilities (T, V).
        tokens: at most as many as CTC can align to T frames.
        blank: index of the blank among the V tokens.

    Returns:
        The frames of each token.
    """
    from torchaudio.functional import forced_align

    if not tokens:
        return ()
    path, _ = forced_align(log_probs[None].float(), torch.tensor([tokens], dtype=torch.int32), blank=blank)
    return tuple(frames for _, frames in find_runs(path[0].tolist(), blank))


def find_words(hypothesis: Hypothesis, tokens: Tokens, log_probs: Tensor, frame_sec: float) -> list[Word]:
    """Join a hypothesis's tokens to words with their times.

    Args:
        hypothesis: result of a decoder.
        tokens: the recogniser's tokens.
        log_probs: log-probabilities (T, V) from which it was decoded.
        frame_sec: seconds between the starts of two frames.

    Returns:
        The words in order; their texts joined by spaces are the hypothesis's text.
    """
    words = []
    for places in split_at_spaces(hypothesis.tokens, tokens):
        frames = [frame for place in places for frame in hypothesis.frames[place]]
        chosen = [hypothesis.tokens[place] for place in places for _ in hypothesis.frames[place]]
        said = log_probs[frames, chosen]
        words.append(
            Word(
                text="".join(tokens.spell(hypothesis.tokens[place]) for place in places),
                start_sec=round(min(frames) * frame_sec, 3),
                end_sec=round((max(frames) + 1) * frame_sec, 3),
                confidence=math.exp(said.double().mean()),
            )
        )
    return words if hypothesis.words is None else _rename(words, hypothesis.words)


def split_at_spaces(numbers: Sequence[int], tokens: Tokens) -> list[list[int]]:
    """List the positions of each word's tokens, without those that have no letters.

    Args:
        numbers: indices of consecutive tokens.
        tokens: the recogniser's tokens.
    """
    words: list[list[int]] = [[]]
    for place, token in enumerate(numbers):
        if tokens.starts_word(token):
            words.append([])
        if tokens.spell(token):
            words[-1].append(place)
    return [word for word in words if word]


def _rename(words: list[Word], names: Sequence[str]) -> list[Word]:
    """Write words as in a lexicon, whose spellings `daisy.recognition.beam` has checked to be whole words."""
    return [
        Word(text=name, start_sec=word.start_sec, end_sec=word.end_sec, confidence=word.confidence)
        for word, name in zip(words, names, strict=True)
    ]
