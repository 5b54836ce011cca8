"""Exit heads that learn together with the network below them: the losses of all layers in one pass."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from daisy.errors import UsageError
from daisy.models.heads import ExitHeads, HeadsConfig, mean_and_std
from daisy.models.losses import UnitLoss, unit_loss
from daisy.models.packing import PackedLayout

logger = logging.getLogger(__name__)


@dataclass
class LayerLosses:
    """Losses of each layer, 1 to L."""

    masked: list[UnitLoss] = field(default_factory=list)
    """Losses on frames that were masked for the network."""
    unmasked: list[UnitLoss] = field(default_factory=list)
    judged: list[UnitLoss] = field(default_factory=list)
    """The losses that are logged, and that the regressors learn to predict."""
    predicted: list[Tensor] = field(default_factory=list)
    """The regressors' predictions of the judged loss, (B,) nats; empty without regressors."""


class ExitObjective(nn.Module):
    """Exit heads on every layer, and their losses in one pass.

    The losses of ``layers`` are backpropagated into the network, as ILS-SSL (arXiv:2112.08778) does at some layers. The
    heads of the other layers learn on detached states.

    Args:
        num_layers: number of layers, L.
        width: width of the states, D.
        num_units: number of units, K.
        layers: layers whose losses train the network, 1 to L each, in any order.

    Raises:
        UsageError: on a layer that does not exist, or one that is named twice.

    Example:
        >>> import torch
        >>> from daisy.models import ExitObjective
        >>> objective = ExitObjective(num_layers=2, width=8, num_units=5, layers=[1, 2])
        >>> states, valid = [torch.zeros(3, 7, 8)] * 2, torch.ones(3, 7, dtype=torch.bool)
        >>> losses = objective(states, torch.zeros(3, 7, dtype=torch.int64), valid, masked=~valid)
        >>> [int(loss.num_counted.sum()) for loss in losses.unmasked]
        [21, 21]
    """

    def __init__(self, num_layers: int, width: int, num_units: int, layers: Sequence[int]):
        super().__init__()
        if wrong := [layer for layer in layers if not 1 <= layer <= num_layers]:
            raise UsageError(f"exit_layers must be 1 to {num_layers}, found {wrong}")
        if len(set(layers)) < len(layers):
            raise UsageError(f"exit_layers must name a layer once, found {list(layers)}")
        self.layers = tuple(layers)
        self.heads = ExitHeads(HeadsConfig(num_layers=num_layers, width=width, num_units=num_units))

    def start_from(self, heads: ExitHeads) -> None:
        """Copy the weights of other heads, where these predict as many units on as many layers.

        The heads cannot tell whether the units are the same, so a warning in the log says that the weights are copied.
        """
        if heads.config != self.heads.config:
            return
        self.heads.load_state_dict(heads.state_dict())
        logger.warning(
            f"exit heads are taken over from the start, as they predict {heads.config.num_units} units too: where "
            "these are not the same units, begin with a network that has no exit heads"
        )

    def forward(self, states: Sequence[Tensor], targets: Tensor, valid: Tensor, masked: Tensor) -> LayerLosses:
        """Compute each layer's losses.

        Args:
            states: states of layers 1 to L, (B, T, D).
            targets: (B, T) int64 units.
            valid: (B, T) bool, frames that are not padding.
            masked: (B, T) bool, frames that were masked for the network.

        Returns:
            The losses of each layer on masked and other frames, and the regressors' predictions of the mean over all.
        """
        batch = len(valid)
        utterance = valid.nonzero()[:, 0]
        group = torch.where(masked[valid], utterance, utterance + batch)
        layout, wanted = PackedLayout(valid.sum(1).cpu(), valid.device), targets[valid]
        losses = LayerLosses()
        for layer, of_layer in enumerate(states, 1):
            frames = of_layer[valid] if layer in self.layers else of_layer.detach()[valid]
            loss = unit_loss(self.heads.unit_logits(layer, frames), wanted, group, 2 * batch)
            losses.masked.append(UnitLoss(*(sums[:batch] for sums in loss)))
            losses.unmasked.append(UnitLoss(*(sums[batch:] for sums in loss)))
            losses.judged.append(UnitLoss(*(sums[:batch] + sums[batch:] for sums in loss)))
            losses.predicted.append(self._predict(layer, frames.detach(), layout, losses.judged[-1].mean()))
        return losses

    def _predict(self, layer: int, frames: Tensor, layout: PackedLayout, loss: Tensor) -> Tensor:
        """Predict the utterances' losses with the layer's regressor, (B,) nats; no gradient goes into the network."""
        pooled = mean_and_std(frames, layout)
        if self.training and self.heads.regressors is not None:
            self.heads.regressors[layer - 1].observe(pooled, loss)
        return self.heads.predicted_loss(layer, pooled)
