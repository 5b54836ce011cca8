"""The backbone as the exit loop runs it: frames of a batch one after the other, without padding, without gradients.

``F`` below is the number of frames of the whole batch. Linear maps, norms and activations do not know where an
utterance ends and run over all ``F`` rows; attention and convolutions keep to each utterance's own. So nothing is
computed to make lengths equal, and who has left is gone from the next layer's rows. On CPUs a few rows are added to a
whole batch, so that oneDNN's products share their shapes (`daisy.kernels.rounded`). The result is `Backbone`'s.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from daisy.attention import attend, has_one_kernel
from daisy.backbone import Backbone, BackboneConfig
from daisy.errors import UsageError, unknown_name
from daisy.front_end import front_end
from daisy.heads import ExitHeads
from daisy.kernels import DTYPES, FourierConv, Linear, with_room
from daisy.layout import Layout


class Inference:
    """A backbone whose weights are laid out for speed: copies, made for the weights as they are now.

    Args:
        backbone: the layers.
        dtype: "float32"; "bfloat16": weights and states, sums still in float32; "int8": linear maps of the layers, on
            CPUs only, the rest in float32; an utterance's inputs share a scale, so utterances run one by one.

    Raises:
        UsageError: on another type, or on "int8" elsewhere than on a CPU.
    """

    def __init__(self, backbone: Backbone, dtype: str = "float32"):
        check_dtype(dtype, backbone.device)
        self.config, self.dtype, self.device = backbone.config, DTYPES[dtype], backbone.device
        self.front_end = front_end(backbone, _floating(dtype))
        projection = backbone.encoder.feature_projection
        transformer = backbone.encoder.transformer
        self.feature_norm = _Norm(projection.layer_norm, self.dtype)
        self.projection = _linear(projection.projection, _floating(dtype))
        self.positional = FourierConv(
            transformer.pos_conv_embed.conv.weight, transformer.pos_conv_embed.conv.bias, self.config.pos_groups
        )
        self.norm = _Norm(transformer.layer_norm, self.dtype)
        self.layers = [_Layer(block, self.config, dtype) for block in transformer.layers]

    @property
    def looks_at_no_length(self) -> bool:
        """Whether the host needs none of an utterance to run a layer, which then can be captured."""
        return has_one_kernel(self.device, self.dtype, self.config.width // self.config.num_heads)

    def embed(self, features: Tensor, layout: Layout) -> Tensor:
        """What ``front_end`` makes of a list of waveforms (N_b,), features (F, C), to layer 0 (F, D)."""
        normed = self.feature_norm(features)
        projected = self.projection(with_room(normed, self.projection.rows(len(normed))))[: len(normed)]
        states = projected + F.gelu(self.positional(projected, layout)).to(self.dtype)
        return states if self.config.pre_norm else self.norm(states)

    def layer(self, layer: int, states: Tensor, layout: Layout, apart: bool = False) -> tuple[Tensor, Tensor]:
        """Layer ``layer - 1`` to layer ``layer`` (1 to L), (F, D).

        Args:
            layer: which.
            states: of the layer before.
            layout: of the utterances.
            apart: whether the feed-forward block's output before residual and norm is wanted too.

        Returns:
            The states, and with ``apart`` that output, else the states again; both (F, D).
        """
        count, block = len(states), self.layers[layer - 1]
        found = block(with_room(states, block.inputs.rows(count)), layout, apart)
        states, feed_forward = (each[:count] for each in found)
        if self.config.pre_norm and layer == self.config.num_layers:
            states = self.norm(states)
        return states, feed_forward if apart else states


class PreparedHeads:
    """Exit heads whose unit classifiers are laid out for speed (`daisy.scores.Heads`)."""

    def __init__(self, heads: ExitHeads, dtype: str = "float32"):
        self.units = [_linear(each, _floating(dtype)) for each in heads.units]
        self.config, self.regressors = heads.config, heads.regressors

    def unit_logits(self, layer: int, read: Tensor) -> Tensor:
        """What layer ``layer`` gives the heads, (F, D), to unit logits (F, K)."""
        units = self.units[layer - 1]
        return units(with_room(read, units.rows(len(read))))[: len(read)]

    predicted_loss = ExitHeads.predicted_loss


Prepared = TypeVar("Prepared", Inference, PreparedHeads)
_prepared: WeakKeyDictionary[nn.Module, dict] = WeakKeyDictionary()
"""Module to dtype to (state of its weights, copies): several encoders of a backbone share them."""


def prepared(backbone: Backbone, dtype: str) -> Inference:
    """A backbone laid out for speed, made again only when its weights have changed or moved.

    What changes weights behind autograd's back (``weight.data.mul_(2)``, or in place where they were made under
    ``torch.inference_mode``) is not noticed: `forget` it.

    Raises:
        UsageError: as `Inference` does.
    """
    return _made(backbone, dtype, Inference)


def prepared_heads(heads: ExitHeads | None, dtype: str) -> PreparedHeads | None:
    """Likewise of heads, where there are any."""
    return None if heads is None else _made(heads, dtype, PreparedHeads)


def forget(module: nn.Module) -> None:
    """Lay a backbone or heads out anew at the next use."""
    _prepared.pop(module, None)


def _made(module: nn.Module, dtype: str, kind: Callable[..., Prepared]) -> Prepared:
    now = [(weight.data_ptr(), 0 if weight.is_inference() else weight._version) for weight in module.parameters()]
    known = _prepared.setdefault(module, {})
    if dtype not in known or known[dtype][0] != now:
        known[dtype] = (now, kind(module, dtype))
    return known[dtype][1]


def check_dtype(dtype: str, device: torch.device) -> str:
    """The dtype, where it can be computed in.

    Raises:
        UsageError: where there is no such dtype, or not on this device.
    """
    if dtype not in DTYPES:
        raise UsageError(unknown_name("dtype", dtype, DTYPES))
    if dtype == "int8" and device.type != "cpu":
        raise UsageError(f"dtype int8 is for CPUs, and the weights are on {device}")
    return dtype


def _floating(dtype: str) -> str:
    """Of what int8 leaves alone."""
    return "float32" if dtype == "int8" else dtype


def _linear(module: nn.Linear, dtype: str) -> Linear:
    return Linear(module.weight, module.bias, dtype)


class _Norm:
    """Layer norm with weights of the states' type."""

    def __init__(self, module: nn.LayerNorm, dtype: torch.dtype):
        self.weight, self.bias = module.weight.detach().to(dtype), module.bias.detach().to(dtype)
        self.eps = module.eps

    def __call__(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.weight, self.bias, self.eps)


