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
"""Symbols before the units in fairseq's dictionaries: class ``u + 4`` is unit ``u``. No head learns to predict them."""


@dataclass(frozen=True, kw_only=True)
class HeadsConfig:
    """Shape of a set of exit heads.

    Example:
        >>> from daisy import HeadsConfig
        >>> HeadsConfig(num_layers=12, width=768, num_units=504).reads
        'states'
    """

    num_layers: int
    """Number of layers of the backbone, L."""
    width: int
    """Width of the heads' input, D."""
    num_units: int
    """Number of classes of the unit classifiers, K."""
    reads: str = "states"
    """"states": the layer's output; "feed_forward": the feed-forward output before residual and norm."""
    regressors: bool = True
    """Whether there are loss regressors beside the unit classifiers."""

    blank: ClassVar[int | None] = None
    """Always None: units have no blank, and are not text."""

    @property
    def layers(self) -> tuple[int, ...]:
        """Layers at which the exits stand: all of them."""
        return tuple(range(1, self.num_layers + 1))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> HeadsConfig:
        """Make a configuration from the fields of ``dataclasses.asdict``.

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
    """Make the error for a ``reader`` (a policy, say) that reads scores where a checkpoint has no exit heads."""
    return CheckpointError(
        f"this checkpoint has no exit heads, and {reader} reads {', '.join(sorted(reads))}: "
        "train heads (daisy train-heads, or the fairseq plugin), or use the policy fixed or never"
    )


class ExitHeads(nn.Module):
    """One unit classifier and one loss regressor per layer.

    The unit classifier is linear on each frame (DAISY, arXiv:2406.05464); the entropy of its distribution is the
    predicted loss. The loss regressor is linear on the mean and standard deviation over time of the classifier's
    input: 2 D multiplications per utterance, where the classifier needs D x K per frame.

    Args:
        config: shape of the heads.

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
        """Compute the unit logits (..., K) from the heads' input at layer ``layer`` (1 to L), (..., D).

        The classifiers look at each frame by itself, so ``layout`` is ignored.
        """
        logits: Tensor = self.units[layer - 1](features)
        return logits

    def predicted_loss(self, layer: int, pooled: Tensor) -> Tensor:
        """Estimate each utterance's masked-unit loss at this layer with the regressor, (B,) in nats.

        Args:
            layer: number of the layer, 1 to L.
            pooled: (B, 2 D) float32, from `mean_and_std`.

        Raises:
            CheckpointError: where these heads have no regressors.
        """
        if self.regressors is None:
            raise CheckpointError("these exit heads have no loss regressors; use a policy that reads the entropy")
        losses: Tensor = self.regressors[layer - 1](pooled)
        return losses


class LossRegressor(nn.Module):
    """Linear map from the standardised statistics of an utterance's frames to its standardised loss.

    The means and variances for both are running ones, which `observe` updates in training. Without them the gradient
    steps that suit the unit classifiers leave the regressors far from the least-squares fit.

    Args:
        width: width of the frames whose statistics it reads, D.
        start: estimate before any training, in nats.
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
        self.register_buffer("mean", torch.tensor([0.0] * (2 * width) + [start]))  # the loss comes last
        self.register_buffer("variance", torch.ones(2 * width + 1))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> LossRegressor:
        """Stay in float32 when the other modules are cast: counts and variances need it, and it costs nothing."""

        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        super()._apply(move, recurse)  # type: ignore[no-untyped-call]
        return self

    def forward(self, pooled: Tensor) -> Tensor:
        """Estimate losses from statistics: (B, 2 D) to (B,) nats."""
        deviation = self.variance.clamp(min=1e-8).sqrt()
        standardised = (pooled - self.mean[:-1]) / deviation[:-1]
        losses: Tensor = self.mean[-1] + deviation[-1] * self.linear(standardised).squeeze(-1)
        return losses

    @torch.no_grad()
    def observe(self, pooled: Tensor, loss: Tensor) -> None:
        """Add (B, 2 D) statistics and their (B,) losses to the running means and variances.

        In distributed training (``torch.distributed``) all processes must call it together, and get the same values.
        """
        offsets = torch.cat([pooled, loss[:, None]], dim=1).double() - self.mean
        sums = torch.cat([offsets.sum(0), offsets.square().sum(0), offsets.new_tensor([len(offsets)])])
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(sums)
        added, count = sums[-1], self.count + sums[-1]
        delta, square = (sums[:-1] / added.clamp(min=1)).chunk(2)
        share = added / count.clamp(min=1)  # 1 at first, when mean and variance are not yet from data
        spread = self.variance * (1 - share) + (square - delta.square()).clamp(min=0) * share
        self.variance.copy_(spread + delta.square() * share * (1 - share))
        self.mean.add_(delta * share)
        self.count.copy_(count)


class FinalHead(nn.Module):
    """HuBERT's own prediction head: cosine similarity of the projected state with each unit's embedding.

    Source: arXiv:2106.07447, equation 3; fairseq/models/hubert/hubert.py, ``final_proj``, ``label_embs_concat`` and
    ``compute_nce``.

    Args:
        width: width of the states, D.
        final_dim: dimension of the space in which states and units are compared.
        num_units: number of classes K, the dictionary's special symbols included.
        temperature: divisor of the similarities.

    Raises:
        CheckpointError: on an invalid shape or temperature.

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
        """Number of classes K, the dictionary's special symbols included."""
        return self.embeddings.shape[0]

    def forward(self, states: Tensor) -> Tensor:
        """Predict units: from states of the last layer (..., D) to unit logits (..., K)."""
        projected = F.normalize(self.projection(states), dim=-1)
        return projected @ F.normalize(self.embeddings, dim=-1).T / self.temperature


def mean_and_std(features: Tensor, layout: FrameLayout) -> Tensor:
    """Compute mean and standard deviation over each utterance's frames.

    Args:
        features: (F, D), the frames of B utterances one after the other.
        layout: layout of the utterances.

    Returns:
        Means, then standard deviations, (B, 2 D) float32.
    """
    features = features.float()
    if isinstance(layout, PackedLayout) and features.device.type == "cpu":
        # On a recording of 10 s, this takes an eighth of the time of index_add_'s float64 sums.
        return torch.stack([_mean_and_std_of_one(rows) for rows in features.split(layout.seqlens_list)])
    mean = layout.mean(features)
    centred = features - mean[layout.segment_ids]
    return torch.cat([mean, layout.mean(centred.square()).sqrt()], dim=-1)


def _mean_and_std_of_one(frames: Tensor) -> Tensor:
    """Compute the statistics of one utterance: (n, D) to (2 D,)."""
    mean = frames.mean(0)
    return torch.cat([mean, (frames - mean).square_().mean(0).sqrt()])
