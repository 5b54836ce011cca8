"""Head outputs to one number per utterance and layer. A policy names what it reads; nothing else is computed.

| score       | at each layer                                                        | from        |
|-------------|----------------------------------------------------------------------|-------------|
| `entropy`   | mean frame entropy of the units, nats: DAISY's predicted loss         | classifier  |
| `confidence`| mean probability of the likeliest unit                               | classifier  |
| `margin`    | mean difference of the two likeliest units' probabilities            | classifier  |
| `change`    | share of frames whose unit is not that of the layer before; NaN at 1 | classifier  |
| `regressed` | the loss regressor's estimate, nats                                  | regressor   |
| `num_frames`| frames of the utterance, at every layer                              | no head     |
| `draw`      | a number from [0, 1) that the samples alone determine                | no head     |
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from daisy.errors import CheckpointError, PolicyError, unknown_name
from daisy.heads import ExitHeads, mean_and_std
from daisy.layout import Layout


class Heads(Protocol):
    """`daisy.heads.ExitHeads`, or the same laid out for speed."""

    def unit_logits(self, layer: int, read: Tensor) -> Tensor:
        """(F, D) to (F, K)."""

    def predicted_loss(self, layer: int, pooled: Tensor) -> Tensor:
        """(B, 2 D) to (B,)."""


class Reading:
    """What the heads make of one layer of a batch; each part is computed when first asked for, once.

    The frames of the batch's utterances stand one after the other, F in all, F' of which the heads look at.

    Args:
        heads: the exit heads; None where only scores are asked for that need none.
        layer: 1 to L.
        read: (F, D), what layer ``layer`` gives the heads.
        layout: of the utterances.
        units_before: (F',) units of the layer before; None at layer 1.
        draws: (B,) of `draws`.
        stride: the heads look at every ``stride``-th frame of an utterance.
    """

    def __init__(
        self,
        heads: Heads | None,
        layer: int,
        read: Tensor,
        layout: Layout,
        units_before: Tensor | None = None,
        draws: Tensor | None = None,
        stride: int = 1,
    ):
        self._heads, self.layer, self.layout, self.draws = heads, layer, layout, draws
        self.units_before = units_before
        self._read, self._stride = read, stride

    @property
    def heads(self) -> Heads:
        """The exit heads.

        Raises:
            CheckpointError: where there are none.
        """
        if self._heads is None:
            raise CheckpointError("these scores are of exit heads, and there are none")
        return self._heads

    @cached_property
    def read(self) -> Tensor:
        """(F', D), what the heads look at."""
        return self._read if self._stride == 1 else self._read[self.layout.strided_rows(self._stride)]

    @cached_property
    def read_layout(self) -> Layout:
        """Of those frames."""
        return self.layout.strided(self._stride)

    @cached_property
    def log_probs(self) -> Tensor:
        """(F', K) float32."""
        return self.heads.unit_logits(self.layer, self.read).float().log_softmax(-1)

    @cached_property
    def units(self) -> Tensor:
        """(F',) the likeliest."""
        return self.log_probs.argmax(-1)

    def mean(self, values: Tensor) -> Tensor:
        """(F',) to (B,): over each utterance's own frames."""
        return self.read_layout.mean(values)


def entropy(reading: Reading) -> Tensor:
    """Mean frame entropy of the units, (B,) in nats: DAISY's predicted masked-unit loss. Takes no gradients."""
    return reading.mean(-reading.log_probs.exp().mul_(reading.log_probs).sum(-1))


def confidence(reading: Reading) -> Tensor:
    """Mean probability of each frame's likeliest unit, (B,) (HuBERT-EE, arXiv:2204.06328)."""
    return reading.mean(reading.log_probs.amax(-1).exp())


def margin(reading: Reading) -> Tensor:
    """Mean difference between the probabilities of each frame's two likeliest units, (B,)."""
    first, second = reading.log_probs.topk(2, dim=-1).values.exp().unbind(-1)
    return reading.mean(first - second)


def change(reading: Reading) -> Tensor:
    """Share of frames whose likeliest unit differs from the layer before's, (B,); NaN at layer 1."""
    if reading.units_before is None:
        return torch.full((len(reading.layout),), torch.nan, device=reading.read.device)
    return reading.mean((reading.units != reading.units_before).float())


def regressed(reading: Reading) -> Tensor:
    """The loss regressor's estimate of the masked-unit loss, (B,) in nats."""
    return reading.heads.predicted_loss(reading.layer, mean_and_std(reading.read, reading.read_layout))


def num_frames(reading: Reading) -> Tensor:
    """Frames of each utterance, (B,)."""
    return reading.layout.num_frames.float()


def draw(reading: Reading) -> Tensor:
    """The utterance's own draw, (B,)."""
    assert reading.draws is not None
    return reading.draws


SCORES: dict[str, Callable[[Reading], Tensor]] = {
    score.__name__: score for score in (entropy, confidence, margin, change, regressed, num_frames, draw)
}
WITHOUT_HEADS = frozenset({"num_frames", "draw"})


def available(heads: ExitHeads | None) -> set[str]:
    """All scores that these heads give, or that need none."""
    if heads is None:
        return set(WITHOUT_HEADS)
    return set(SCORES) - (set() if heads.config.regressors else {"regressed"})


def check(names: Iterable[str]) -> None:
    """Refuse what is no score.

    Raises:
        PolicyError: on a name that is no score.
    """
    for name in names:
        if name not in SCORES:
            raise PolicyError(unknown_name("score", name, SCORES))


def draws(waveforms: Iterable[Tensor]) -> Tensor:
    """(B,) float32 from [0, 1): as good as random, and the same for the same samples (N_b,) in any batch."""
    content = [waveform.cpu().numpy().tobytes() for waveform in waveforms]
    return torch.tensor([zlib.crc32(samples) >> 8 for samples in content]).float() / 2**24


def for_json(values: Tensor) -> list[float | None]:
    """(n,) values with six digits; None for what is no number, which JSON cannot hold (`change` at layer 1)."""
    return [round(value, 6) if math.isfinite(value) else None for value in values.tolist()]
