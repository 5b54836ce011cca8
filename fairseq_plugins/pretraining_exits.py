"""Collect the states of every layer of fairseq's HuBERT, which the exit heads read in pre-training."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class LayerStates:
    """Keeps the output of each layer of fairseq's encoder in a forward pass, (B, T, D) for layers 1 to L.

    The output of a layer skipped by LayerDrop is its input. The last layer's states are after the final layer norm
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
        states, last = [], self._states.get(0, self._states[self._num_layers])  # if every layer was skipped
        for layer in range(1, self._num_layers + 1):
            last = self._states.get(layer, last)
            states.append(last[:, :num_frames])
        self._states.clear()
        return states
