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
from daisy.models.heads import ExitHeads, mean_and_std
from daisy.models.packing import FrameLayout, PackedLayout


class Heads(Protocol):
    """`daisy.models.heads.ExitHeads`, or the same laid out for speed."""

    def unit_logits(self, layer: int, features: Tensor) -> Tensor:
        """Classify (F, D) to (F, K)."""

    def predicted_loss(self, layer: int, pooled: Tensor) -> Tensor:
        """Estimate (B, 2 D) to (B,)."""


class HeadOutputs:
    """What the heads make of one layer of a batch; each part is computed when first asked for, once.

    The frames of the batch's utterances stand one after the other, F in all, F' of which the heads look at.

    Args:
        heads: the exit heads; None where only scores are asked for that need none.
        layer: 1 to L.
        features: (F, D), what layer ``layer`` gives the heads.
        layout: of the utterances.
        previous_units: (F',) units of the layer before; None at layer 1.
        draws: (B,) of `make_draws`.
        stride: the heads look at every ``stride``-th frame of an utterance.
    """

    def __init__(
        self,
        heads: Heads | None,
        layer: int,
        features: Tensor,
        layout: FrameLayout,
        previous_units: Tensor | None = None,
        draws: Tensor | None = None,
        stride: int = 1,
    ):
        self._heads, self.layer, self.layout, self.draws = heads, layer, layout, draws
        self.previous_units = previous_units
        self.all_features, self._stride = features, stride

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
    def features(self) -> Tensor:
        """What the heads look at, (F', D)."""
        return self.all_features if self._stride == 1 else self.all_features[self.layout.strided_rows(self._stride)]

    @cached_property
    def strided_layout(self) -> FrameLayout:
        """Where those frames stand."""
        return self.layout.strided(self._stride)

    @cached_property
    def log_probs(self) -> Tensor:
        """(F', K) float32."""
        return self.heads.unit_logits(self.layer, self.features).float().log_softmax(-1)

    @cached_property
    def units(self) -> Tensor:
        """(F',) the likeliest."""
        return self.log_probs.argmax(-1)

    def mean(self, values: Tensor) -> Tensor:
        """Average (F',) values over each utterance's own frames, (B,)."""
        return self.strided_layout.mean(values)


def entropy(outputs: HeadOutputs) -> Tensor:
    """Average the frames' entropies, (B,) nats: DAISY's predicted masked-unit loss. Takes no gradients."""
    return outputs.mean(-outputs.log_probs.exp().mul_(outputs.log_probs).sum(-1))


def confidence(outputs: HeadOutputs) -> Tensor:
    """Average the probability of each frame's likeliest unit, (B,) (HuBERT-EE, arXiv:2204.06328)."""
    return outputs.mean(outputs.log_probs.amax(-1).exp())


def margin(outputs: HeadOutputs) -> Tensor:
    """Average the difference between the probabilities of each frame's two likeliest units, (B,)."""
    first, second = outputs.log_probs.topk(2, dim=-1).values.exp().unbind(-1)
    return outputs.mean(first - second)


def change(outputs: HeadOutputs) -> Tensor:
    """Compute the share of frames whose likeliest unit differs from the layer before's, (B,); NaN at layer 1."""
    if outputs.previous_units is None:
        return torch.full((len(outputs.layout),), torch.nan, device=outputs.features.device)
    return outputs.mean((outputs.units != outputs.previous_units).float())


def regressed(outputs: HeadOutputs) -> Tensor:
    """Estimate the masked-unit loss with the loss regressor, (B,) in nats."""
    return outputs.heads.predicted_loss(outputs.layer, mean_and_std(outputs.features, outputs.strided_layout))


def num_frames(outputs: HeadOutputs) -> Tensor:
    """Count the frames of each utterance, (B,) on the CPU."""
    assert isinstance(outputs.layout, PackedLayout)  # graphs compute the scores of heads only
    return outputs.layout.num_frames.float()


def draw(outputs: HeadOutputs) -> Tensor:
    """Return the utterance's own draw, (B,)."""
    assert outputs.draws is not None
    return outputs.draws


SCORES: dict[str, Callable[[HeadOutputs], Tensor]] = {
    score.__name__: score for score in (entropy, confidence, margin, change, regressed, num_frames, draw)
}
WITHOUT_HEADS = frozenset({"num_frames", "draw"})


def available_scores(heads: ExitHeads | None) -> set[str]:
    """List all scores that these heads give, or that need none."""
    if heads is None:
        return set(WITHOUT_HEADS)
    return set(SCORES) - (set() if heads.config.regressors else {"regressed"})


def check_scores(names: Iterable[str]) -> None:
    """Refuse what is no score.

    Raises:
        PolicyError: on a name that is no score.
    """
    for name in names:
        if name not in SCORES:
            raise PolicyError(unknown_name("score", name, SCORES))


def make_draws(waveforms: Iterable[Tensor]) -> Tensor:
    """Draw (B,) numbers from [0, 1): as good as random, and the same for the same samples (N_b,) in any batch."""
    content = [waveform.cpu().numpy().tobytes() for waveform in waveforms]
    return torch.tensor([zlib.crc32(samples) >> 8 for samples in content]).float() / 2**24


def to_json(values: Tensor) -> list[float | None]:
    """Convert (n,) values to numbers of six digits; None for what is no number, which JSON cannot hold."""
    return [round(value, 6) if math.isfinite(value) else None for value in values.tolist()]
