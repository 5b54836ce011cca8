"""The modules of a HuBERT and its kin, with torchaudio's parameter names; forward hooks on them work.

Matched behaviour: torchaudio 2.5, torchaudio/models/wav2vec2/components.py, at inference; for parts not in it (the
batch norm before the positional convolution, absent norms, their epsilon): transformers 4.57 and 5.20,
transformers/models/hubert/modeling_hubert.py.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from daisy.models.config import BackboneConfig
from daisy.models.relative_positions import PositionGate, RelativePositions

MIN_BFLOAT16_CHANNELS = 16
"""Minimum channels of a group of which oneDNN's bfloat16 convolution is right on CPUs with AMX (torch 2.5)."""


class ConvLayerNorm(nn.LayerNorm):
    """Layer norm over the channels of (B, C, T)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class ConvLayer(nn.Module):
    """A convolution of the front end, its norm where it has one, and GELU."""

    def __init__(self, in_channels: int, channels: int, kernel: int, stride: int, bias: bool, norm: nn.Module | None):
        super().__init__()
        self.layer_norm = norm
        self.conv = nn.Conv1d(in_channels, channels, kernel, stride, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (B, C, T) to (B, C', T')."""
        x = self.conv(x)
        return F.gelu(x if self.layer_norm is None else self.layer_norm(x))


class FeatureExtractor(nn.Module):
    """The convolutional front end."""

    def __init__(self, config: BackboneConfig):
        super().__init__()
        layers, in_channels = [], 1
        for index, (channels, kernel, stride) in enumerate(config.conv_layers):
            norm: nn.Module | None = None
            if config.conv_norm == "layer":
                norm = ConvLayerNorm(channels)
            elif index == 0:
                norm = nn.GroupNorm(channels, channels)
            layers.append(ConvLayer(in_channels, channels, kernel, stride, config.conv_bias, norm))
            in_channels = channels
        self.conv_layers = nn.ModuleList(layers)

    def forward(self, waveforms: Tensor) -> Tensor:
        """Convolve (B, N) waveforms of one length to (B, T, C) features."""
        x = waveforms[:, None]
        for layer in self.conv_layers:
            x = layer(x)
        return x.transpose(1, 2)


class FeatureProjection(nn.Module):
    """The projection from the convolutions' channels to the transformer's width."""

    def __init__(self, config: BackboneConfig):
        super().__init__()
        channels = config.conv_layers[-1][0]
        self.layer_norm = nn.LayerNorm(channels, config.layer_norm_eps) if config.projection_norm else None
        self.projection = nn.Linear(channels, config.width)

    def forward(self, features: Tensor) -> Tensor:
        """Project (B, T, C) to (B, T, D)."""
        projected: Tensor = self.projection(features if self.layer_norm is None else self.layer_norm(features))
        return projected


class FixedBatchNorm(nn.Module):
    """Batch norm over the channels of (B, T, D), with fixed statistics from training, in training mode too."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, width: int, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (..., D) to (..., D)."""
        gain, shift = self.gain_and_shift()
        return torch.addcmul(shift, x.float(), gain).to(x.dtype)

    def gain_and_shift(self) -> tuple[Tensor, Tensor]:
        """Return the factor of each channel and the offset to add afterwards, (D,) float32 each."""
        gain = self.weight.float() * (self.running_var.float() + self.eps).rsqrt()
        return gain, self.bias.float() - self.running_mean.float() * gain


class PositionalConvolution(nn.Module):
    """The grouped convolution whose output encodes positions.

    It has a plain weight, as fairseq's weight norm is for training and would be recomputed at every call.
    """

    def __init__(self, config: BackboneConfig):
        super().__init__()
        self.batch_norm = FixedBatchNorm(config.width) if config.pos_batch_norm else None
        self.conv = nn.Conv1d(
            config.width, config.width, config.pos_kernel, padding=config.pos_kernel // 2, groups=config.pos_groups
        )

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """Convolve (B, T, D) to (B, T, D).

        Args:
            x: input; zero where ``valid`` is false.
            valid: (B, T) bool, True where a frame belongs to its utterance; None where all do.
        """
        if self.batch_norm is not None:
            x = self.batch_norm(x)
            if valid is not None:
                x = x * valid[..., None]  # the norm shifts zeros, and the convolution after it pads with zeros
        y = convolve_in_groups(self.conv, x.transpose(1, 2))
        return F.gelu(y[..., : x.shape[1]]).transpose(1, 2)  # an even kernel gives one frame too many


class PositionalStack(nn.Module):
    """data2vec's positions: a stack of convolutions, each followed by a norm without weights and GELU.

    Matched behaviour: fairseq 0.12.2, fairseq/models/wav2vec/wav2vec2.py (``make_conv_block``); transformers 4.57,
    transformers/models/data2vec/modeling_data2vec_audio.py.
    """

    def __init__(self, config: BackboneConfig):
        super().__init__()
        width, kernel = config.width, config.pos_kernel
        self.convs = nn.ModuleList(
            nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=config.pos_groups)
            for _ in range(config.pos_stack or 0)
        )

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """Convolve (B, T, D) to (B, T, D); with the arguments of `PositionalConvolution`."""
        for conv in self.convs:
            y = convolve_in_groups(conv, x.transpose(1, 2))[..., : x.shape[1]].transpose(1, 2)
            x = norm_and_gelu(y)
            if valid is not None:
                x = x * valid[..., None]  # the next convolution pads with zeros
        return x


