"""Compute from head outputs one number per utterance and exit. A policy names its scores; no others are computed.

| score                | at each exit                                                          | from        |
|----------------------|-----------------------------------------------------------------------|-------------|
| `entropy`            | mean frame entropy of the units, nats: DAISY's predicted loss          | classifier  |
| `confidence`         | mean probability of the likeliest unit                                | classifier  |
| `margin`             | mean difference of the two likeliest units' probabilities             | classifier  |
| `change`             | share of frames whose unit is not that of the exit before; NaN at 1   | classifier  |
| `sentence_confidence`| log-probability of the best path, nats a frame                        | CTC         |
| `text_change`        | share of the text that is not that of the exit before; NaN at 1       | CTC         |
| `posterior`          | share of the likeliest text among the N best texts                    | CTC, a beam |
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
    """`daisy.models.ExitHeads` or `daisy.models.CTCHeads`, or either of them packed."""

    @property
    def config(self) -> AnyHeadsConfig:
        """Configuration of the heads: their layers and inputs."""

    def unit_logits(self, layer: int, features: Tensor, layout: FrameLayout | None = None) -> Tensor:
        """Classify (F, D) to (F, K)."""

    def predicted_loss(self, layer: int, pooled: Tensor) -> Tensor:
        """Estimate (B, 2 D) to (B,)."""


class HeadOutputs:
    """Outputs of the heads at one layer of a batch; each part is computed once, when it is first asked for.

    The frames of the batch's utterances follow one another, F in all, of which the heads look at F'.

    Args:
        heads: exit heads; None if all scores asked for need none.
        layer: layer of the network, 1 to L.
        features: (F, D), input of the heads from layer ``layer``.
        layout: layout of the utterances' frames.
        previous_units: (F',) units of the exit before; None at the first exit.
        draws: (B,) draws from `make_draws`.
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
        """Features of the frames that the heads look at, (F', D)."""
        return self.all_features if self._stride == 1 else self.all_features[self.layout.strided_rows(self._stride)]

    @cached_property
    def strided_layout(self) -> FrameLayout:
        """Layout of these frames."""
        return self.layout.strided(self._stride)

    @cached_property
    def log_probs(self) -> Tensor:
        """Log-probabilities of the units, (F', K) float32."""
        return self.heads.unit_logits(self.layer, self.features, self.strided_layout).float().log_softmax(-1)

    @cached_property
    def best(self) -> tuple[Tensor, Tensor]:
        """Log-probabilities of the likeliest units, and the units, (F',) each."""
        return torch.max(self.log_probs, -1)  # much faster than argmax on CPUs

    @property
    def units(self) -> Tensor:
        """The likeliest units, (F',)."""
        return self.best[1]

    def mean(self, values: Tensor) -> Tensor:
        """Average (F',) values over each utterance's own frames, (B,)."""
        return self.strided_layout.mean(values)


class FrameMean:
    """A score that is a mean over each utterance's frames.

    Args:
        of_frames: function that returns the frames' values, (F',).
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
    """Compute 1 for frames whose likeliest unit differs from that at the exit before, else 0; NaN at the first exit."""
    if outputs.previous_units is None:
        return torch.full((len(outputs.features),), torch.nan, device=outputs.features.device)
    return (outputs.units != outputs.previous_units).float()


@FrameMean
def sentence_confidence(outputs: HeadOutputs) -> Tensor:
    """Compute the log-probability of the best CTC path, in nats per frame.

    Its exponential is the confidence by which Wright et al. weight losses (arXiv:2309.09546; their code for wav2vec2).
    """
    return outputs.best[0]


def text_change(outputs: HeadOutputs) -> Tensor:
    """Compare the text of the best path with that of the exit before: (B,) on the CPU; NaN at the first exit.

    The score is the edit distance in tokens, divided by the length of the longer text. For two empty texts it is 1:
    otherwise exits without any text yet would agree.
    """
    if outputs.previous_units is None:
        return torch.full((len(outputs.layout),), torch.nan)
    pairs = zip(_texts(outputs, outputs.units), _texts(outputs, outputs.previous_units), strict=True)
    return torch.tensor(
        [edit_distance(now, before) / max(len(now), len(before)) if now or before else 1.0 for now, before in pairs]
    )


def posterior(outputs: HeadOutputs) -> Tensor:
    """Compute the sentence posterior of arXiv:2309.09546, (B,) on the CPU; see `daisy.policies.nbest`."""
    log_probs = outputs.log_probs.cpu().split(_layout(outputs).seqlens_list)
    return torch.tensor([nbest_posterior(frames, _blank(outputs)) for frames in log_probs])


def _texts(outputs: HeadOutputs, units: Tensor) -> list[list[int]]:
    """Return the tokens of each utterance's best path, from (F',) units."""
    blank = _blank(outputs)
    return [collapse(path.tolist(), blank) for path in units.cpu().split(_layout(outputs).seqlens_list)]


def _layout(outputs: HeadOutputs) -> PackedLayout:
    assert isinstance(outputs.strided_layout, PackedLayout)  # CUDA graphs compute no score that the host does
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
    assert isinstance(outputs.layout, PackedLayout)  # CUDA graphs compute only the scores of heads
    return outputs.layout.num_frames.float()


def draw(outputs: HeadOutputs) -> Tensor:
    """Return the draw of each utterance, (B,)."""
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
"""Scores that only CTC exits give."""
COMPARING = frozenset({"change", "text_change"})
"""Scores that compare an exit with the one before."""
ON_HOST = frozenset({"text_change", "posterior"})
"""Scores computed on the host, which waits for the GPU first."""


def compute_scores(names: Sequence[str], outputs: HeadOutputs) -> Tensor:
    """Compute some scores, (S, B) float32 on the features' device. All means over frames are taken in one operation."""
    of_frames = {name: score for name in names if isinstance(score := SCORES[name], FrameMean)}
    means: dict[str, Tensor] = {}
    if of_frames:
        values = torch.stack([score.of_frames(outputs).float() for score in of_frames.values()], dim=1)  # (F', S)
        means = dict(zip(of_frames, outputs.mean(values).unbind(1), strict=True))
    device = outputs.all_features.device
    others = {name: SCORES[name](outputs).float().to(device) for name in names if name not in means}
    return torch.stack([means[name] if name in means else others[name] for name in names])


