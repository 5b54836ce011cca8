"""CTC outputs to tokens, and tokens to words with times."""

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
    """What a decoder makes of an utterance."""

    tokens: tuple[int, ...]
    """Without blanks."""
    frames: tuple[range, ...]
    """Of each token, the frames that say it: at least one."""
    words: tuple[str, ...] | None = None
    """As a lexicon writes them; None where the tokens' own spelling is the text."""
    score: float
    """What the decoder has maximised: log-probability, nats, with a language model's part where there is one."""


@dataclass(frozen=True, kw_only=True)
class Word:
    """A word and when it was said."""

    text: str
    """Without spaces."""
    start_sec: float
    """From the waveform's beginning."""
    end_sec: float
    """After the last frame that says it."""
    confidence: float
    """Mean probability of its tokens, in the logarithm: 0 to 1."""


def decode_greedily(log_probs: Tensor, blank: int = 0) -> Hypothesis:
    """Take the likeliest token of each frame; repetitions count once, blanks not at all.

    Args:
        log_probs: (T, V).
        blank: which of the V tokens is the blank.

    Returns:
        The best path's tokens.

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
    """Find the tokens of a path, a token for each frame, and the frames of each; blanks are none."""
    runs, start = [], 0
    for token, run in groupby(path):
        stop = start + sum(1 for _ in run)
        if token != blank:
            runs.append((token, range(start, stop)))
        start = stop
    return runs


def align(log_probs: Tensor, tokens: list[int], blank: int) -> tuple[range, ...]:
    """Find the frames that say each token, by forced alignment.

    Args:
        log_probs: (T, V).
        tokens: at most as many as T frames can say.
        blank: of V.

    Returns:
        Of each token its frames.
    """
    from torchaudio.functional import forced_align

    if not tokens:
        return ()
    path, _ = forced_align(log_probs[None].float(), torch.tensor([tokens], dtype=torch.int32), blank=blank)
    return tuple(frames for _, frames in find_runs(path[0].tolist(), blank))


def find_words(hypothesis: Hypothesis, tokens: Tokens, log_probs: Tensor, frame_sec: float) -> list[Word]:
    """Join a hypothesis's tokens to words, and tell when each was said.

    Args:
        hypothesis: of a decoder.
        tokens: what its numbers stand for.
        log_probs: (T, V), from which it was decoded.
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
    """List the places of each word's tokens, of those that have letters.

    Args:
        numbers: of tokens, one after the other.
        tokens: what they stand for.
    """
    words: list[list[int]] = [[]]
    for place, token in enumerate(numbers):
        if tokens.starts_word(token):
            words.append([])
        if tokens.spell(token):
            words[-1].append(place)
    return [word for word in words if word]


def _rename(words: list[Word], names: Sequence[str]) -> list[Word]:
    """Words as a lexicon writes them, whose spellings `daisy.recognition.beam` has checked to be words of their own."""
    return [
        Word(text=name, start_sec=word.start_sec, end_sec=word.end_sec, confidence=word.confidence)
        for word, name in zip(words, names, strict=True)
    ]
