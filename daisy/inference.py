"""The backbone as the exit loop runs it: frames of a batch one after the other, without padding, without gradients.

``F`` below is the number of frames of the whole batch. Linear maps, norms and activations do not know where an
utterance ends and run over all ``F`` rows; attention and the positional convolution take the utterances one by one.
So nothing is computed to make lengths equal, and who has left is gone from the next layer's rows. On CPUs a few rows
are added to a whole batch, so that products share their shapes (`daisy.kernels.rounded`). The result is `Backbone`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from daisy import frames, kernels
from daisy.backbone import Backbone, BackboneConfig
from daisy.errors import UsageError, unknown_name
from daisy.heads import ExitHeads
from daisy.kernels import DTYPES, Conv, FourierConv, Linear, under_kernel, with_room

BLOCKED_FROM, QUERY_BLOCK = 64, 256
"""Frames from which bfloat16 attention goes in blocks, and queries of a block, whose weights stay in the caches."""
BLOCK_VALUES = 2**21
"""Of the first convolution's output that are held at a time: 64 frames of HuBERT Base; more pays for new pages."""


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
        self.config, self.dtype = backbone.config, DTYPES[dtype]
        self.front = _FrontEnd(backbone, _floating(dtype))
        projection = backbone.encoder.feature_projection
        transformer = backbone.encoder.transformer
        self.feature_norm = _Norm(projection.layer_norm, self.dtype)
        self.projection = _linear(projection.projection, _floating(dtype))
        self.positional = FourierConv(
            transformer.pos_conv_embed.conv.weight, transformer.pos_conv_embed.conv.bias, self.config.pos_groups
        )
        self.norm = _Norm(transformer.layer_norm, self.dtype)
        self.layers = [_Layer(block, self.config, dtype) for block in transformer.layers]

    def front_end(self, waveforms: Sequence[Tensor]) -> Tensor:
        """Waveforms (N_b,) float32, each of one frame or more, to features (F, C)."""
        return self.front(waveforms)

    def embed(self, features: Tensor, lengths: Sequence[int]) -> Tensor:
        """Features (F, C) of utterances of these lengths to layer 0 (F, D)."""
        normed = self.feature_norm(features)
        projected = self.projection(with_room(normed, self.projection.rows(len(normed))))[: len(normed)]
        states = projected + F.gelu(self.positional(projected.split(list(lengths)))).to(self.dtype)
        return states if self.config.pre_norm else self.norm(states)

    def layer(self, layer: int, states: Tensor, lengths: Sequence[int], apart: bool = False) -> tuple[Tensor, Tensor]:
        """Layer ``layer - 1`` to layer ``layer`` (1 to L), (F, D).

        Args:
            layer: which.
            states: of the layer before.
            lengths: of the utterances, in frames.
            apart: whether the feed-forward block's output before residual and norm is wanted too.

        Returns:
            The states, and with ``apart`` that output, else the states again; both (F, D).
        """
        count, block = len(states), self.layers[layer - 1]
        found = block(with_room(states, block.inputs.rows(count)), lengths, apart)
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

    def __call__(self, states: Tensor, lengths: Sequence[int], apart: bool) -> tuple[Tensor, Tensor]:
        if self.one_by_one and len(lengths) > 1:
            parts = [self(own, [len(own)], apart) for own in states.split(list(lengths))]
            return torch.cat([part for part, _ in parts]), torch.cat([part for _, part in parts])
        mixed = attend(self.inputs(self.norm(states) if self.pre_norm else states), lengths, self.num_heads)
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


def attend(projected: Tensor, lengths: Sequence[int], num_heads: int) -> Tensor:
    """Attention within each utterance.

    Args:
        projected: (F, 3 D), queries, already scaled, keys and values of each frame; on CPUs further rows may follow,
            which mean nothing, in the result too.
        lengths: of the utterances, in frames; they sum to F.
        num_heads: H.

    Returns:
        (F, D).
    """
    split = projected.unflatten(1, (3, num_heads, -1)).permute(1, 2, 0, 3)  # (3, H, F, D / H)
    if projected.device.type != "cpu":
        return _attend_padded(split, lengths)
    in_blocks = projected.dtype == torch.bfloat16
    mixed = projected.new_empty(len(projected), num_heads, split.shape[3])
    count = sum(lengths)
    mixed[count:] = 0
    owned = split[:, :, :count].split(list(lengths), dim=2)
    for rows, own in zip(mixed[:count].split(list(lengths)), owned, strict=True):
        if in_blocks and len(rows) >= BLOCKED_FROM:
            _attend_in_blocks(own, rows)
        else:
            rows.copy_(_attend(own[:, None].float())[0])
    return mixed.flatten(1)


def _attend(queries_keys_values: Tensor, mask: Tensor | None = None) -> Tensor:
    """(3, B, H, T, D / H) to (B, T, H, D / H)."""
    queries, keys, values = queries_keys_values
    return F.scaled_dot_product_attention(queries, keys, values, mask, scale=1.0).transpose(1, 2)


def _attend_in_blocks(own: Tensor, rows: Tensor) -> None:
    """(3, H, T, D / H) into ``rows`` (T, H, D / H), by plain products for a block of queries at a time.

    torch's fused kernel multiplies bfloat16 on CPUs no faster than float32; this takes three quarters of its time
    or less from a hundred frames on. Weights are rounded to bfloat16 before the softmax, which doubles the error.
    """
    count = len(rows)
    # The copy costs a hundredth of the products over strided rows, and takes a tenth off them.
    padded = own.new_zeros(*own.shape[:2], kernels.rounded(count), own.shape[3])
    padded[:, :, :count] = own
    queries, keys, values = padded
    turned = keys.transpose(-1, -2)
    # Queries that mean nothing may fill a block of their own.
    for some, block in zip(rows.split(QUERY_BLOCK), queries.split(QUERY_BLOCK, dim=-2), strict=False):
        weights = block @ turned
        weights[..., count:] = -torch.inf
        some.copy_((weights.softmax(-1) @ values).transpose(0, 1)[: len(some)])


