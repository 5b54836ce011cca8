"""Exit heads that learn while a HuBERT is pre-trained, and the states of every layer that they read."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from daisy.errors import UsageError
from daisy.models import ExitHeads, HeadsConfig
from daisy.models.heads import mean_and_std
from daisy.models.losses import UnitLoss, unit_loss
from daisy.models.packing import PackedLayout
from fairseq_plugins.model import DaisyOutput


class LayerStates:
    """Keeps what each layer of fairseq's encoder returns in a forward pass, (B, T, D) of layers 1 to L.

    A layer that LayerDrop leaves out hands on what it was given. The last layer's states are after the final layer norm
    of pre-norm models, as everywhere in daisy.

    Args:
        encoder: fairseq's ``TransformerEncoder``.
    """

    def __init__(self, encoder: nn.Module):
        self._num_layers = len(encoder.layers)
        self._states: dict[int, Tensor] = {}
        for index, layer in enumerate(encoder.layers):
            layer.register_forward_hook(self._make_hook(index))
        encoder.register_forward_hook(lambda module, given, result: self._states.update({self._num_layers: result[0]}))
        encoder.register_forward_pre_hook(lambda module, given: self._states.clear())

    def _make_hook(self, index: int) -> Any:
        def keep(module: nn.Module, given: Any, result: Any) -> None:
            self._states.setdefault(0, given[0].transpose(0, 1))
            self._states[index + 1] = result[0].transpose(0, 1)

        return keep

    def take(self, num_frames: int) -> list[Tensor]:
        """Return the states of the last pass, and forget them; fairseq pads them to an even number of frames."""
        states, last = [], self._states.get(0, self._states[self._num_layers])  # where every layer was left out
        for layer in range(1, self._num_layers + 1):
            last = self._states.get(layer, last)
            states.append(last[:, :num_frames])
        self._states.clear()
        return states


class ExitObjective(nn.Module):
    """Exit heads on every layer, and the losses of what they make of one pass.

    The losses of ``layers`` go back into the network (ILS-SSL, arXiv:2112.08778, has them at some layers); heads of the
    others learn on states that are cut off from the gradient.

    Args:
        num_layers: L.
        width: of the states, D.
        num_units: K.
        layers: whose losses train the network, 1 to L.

    Raises:
        UsageError: on a layer that there is not.
    """

    def __init__(self, num_layers: int, width: int, num_units: int, layers: list[int]):
        super().__init__()
        if wrong := [layer for layer in layers if not 1 <= layer <= num_layers]:
            raise UsageError(f"exit_layers must be 1 to {num_layers}, found {wrong}")
        self.layers = frozenset(layers)
        self.heads = ExitHeads(HeadsConfig(num_layers=num_layers, width=width, num_units=num_units))

    def start_from(self, heads: ExitHeads) -> None:
        """Take the weights of other heads where they predict as many units on as many layers."""
        if heads.config == self.heads.config:
            self.heads.load_state_dict(heads.state_dict())

    def forward(self, states: list[Tensor], targets: Tensor, valid: Tensor, masked: Tensor) -> DaisyOutput:
        """Compute each layer's losses.

        Args:
            states: of layers 1 to L, (B, T, D).
            targets: (B, T) int64 units.
            valid: (B, T) bool, frames that are not padding.
            masked: (B, T) bool, frames that the network did not see.

        Returns:
            Per layer the losses on masked and other frames, and what the regressors predict: the mean loss of all.
        """
        batch = len(valid)
        utterance = valid.nonzero()[:, 0]
        group = torch.where(masked[valid], utterance, utterance + batch)
        layout = PackedLayout(valid.sum(1).cpu(), valid.device)
        output = DaisyOutput(masked=[], unmasked=[], judged=[], predicted=[])
        for layer, of_layer in enumerate(states, 1):
            frames = of_layer[valid] if layer in self.layers else of_layer.detach()[valid]
            loss = unit_loss(self.heads.unit_logits(layer, frames), targets[valid], group, 2 * batch)
            output.masked.append(UnitLoss(*(sums[:batch] for sums in loss)))
            output.unmasked.append(UnitLoss(*(sums[batch:] for sums in loss)))
            output.judged.append(UnitLoss(*(sums[:batch] + sums[batch:] for sums in loss)))
            output.predicted.append(self._predict(layer, frames.detach(), layout, output.judged[-1].mean()))
        return output

    def _predict(self, layer: int, frames: Tensor, layout: PackedLayout, losses: Tensor) -> Tensor:
        """What the layer's regressor makes of the utterances, (B,) nats; it is no reason to change the network."""
        regressor, pooled = self.heads.regressors[layer - 1], mean_and_std(frames, layout)
        if self.training:
            regressor.observe(pooled, losses)
        return regressor(pooled)
