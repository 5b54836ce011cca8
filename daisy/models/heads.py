"""The light parts on a backbone: exit heads on each layer, and HuBERT's own prediction head on the last."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from daisy.errors import CheckpointError
from daisy.models.config import is_count, is_number
from daisy.models.packing import FrameLayout, PackedLayout

READS = ("states", "feed_forward")
SPECIAL_SYMBOLS = 4
"""Of fairseq's dictionaries, before the units: class ``u + 4`` is unit ``u``. No head is taught to predict them."""


@dataclass(frozen=True, kw_only=True)
class HeadsConfig:
    """Shape of a set of exit heads.

    Example:
        >>> from daisy import HeadsConfig
        >>> HeadsConfig(num_layers=12, width=768, num_units=504).reads
        'states'
    """

    num_layers: int
    """Layers of the backbone, L."""
    width: int
    """Width of what the heads read, D."""
    num_units: int
    """Classes of the unit classifiers, K."""
    reads: str = "states"
    """"states": the layer's output; "feed_forward": the feed-forward output before residual and norm."""
    regressors: bool = True
    """Whether there are loss regressors beside the unit classifiers."""

    blank: ClassVar[int | None] = None
    """Units have no blank, and make no text."""

    @property
    def layers(self) -> tuple[int, ...]:
        """Where exits are: at all layers."""
        return tuple(range(1, self.num_layers + 1))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> HeadsConfig:
        """Undo ``dataclasses.asdict``.

        Raises:
            CheckpointError: on unknown fields or values.
        """
        try:
            config = cls(**values)
        except TypeError as error:
            raise CheckpointError(f"heads configuration: {error}") from None
        if config.reads not in READS:
            raise CheckpointError(f"heads configuration: reads must be one of {READS}, found {config.reads!r}")
        for name in ("num_layers", "width", "num_units"):
            if not is_count(value := getattr(config, name)):
                raise CheckpointError(
                    f"heads configuration: {name} must be a whole number, at least 1, found {value!r}"
                )
        if not isinstance(config.regressors, bool):
            raise CheckpointError(f"heads configuration: regressors must be true or false, found {config.regressors!r}")
        return config


def missing_heads(reader: str, reads: Iterable[str]) -> CheckpointError:
    """Make the error where ``reader`` (a policy, say) reads scores of a checkpoint that has no exit heads."""
    return CheckpointError(
        f"this checkpoint has no exit heads, and {reader} reads {', '.join(sorted(reads))}: "
        "train heads (daisy train-heads, or the fairseq plugin), or use the policy fixed or never"
    )


class ExitHeads(nn.Module):
    """One unit classifier and one loss regressor per layer.

    The unit classifier is linear on each frame (DAISY, arXiv:2406.05464); the entropy of its distribution is the
    predicted loss. The loss regressor is linear on the mean and standard deviation over time of what the classifier
    reads: 2 D multiplications an utterance, where the classifier needs D x K a frame.

    Args:
        config: their shape.

    Example:
        >>> import torch
        >>> from daisy.models import ExitHeads, HeadsConfig
        >>> heads = ExitHeads(HeadsConfig(num_layers=2, width=8, num_units=5))
        >>> heads.unit_logits(1, torch.zeros(7, 8)).shape
        torch.Size([7, 5])
    """

    def __init__(self, config: HeadsConfig):
        super().__init__()
        self.config = config
        self.units = nn.ModuleList(nn.Linear(config.width, config.num_units) for _ in range(config.num_layers))
        self.regressors = (
            nn.ModuleList(LossRegressor(config.width, math.log(config.num_units)) for _ in range(config.num_layers))
            if config.regressors
            else None
        )

    def unit_logits(self, layer: int, features: Tensor, layout: FrameLayout | None = None) -> Tensor:
        """Classify what layer ``layer`` (1 to L) gives the heads, (..., D), to unit logits (..., K).

        They look at each frame by itself, so ``layout`` is not looked at.
        """
        logits: Tensor = self.units[layer - 1](features)
        return logits

    def predicted_loss(self, layer: int, pooled: Tensor) -> Tensor:
        """Estimate each utterance's masked-unit loss at this layer with the regressor, (B,) in nats.

        Args:
            layer: 1 to L.
            pooled: (B, 2 D) float32, of `mean_and_std`.

        Raises:
            CheckpointError: where these heads have no regressors.
        """
        if self.regressors is None:
            raise CheckpointError("these exit heads have no loss regressors; use a policy that reads the entropy")
        losses: Tensor = self.regressors[layer - 1](pooled)
        return losses


