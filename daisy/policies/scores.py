"""Head outputs to one number per utterance and exit. A policy names what it reads; nothing else is computed.

| score                | at each exit                                                          | from        |
|----------------------|-----------------------------------------------------------------------|-------------|
| `entropy`            | mean frame entropy of the units, nats: DAISY's predicted loss          | classifier  |
| `confidence`         | mean probability of the likeliest unit                                | classifier  |
| `margin`             | mean difference of the two likeliest units' probabilities             | classifier  |
| `change`             | share of frames whose unit is not that of the exit before; NaN at 1   | classifier  |
| `sentence_confidence`| log-probability of the best path, nats a frame                        | CTC         |
| `text_change`        | share of the text that is not that of the exit before; NaN at 1       | CTC         |
| `posterior`          | of the likeliest of the N best texts, among them                      | CTC, a beam |
| `regressed`          | the loss regressor's estimate, nats                                   | regressor   |
| `num_frames`         | frames of the utterance, at every exit                                | no head     |
| `draw`               | a number from [0, 1) that the samples alone determine                 | no head     |

Of CTC exits the units are tokens, the blank among them.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property, update_wrapper
from typing import Protocol

import torch
from torch import Tensor

from daisy.errors import CheckpointError, PolicyError, unknown_name
from daisy.models.heads import mean_and_std
from daisy.models.kinds import AnyHeads, AnyHeadsConfig
from daisy.models.packing import FrameLayout, PackedLayout
from daisy.policies.nbest import nbest_posterior
from daisy.policies.texts import collapse, edit_distance


class Heads(Protocol):
    """`daisy.models.ExitHeads` or `daisy.models.CTCHeads`, or the same laid out for speed."""

    @property
    def config(self) -> AnyHeadsConfig:
        """Where they stand, and what they read."""

    def unit_logits(self, layer: int, features: Tensor, layout: FrameLayout | None = None) -> Tensor:
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
        previous_units: (F',) units of the exit before; None at the first.
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
        return self.heads.unit_logits(self.layer, self.features, self.strided_layout).float().log_softmax(-1)

    @cached_property
    def best(self) -> tuple[Tensor, Tensor]:
        """Log-probabilities of the likeliest units, and the units, (F',) each."""
        return torch.max(self.log_probs, -1)  # much faster than argmax on CPUs

    @property
    def units(self) -> Tensor:
        """(F',) the likeliest."""
        return self.best[1]

    def mean(self, values: Tensor) -> Tensor:
        """Average (F',) values over each utterance's own frames, (B,)."""
        return self.strided_layout.mean(values)


class FrameMean:
    """A score that is a mean over each utterance's frames.

    Args:
        of_frames: gives the frames' values, (F',).
    """

    def __init__(self, of_frames: Callable[[HeadOutputs], Tensor]):
        update_wrapper(self, of_frames)
        self.of_frames = of_frames

    def __call__(self, outputs: HeadOutputs) -> Tensor:
        """Average the frames' values, (B,)."""
        return outputs.mean(self.of_frames(outputs))


@FrameMean
def entropy(outputs: HeadOutputs) -> Tensor:
    """Compute the frames' entropies in nats: DAISY's predicted masked-unit loss. Takes no gradients."""
    return -outputs.log_probs.exp().mul_(outputs.log_probs).sum(-1)


@FrameMean
def confidence(outputs: HeadOutputs) -> Tensor:
    """Compute the probability of each frame's likeliest unit (HuBERT-EE, arXiv:2204.06328)."""
    return outputs.best[0].exp()


@FrameMean
def margin(outputs: HeadOutputs) -> Tensor:
    """Compute the difference between the probabilities of each frame's two likeliest units."""
    first, units = outputs.best
    second = outputs.log_probs.scatter(-1, units[:, None], -torch.inf).amax(-1)
    return first.exp() - second.exp()


@FrameMean
def change(outputs: HeadOutputs) -> Tensor:
    """Tell the frames whose likeliest unit differs from the exit before's: 1, else 0; NaN at the first exit."""
    if outputs.previous_units is None:
        return torch.full((len(outputs.features),), torch.nan, device=outputs.features.device)
    return (outputs.units != outputs.previous_units).float()


@FrameMean
def sentence_confidence(outputs: HeadOutputs) -> Tensor:
    """Compute the log-probability of the best CTC path, nats a frame.

    Its exponential is the confidence that Wright et al. (arXiv:2309.09546; their code for wav2vec2) weigh losses with.
    """
    return outputs.best[0]


def text_change(outputs: HeadOutputs) -> Tensor:
    """Compare the text of the best path with the exit before's: (B,) on the CPU; NaN at the first exit.

    It is the edit distance in tokens over the tokens of the longer text. Of two empty texts it is 1: exits that write
    nothing yet would agree otherwise.
    """
    if outputs.previous_units is None:
        return torch.full((len(outputs.layout),), torch.nan)
    pairs = zip(_texts(outputs, outputs.units), _texts(outputs, outputs.previous_units), strict=True)
    return torch.tensor(
        [edit_distance(now, before) / max(len(now), len(before)) if now or before else 1.0 for now, before in pairs]
    )


def posterior(outputs: HeadOutputs) -> Tensor:
    """Compute the sentence posterior of arXiv:2309.09546, (B,) on the CPU: see `daisy.policies.nbest`."""
    log_probs = outputs.log_probs.cpu().split(_layout(outputs).seqlens_list)
    return torch.tensor([nbest_posterior(frames, _blank(outputs)) for frames in log_probs])


def _texts(outputs: HeadOutputs, units: Tensor) -> list[list[int]]:
    """The tokens of each utterance's best path, from (F',) units."""
    blank = _blank(outputs)
    return [collapse(path.tolist(), blank) for path in units.cpu().split(_layout(outputs).seqlens_list)]


def _layout(outputs: HeadOutputs) -> PackedLayout:
    assert isinstance(outputs.strided_layout, PackedLayout)  # graphs compute no score that the host does
    return outputs.strided_layout


def _blank(outputs: HeadOutputs) -> int:
    blank = outputs.heads.config.blank
    if blank is None:
        raise CheckpointError("these exit heads predict units, and a score of text was asked for: it needs CTC exits")
    return blank


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
    "entropy": entropy,
    "confidence": confidence,
    "margin": margin,
    "change": change,
    "sentence_confidence": sentence_confidence,
    "text_change": text_change,
    "posterior": posterior,
    "regressed": regressed,
    "num_frames": num_frames,
    "draw": draw,
}
WITHOUT_HEADS = frozenset({"num_frames", "draw"})
OF_TEXT = frozenset({"sentence_confidence", "text_change", "posterior"})
"""Scores that CTC exits alone give."""
COMPARING = frozenset({"change", "text_change"})
"""Scores that compare an exit with the one before."""
ON_HOST = frozenset({"text_change", "posterior"})
"""Scores that the host computes, for which a GPU is waited for."""