def _attend_padded(split: Tensor, lengths: Sequence[int]) -> Tensor:
    """All utterances in one call, which many small ones keep a GPU waiting for: (3, H, F, D / H) to (F, D)."""
    longest = max(lengths)
    if min(lengths) == longest:
        return _attend(split.unflatten(2, (-1, longest)).transpose(1, 2)).flatten(0, 1).flatten(1)
    valid = frames.valid_mask(torch.tensor(lengths), longest)
    places = valid.flatten().nonzero().squeeze(1).to(split.device, non_blocking=True)  # found on the GPU, it would wait
    padded = split.new_zeros(3, split.shape[1], valid.numel(), split.shape[3]).index_copy_(2, places, split)
    mask = valid.to(split.device, non_blocking=True)[:, None, None]
    return _attend(padded.unflatten(2, valid.shape).transpose(1, 2), mask).flatten(0, 1)[places].flatten(1)


class _FrontEnd:
    """The convolutions, utterance by utterance; on a CPU in blocks of frames whose values stay in the caches.

    In a network with group norm, that norm over time is put into the first convolution's weights: mean and variance of
    an output over the utterance follow from the mean and covariance of the samples under the kernel, 10 x 10 numbers.
    """

    def __init__(self, backbone: Backbone, dtype: str):
        self.config, self.dtype = backbone.config, DTYPES[dtype]
        self.extractor, self.device = backbone.feature_extractor, backbone.device
        blocks = self.extractor.conv_layers
        self.norms = [each.layer_norm for each in blocks]
        first, *others = blocks
        self.first = first.conv.weight.detach()[:, 0].float(), None if first.conv.bias is None else first.conv.bias
        strides = [stride for _, _, stride in self.config.conv_layers]
        self.convs = [
            Conv(each.conv.weight, each.conv.bias, stride, dtype)
            for each, stride in zip(others, strides[1:], strict=True)
        ]
        per_frame = self.config.frame_hop // strides[0] * self.config.conv_layers[0][0]
        self.block = max(1, BLOCK_VALUES // per_frame)

    def __call__(self, waveforms: Sequence[Tensor]) -> Tensor:
        """(N_b,) float32 each to (F, C)."""
        if self.config.normalize:
            waveforms = [F.layer_norm(waveform, waveform.shape) for waveform in waveforms]
        if self.device.type != "cpu":
            kind = next(self.extractor.parameters()).dtype
            with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
                rows = [self.extractor(waveform[None].to(kind), None)[0][0] for waveform in waveforms]
            return torch.cat(rows).to(self.dtype)
        counts = [frames.num_frames(len(waveform), self.config.conv_layers) for waveform in waveforms]
        features = torch.empty(sum(counts), self.config.conv_layers[-1][0], dtype=self.dtype)
        for waveform, rows in zip(waveforms, features.split(counts), strict=True):
            self._utterance(waveform, rows)
        return features

    def _utterance(self, waveform: Tensor, features: Tensor) -> None:
        """(N,) to (T, C), block by block into ``features``."""
        conv, norm = self._first(waveform)
        hop, span = self.config.frame_hop, self.config.frame_span
        for start in range(0, len(features), self.block):
            rows = features[start : start + self.block]
            # Further frames, over zeros past the end, are dropped below.
            count = min(self.block, kernels.rounded(len(rows)))
            part = waveform[start * hop : (start + count - 1) * hop + span]
            part = F.pad(part, (0, (count - 1) * hop + span - len(part)))
            x = self._activated(conv, part[:, None], norm).to(self.dtype)
            for conv_after, norm_after in zip(self.convs, self.norms[1:], strict=True):
                x = self._activated(conv_after, x, norm_after)
            rows.copy_(x[: len(rows)])

    def _first(self, waveform: Tensor) -> tuple[Conv, nn.Module | None]:
        """The first convolution, in float32, and the norm that is left after it."""
        _, kernel, stride = self.config.conv_layers[0]
        weight, bias = self.first
        norm = self.norms[0]
        if not isinstance(norm, nn.GroupNorm):
            return Conv(weight[:, None], bias, stride), norm
        seen = under_kernel(waveform[:, None], kernel, stride).double()
        mean = seen.mean(0)
        covariance = seen.T @ seen / len(seen) - mean.outer(mean)
        wide = weight.double()
        variance = ((wide @ covariance) * wide).sum(1).clamp(min=0)
        gain = norm.weight.double() / (variance + norm.eps).sqrt()
        shift = norm.bias.double() - gain * (wide @ mean)  # a bias of the convolution would be taken off again
        return Conv((wide * gain[:, None]).float()[:, None], shift.float(), stride), None

    @staticmethod
    def _activated(conv: Conv, x: Tensor, norm: nn.Module | None) -> Tensor:
        if norm is None:
            return conv(x, gelu=True)
        return F.gelu(F.layer_norm(conv(x), norm.normalized_shape, *_of_type(norm, x.dtype), norm.eps))


def _of_type(norm: nn.Module, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return norm.weight.to(dtype), norm.bias.to(dtype)
