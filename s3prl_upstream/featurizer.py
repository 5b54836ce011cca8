"""Combine executed layers to one sequence of features: s3prl's weighted sum, and two that depend on the exit layer."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from daisy.errors import UsageError, unknown_name
from s3prl_upstream.expert import UpstreamExpert
from s3prl_upstream.frozen import Needs


class Featurizer(nn.Module):
    """Replaces the featurizer of s3prl's runner, and gives each utterance its own number of frames.

    Args:
        upstream: upstream whose states are used; it is told which to return.
        feature_selection: s3prl's ``-s``.
        layer_selection: s3prl's ``-l``.
        normalize: s3prl's ``--upstream_feature_normalize``: layer norm of each state, without weights, before the sum.
        mean: use the mean over time of each layer's states, ``--cache-mean``.

    Raises:
        UsageError: on a selection that does not exist, or that leaves no layers to weight.
    """

    name: ClassVar[str]

    def __init__(
        self,
        upstream: UpstreamExpert,
        *,
        feature_selection: str = "hidden_states",
        layer_selection: int | None = None,
        normalize: bool = False,
        mean: bool = False,
    ):
        super().__init__()
        self.num_layers = upstream.num_layers
        layer = self._layer(feature_selection, layer_selection)
        self.weighs = layer == "all"
        self.normalize = normalize and self.weighs and not mean
        upstream.take(Needs(layer=layer, mean=mean, normalize=normalize and self.weighs and mean))
        self.output_dim = upstream.width
        self.downsample_rate = upstream.get_downsample_rates(feature_selection)
        if self.weighs:
            self.weights = nn.Parameter(torch.zeros(self.shape()))

    def shape(self) -> tuple[int, ...]:
        """Return the shape of the weights."""
        return (self.num_layers + 1,)

    @abstractmethod
    def row(self, exit_layer: int) -> Tensor:
        """Return the (exit_layer + 1,) weights of layers 0 to the exit layer; they sum to 1."""

    def forward(self, paired_wavs: Sequence[Tensor], paired_features: dict) -> list[Tensor]:
        """Turn the upstream's states into features.

        Args:
            paired_wavs: B waveforms; ignored.
            paired_features: the upstream's output for them.

        Returns:
            B tensors (T_b, D), with the utterance's own number of frames.
        """
        states = paired_features["states"]
        if not self.weighs:
            return [kept[0] for kept in states]
        exits = paired_features["exit_layer"].tolist()
        rows = {exit_layer: self.row(exit_layer) for exit_layer in set(exits)}
        return [self._sum(rows[exit_layer], kept) for exit_layer, kept in zip(exits, states, strict=True)]

    def _sum(self, row: Tensor, states: Tensor) -> Tensor:
        if self.normalize:
            states = F.layer_norm(states, states.shape[-1:])
        return (row @ states.flatten(1)).view(states.shape[1:])

    def _layer(self, feature_selection: str, layer_selection: int | None) -> int | str:
        """Choose the layer, as for `Needs.layer`."""
        layers = {f"hidden_state_{layer}": layer for layer in range(self.num_layers + 1)}
        if feature_selection == "last_hidden_state":
            return "exit"
        if feature_selection in layers:
            return layers[feature_selection]
        if feature_selection != "hidden_states":
            known = ("hidden_states", "last_hidden_state", *layers)
            raise UsageError(f"-s: {unknown_name('feature', feature_selection, known)}")
        if layer_selection is None:
            return "all"
        if not -self.num_layers - 1 <= layer_selection <= self.num_layers:
            raise UsageError(f"-l {layer_selection}: the upstream has layers 0 to {self.num_layers}")
        return layer_selection % (self.num_layers + 1)


class Stock(Featurizer):
    """s3prl's own sum of L + 1 states, where those after the exit layer repeat it; weights are compatible with s3prl's.

    The repeats are not computed: the exit layer gets the weights of all layers that were not run.
    """

    name = "stock"

    def row(self, exit_layer: int) -> Tensor:
        weights = self.weights.softmax(0)
        return torch.cat([weights[:exit_layer], weights[exit_layer:].sum(0, keepdim=True)])


class OfExits(Featurizer):
    """Base of featurizers that weight only the executed layers."""

    def _layer(self, feature_selection: str, layer_selection: int | None) -> int | str:
        if (feature_selection, layer_selection) != ("hidden_states", None):
            raise UsageError(f"--featurizer {self.name} weighs all executed layers; -s and -l go with stock")
        return "all"


class Dynamic(OfExits):
    """Softmax over the first ``exit_layer + 1`` of one set of weights (DAISY's "dynamic", arXiv:2406.05464)."""

    name = "dynamic"

    def row(self, exit_layer: int) -> Tensor:
        return self.weights[: exit_layer + 1].softmax(0)


class DynamicSeparate(OfExits):
    """Separate weights for each exit layer (DAISY's "dynamic-s"): (L, L + 1), row e - 1 for exit layer e."""

    name = "dynamic-s"

    def __init__(self, *arguments: Any, **settings: Any):
        self._told: set[int] = set()
        super().__init__(*arguments, **settings)

    def shape(self) -> tuple[int, ...]:
        return (self.num_layers, self.num_layers + 1)

    def row(self, exit_layer: int) -> Tensor:
        row = self.weights[exit_layer - 1, : exit_layer + 1]
        if not self.training and exit_layer not in self._told and self.weights.any() and not row.any():
            self._told.add(exit_layer)
            print(f"[daisy] dynamic-s: nothing left at layer {exit_layer} in training: its layers weigh the same")
        return row.softmax(0)


FEATURIZERS: dict[str, type[Featurizer]] = {kind.name: kind for kind in (Stock, Dynamic, DynamicSeparate)}