def compute_scores(names: Sequence[str], outputs: HeadOutputs) -> Tensor:
    """Compute some scores, (S, B) float32 where the features are. The means over frames are taken in one go."""
    of_frames = {name: score for name in names if isinstance(score := SCORES[name], FrameMean)}
    means: dict[str, Tensor] = {}
    if of_frames:
        values = torch.stack([score.of_frames(outputs).float() for score in of_frames.values()], dim=1)  # (F', S)
        means = dict(zip(of_frames, outputs.mean(values).unbind(1), strict=True))
    device = outputs.all_features.device
    others = {name: SCORES[name](outputs).float().to(device) for name in names if name not in means}
    return torch.stack([means[name] if name in means else others[name] for name in names])


def available_scores(heads: AnyHeads | None) -> set[str]:
    """List all scores that these heads give, or that need none."""
    if heads is None:
        return set(WITHOUT_HEADS)
    absent = set() if heads.config.regressors else {"regressed"}
    return set(SCORES) - absent - (OF_TEXT if heads.config.blank is None else set())


def to_nats_per_frame(threshold: float, num_tokens: int) -> float:
    """Convert an entropy threshold of the papers to that of the policy entropy.

    HuBERT-EE (arXiv:2204.06328) and Wright et al. (arXiv:2309.09546) divide the sum of the frames' entropies by T V;
    the latter's files hold the negative. Ours is the mean over the frames.

    Args:
        threshold: divided by T V, of either sign.
        num_tokens: V, the blank included.

    Returns:
        Nats a frame.

    Example:
        >>> from daisy.policies.scores import to_nats_per_frame
        >>> round(to_nats_per_frame(0.0035, 32), 3)
        0.112
    """
    return abs(threshold) * num_tokens


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


def list_by_layer(values: Tensor, exits: Sequence[int], last: int) -> list[float | None]:
    """List (E,) scores of exits over layers 1 to ``last``; None where there is no exit, or no number."""
    scores: list[float | None] = [None] * last
    for layer, score in zip(exits, to_json(values), strict=True):
        if layer <= last:
            scores[layer - 1] = score
    return scores