class LossRegressor(nn.Module):
    """Linear from the standardised statistics of an utterance's frames to its standardised loss.

    Means and variances of both are running ones, gathered by `observe` in training. Without them the gradient steps
    that suit the unit classifiers leave the regressors far from the least-squares fit.

    Args:
        width: of the frames whose statistics it reads, D.
        start: what it estimates before it has learnt anything, nats.
    """

    count: Tensor
    mean: Tensor
    variance: Tensor

    def __init__(self, width: int, start: float):
        super().__init__()
        self.linear = nn.Linear(2 * width, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("mean", torch.cat([torch.zeros(2 * width), torch.tensor([start])]))  # the loss comes last
        self.register_buffer("variance", torch.ones(2 * width + 1))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> LossRegressor:
        """Stay in float32 whatever the rest is cast to: counts and variances need it, and it costs nothing."""

        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        super()._apply(move, recurse)  # type: ignore[no-untyped-call]
        return self

    def forward(self, pooled: Tensor) -> Tensor:
        """Estimate losses: (B, 2 D) statistics to (B,) nats."""
        deviation = self.variance.clamp(min=1e-8).sqrt()
        standardised = (pooled - self.mean[:-1]) / deviation[:-1]
        losses: Tensor = self.mean[-1] + deviation[-1] * self.linear(standardised).squeeze(-1)
        return losses

    @torch.no_grad()
    def observe(self, pooled: Tensor, loss: Tensor) -> None:
        """Add (B, 2 D) statistics and their (B,) losses to the running means and variances.

        Where processes learn together (``torch.distributed``) all of them call it at once, and have the same after it.
        """
        offsets = torch.cat([pooled, loss[:, None]], dim=1).double() - self.mean
        sums = torch.cat([offsets.sum(0), offsets.square().sum(0), offsets.new_tensor([len(offsets)])])
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(sums)
        added, count = sums[-1], self.count + sums[-1]
        delta, square = (sums[:-1] / added.clamp(min=1)).chunk(2)
        share = added / count.clamp(min=1)  # 1 at first, when mean and variance are none of data
        spread = self.variance * (1 - share) + (square - delta.square()).clamp(min=0) * share
        self.variance.copy_(spread + delta.square() * share * (1 - share))
        self.mean.add_(delta * share)
        self.count.copy_(count)


class FinalHead(nn.Module):
    """HuBERT's own prediction head: cosine similarity of the projected state with each unit's embedding.

    Source: arXiv:2106.07447, equation 3; fairseq/models/hubert/hubert.py, ``final_proj``, ``label_embs_concat`` and
    ``compute_nce``.

    Args:
        width: of the states, D.
        final_dim: of the space in which states and units are compared.
        num_units: K, the dictionary's special symbols included.
        temperature: what the similarities are divided by.

    Raises:
        CheckpointError: on a shape or temperature that no head can have.

    Example:
        >>> import daisy, torch
        >>> daisy.load("daisy-mini").final_head(torch.zeros(49, 256)).shape
        torch.Size([49, 204])
    """

    def __init__(self, width: int, final_dim: int, num_units: int, temperature: float = 0.1):
        super().__init__()
        if not (is_count(final_dim) and is_count(num_units)):
            raise CheckpointError(
                f"final head: final_dim and num_units must be whole numbers, at least 1, found "
                f"{final_dim!r} and {num_units!r}"
            )
        if not is_number(temperature) or temperature <= 0:
            raise CheckpointError(f"final head: temperature must be a number above 0, found {temperature!r}")
        self.temperature = temperature
        self.projection = nn.Linear(width, final_dim)
        self.embeddings = nn.Parameter(torch.zeros(num_units, final_dim))

    @property
    def num_units(self) -> int:
        """Units K, the dictionary's special symbols included."""
        return self.embeddings.shape[0]

    def forward(self, states: Tensor) -> Tensor:
        """Predict units: states of the last layer (..., D) to unit logits (..., K)."""
        projected = F.normalize(self.projection(states), dim=-1)
        return projected @ F.normalize(self.embeddings, dim=-1).T / self.temperature


def mean_and_std(features: Tensor, layout: FrameLayout) -> Tensor:
    """Compute mean and standard deviation over each utterance's frames.

    Args:
        features: (F, D), the frames of B utterances one after the other.
        layout: of the utterances.

    Returns:
        (B, 2 D) float32.
    """
    features = features.float()
    if isinstance(layout, PackedLayout) and features.device.type == "cpu":
        # A recording of 10 s: an eighth of the time of index_add_'s float64 sums.
        return torch.stack([_mean_and_std_of_one(rows) for rows in features.split(layout.seqlens_list)])
    mean = layout.mean(features)
    centred = features - mean[layout.segment_ids]
    return torch.cat([mean, layout.mean(centred.square()).sqrt()], dim=-1)


def _mean_and_std_of_one(frames: Tensor) -> Tensor:
    """(n, D) to (2 D,)."""
    mean = frames.mean(0)
    return torch.cat([mean, (frames - mean).square_().mean(0).sqrt()])