def convolve_in_groups(conv: nn.Conv1d, x: Tensor) -> Tensor:
    """Run a grouped convolution, in float32 where oneDNN's bfloat16 is wrong: on CPUs with AMX, for narrow groups.

    Forward hooks on the convolution are not called then.
    """
    narrow = x.device.type == "cpu" and conv.in_channels // conv.groups < MIN_BFLOAT16_CHANNELS
    dtype = torch.get_autocast_dtype("cpu") if narrow and torch.is_autocast_enabled("cpu") else x.dtype
    if not narrow or dtype != torch.bfloat16:
        y: Tensor = conv(x)
        return y
    bias = None if conv.bias is None else conv.bias.float()
    with torch.autocast("cpu", enabled=False):
        y = F.conv1d(x.float(), conv.weight.float(), bias, conv.stride, conv.padding, conv.dilation, conv.groups)
    return y.to(dtype)


def norm_and_gelu(x: Tensor) -> Tensor:
    """Apply the norm and GELU that follow each convolution of `PositionalStack`."""
    return F.gelu(F.layer_norm(x, x.shape[-1:]))


class SelfAttention(nn.Module):
    """Multi-head attention from each frame to all frames of its utterance.

    Args:
        width: width of the states, D.
        num_heads: number of attention heads, H.
        gated: whether a gated bias for relative positions is added.
    """

    def __init__(self, width: int, num_heads: int, gated: bool = False):
        super().__init__()
        self.num_heads = num_heads
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)
        self.gate = PositionGate(width // num_heads, num_heads) if gated else None

    def forward(self, x: Tensor, mask: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """Attend: (B, T, D) to (B, T, D).

        Args:
            x: input.
            mask: (B, 1, T, T) bool, True where a frame may be attended to; the same for all queries.
            bias: (H, T, T) bias for relative positions, from `RelativePositions`; only with a gate.
        """
        queries, keys, values = (
            projection(x).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        if self.gate is not None and bias is not None:
            mixed = self._mix_with_positions(queries, keys, values, mask, self.gate(x), bias)
        else:
            mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
        output: Tensor = self.out_proj(mixed.transpose(1, 2).flatten(2))
        return output

    @staticmethod
    def _mix_with_positions(
        queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, gates: Tensor, bias: Tensor
    ) -> Tensor:
        """Mix values (B, H, T, D / H) with attention, whose logits have gates (B, H, T, 1) times biases added."""
        gated = gates.flip(2) * bias  # the biases have the queries in reverse order
        if mask is not None:
            gated = gated.masked_fill(~mask, -torch.inf)
        return F.scaled_dot_product_attention(queries.flip(2), keys, values, attn_mask=gated).flip(2)


class FeedForward(nn.Module):
    """Two linear maps with GELU between them."""

    def __init__(self, width: int, inner_width: int):
        super().__init__()
        self.intermediate_dense = nn.Linear(width, inner_width)
        self.output_dense = nn.Linear(inner_width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., D) to (..., D)."""
        output: Tensor = self.output_dense(F.gelu(self.intermediate_dense(x)))
        return output


class TransformerLayer(nn.Module):
    """Attention and a feed-forward block, each with a residual and a norm."""

    def __init__(self, config: BackboneConfig):
        super().__init__()
        self.pre_norm = config.pre_norm
        self.attention = SelfAttention(config.width, config.num_heads, gated=config.relative_buckets is not None)
        self.layer_norm = nn.LayerNorm(config.width, config.layer_norm_eps)
        self.feed_forward = FeedForward(config.width, config.ffn_width)
        self.final_layer_norm = nn.LayerNorm(config.width, config.layer_norm_eps)

    def forward(self, states: Tensor, mask: Tensor | None = None, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Run the layer.

        Args:
            states: (B, T, D).
            mask: (B, 1, T, T) bool, True where a frame may be attended to; None where all may.
            bias: see `SelfAttention`.

        Returns:
            The layer's output, and the feed-forward block's output before residual and norm, both (B, T, D).
        """
        if self.pre_norm:
            attended = states + self.attention(self.layer_norm(states), mask, bias)
            feed_forward = self.feed_forward(self.final_layer_norm(attended))
            return attended + feed_forward, feed_forward
        attended = self.layer_norm(states + self.attention(states, mask, bias))
        feed_forward = self.feed_forward(attended)
        return self.final_layer_norm(attended + feed_forward), feed_forward


class Transformer(nn.Module):
    """Positions, the layers, and the norm before the first or after the last layer."""

    def __init__(self, config: BackboneConfig):
        super().__init__()
        self.pos_conv_embed = (PositionalConvolution if config.pos_stack is None else PositionalStack)(config)
        self.layer_norm = nn.LayerNorm(config.width, config.layer_norm_eps)
        self.layers = nn.ModuleList(TransformerLayer(config) for _ in range(config.num_layers))
        self.rel_attn_embed = (
            None
            if config.relative_buckets is None
            else RelativePositions(config.relative_buckets, config.relative_max_distance, config.num_heads)
        )


class Encoder(nn.Module):
    """All that follows the convolutions."""

    def __init__(self, config: BackboneConfig):
        super().__init__()
        self.feature_projection = FeatureProjection(config)
        self.transformer = Transformer(config)