class _Layer:
    def __init__(self, block: nn.Module, config: BackboneConfig, dtype: str):
        attention = block.attention
        projections = attention.q_proj, attention.k_proj, attention.v_proj
        scale = (config.width // config.num_heads) ** -0.5  # of the queries, whose products with the keys are weights
        parts = list(zip((scale, 1.0, 1.0), projections, strict=True))
        self.inputs = Linear(
            torch.cat([factor * each.weight.detach().float() for factor, each in parts]),
            torch.cat([factor * each.bias.detach().float() for factor, each in parts]),
            dtype,
        )
        self.output = _linear(attention.out_proj, dtype)
        self.inner = _linear(block.feed_forward.intermediate_dense, dtype)
        self.outer = _linear(block.feed_forward.output_dense, dtype)
        self.norm, self.final_norm = (_Norm(each, DTYPES[dtype]) for each in (block.layer_norm, block.final_layer_norm))
        self.num_heads, self.pre_norm = config.num_heads, config.pre_norm
        self.one_by_one = dtype == "int8"

    def __call__(self, states: Tensor, layout: Layout, apart: bool) -> tuple[Tensor, Tensor]:
        if self.one_by_one and len(layout) > 1:
            parts = [self(own, Layout(torch.tensor([len(own)])), apart) for own in states.split(layout.lengths)]
            return torch.cat([part for part, _ in parts]), torch.cat([part for _, part in parts])
        mixed = attend(self.inputs(self.norm(states) if self.pre_norm else states), layout, self.num_heads)
        attended = self.output(mixed, plus=states)
        if not self.pre_norm:
            attended = self.norm(attended)
        inner = self.inner(self.final_norm(attended) if self.pre_norm else attended, gelu=True)
        if apart:
            feed_forward = self.outer(inner)
            states = attended + feed_forward
        else:
            states = feed_forward = self.outer(inner, plus=attended)
        return (states if self.pre_norm else self.final_norm(states)), feed_forward