def available_scores(heads: AnyHeads | None) -> set[str]:
    """Return the names of all scores that these heads give, or that need none."""
    if heads is None:
        return set(WITHOUT_HEADS)
    absent = set() if heads.config.regressors else {"regressed"}
    return set(SCORES) - absent - (OF_TEXT if heads.config.blank is None else set())


def to_nats_per_frame(threshold: float, num_tokens: int) -> float:
    """Convert an entropy threshold of the papers to one of the policy entropy.

    HuBERT-EE (arXiv:2204.06328) and Wright et al. (arXiv:2309.09546) divide the sum of the frames' entropies by T V;
    files of the latter hold the negative. The score here is the mean over the frames.

    Args:
        threshold: threshold divided by T V, of either sign.
        num_tokens: V, the number of tokens with the blank.

    Returns:
        The threshold in nats per frame.

    Example:
        >>> from daisy.policies.scores import to_nats_per_frame
        >>> round(to_nats_per_frame(0.0035, 32), 3)
        0.112
    """
    return abs(threshold) * num_tokens


def check_scores(names: Iterable[str]) -> None:
    """Refuse unknown names of scores.

    Raises:
        PolicyError: on a name that is no score.
    """
    for name in names:
        if name not in SCORES:
            raise PolicyError(unknown_name("score", name, SCORES))


def make_draws(waveforms: Iterable[Tensor]) -> Tensor:
    """Draw (B,) numbers from [0, 1): pseudo-random, and the same for the same samples (N_b,) in any batch."""
    content = [waveform.cpu().numpy().tobytes() for waveform in waveforms]
    return torch.tensor([zlib.crc32(samples) >> 8 for samples in content]).float() / 2**24


def to_json(values: Tensor) -> list[float | None]:
    """Convert (n,) values to numbers of six decimals; None for NaN and infinity, which JSON cannot hold."""
    return [round(value, 6) if math.isfinite(value) else None for value in values.tolist()]


def list_by_layer(values: Tensor, exits: Sequence[int], last: int) -> list[float | None]:
    """List (E,) scores of exits over layers 1 to ``last``; None where there is no exit, or the score is not finite."""
    scores: list[float | None] = [None] * last
    for layer, score in zip(exits, to_json(values), strict=True):
        if layer <= last:
            scores[layer - 1] = score
    return scores
