"""Run the backbone as in the exit loop: a batch's frames one after the other, without padding, without gradients.

``F`` below is the number of frames of the whole batch. Linear maps, norms and activations ignore utterances' ends
and run over all ``F`` rows; attention and convolutions keep to each utterance's own. So nothing is computed to make
lengths equal, and utterances that have left have no rows in the next layer. On CPUs a few rows are added to a whole
batch, so that oneDNN's products share their shapes (`daisy.runtime.linear.round_up_rows`). The result equals
`Backbone`'s.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from daisy.models import Backbone, BackboneConfig
from daisy.models.modules import FixedBatchNorm, PositionalConvolution, PositionalStack, TransformerLayer, norm_and_gelu
from daisy.models.packing import FrameLayout, PackedLayout
from daisy.runtime.attention import attend
from daisy.runtime.convolution import FourierConv
from daisy.runtime.cpu_front_end import CpuFrontEnd
from daisy.runtime.cuda_front_end import CudaFrontEnd
from daisy.runtime.dtypes import STATE_DTYPES, Precision, parse_dtype, to_floating
from daisy.runtime.front_end import FrontEnd
from daisy.runtime.gated_attention import PackedBiases, PackedGate, attend_gated
from daisy.runtime.linear import make_linear, pack_linear, padded_view
from daisy.runtime.private_ops import has_varlen_attention


def make_front_end(backbone: Backbone, precision: Precision) -> FrontEnd:
    """Make the front end for the backbone's device, with its current weights."""
    return (CpuFrontEnd if backbone.device.type == "cpu" else CudaFrontEnd)(backbone, precision)


class PackedBackbone:
    """A backbone with weights packed for speed: copies of the weights as they are when it is made.

    Args:
        backbone: backbone to pack.
        precision: precision to compute in. With "int8" an utterance's inputs share a scale, so that each runs alone.
        layers: consecutive layers to pack; None: all. The front end comes with layer 1; weights of other layers
            are not read.

    Raises:
        UsageError: on another precision, or on "int8" elsewhere than on a CPU.
    """

    def __init__(self, backbone: Backbone, precision: Precision = "float32", layers: range | None = None):
        parse_dtype(precision, backbone.device)
        self.config, self.dtype, self.device = backbone.config, STATE_DTYPES[precision], backbone.device
        layers = range(1, self.config.num_layers + 1) if layers is None else layers
        transformer = backbone.encoder.transformer
        self.norm = PackedNorm(transformer.layer_norm, self.dtype)
        if 1 in layers:
            self._pack_front_end(backbone, precision)
        wanted = [(layer, module) for layer, module in enumerate(transformer.layers, 1) if layer in layers]
        biases = transformer.rel_attn_embed
        relative = None if biases is None else PackedBiases(biases, self.dtype)
        self.layers = {layer: PackedLayer(module, self.config, precision, relative) for layer, module in wanted}

    def _pack_front_end(self, backbone: Backbone, precision: Precision) -> None:
        """Pack the parts that compute layer 0."""
        self.front_end = make_front_end(backbone, to_floating(precision))
        projection = backbone.encoder.feature_projection
        transformer = backbone.encoder.transformer
        self.feature_norm = None if projection.layer_norm is None else PackedNorm(projection.layer_norm, self.dtype)
        self.projection = pack_linear(projection.projection, to_floating(precision))
        positions = transformer.pos_conv_embed
        self.positional: PackedPositions | PackedPositionStack = (
            PackedPositionStack(positions, self.config.pos_groups)
            if isinstance(positions, PositionalStack)
            else PackedPositions(positions, self.config.pos_groups)
        )

    @property
    def supports_varlen(self) -> bool:
        """Whether a layer runs without utterance lengths on the host, so that it can be captured."""
        if self.config.relative_buckets is not None:  # that kernel takes no biases
            return False
        return has_varlen_attention(self.device, self.dtype, self.config.width // self.config.num_heads)

    def embed(self, features: Tensor, layout: FrameLayout) -> Tensor:
        """Turn the output of `front_end`, features (F, C), into layer 0 (F, D)."""
        projected = self.projection(features if self.feature_norm is None else self.feature_norm(features))
        states = projected + self.positional(projected, layout).to(self.dtype)
        return states if self.config.pre_norm else self.norm(states)

    def layer(
        self, layer: int, states: Tensor, layout: FrameLayout, return_feed_forward: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Run layer ``layer`` (1 to L).

        Args:
            layer: number of the layer.
            states: states of the layer before, (F, D).
            layout: layout of the utterances' frames.
            return_feed_forward: whether to return the feed-forward block's output before residual and norm too.

        Returns:
            The states, and with ``return_feed_forward`` that output, else the states again; both (F, D).
        """
        count, packed = len(states), self.layers[layer]
        padded = padded_view(states, packed.inputs.padded_rows(count))
        states, feed_forward = (rows[:count] for rows in packed(padded, layout, return_feed_forward))
        if self.config.norms_after(layer):
            states = self.norm(states)
        return states, feed_forward if return_feed_forward else states


class PackedNorm:
    """Layer norm with weights of the states' type."""

    def __init__(self, module: nn.LayerNorm, dtype: torch.dtype):
        self.weight, self.bias = module.weight.detach().to(dtype), module.bias.detach().to(dtype)
        self.eps = module.eps

    def __call__(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.weight, self.bias, self.eps)


class PackedBatchNorm:
    """Batch norm with fixed statistics: a factor and a summand for each channel, in float32."""

    def __init__(self, module: FixedBatchNorm):
        self.gain, self.shift = (values.detach() for values in module.gain_and_shift())

    def __call__(self, x: Tensor) -> Tensor:
        """Normalize (F, D), to float32, which the positional convolution computes in."""
        return torch.addcmul(self.shift, x.float(), self.gain)


class PackedPositions:
    """HuBERT's positional convolution, with the norm before it if there is one."""

    def __init__(self, module: PositionalConvolution, groups: int):
        self.conv = FourierConv(module.conv.weight, module.conv.bias, groups)
        self.norm = None if module.batch_norm is None else PackedBatchNorm(module.batch_norm)

    def __call__(self, x: Tensor, layout: FrameLayout) -> Tensor:
        """Convolve (F, D) to float32 (F, D)."""
        return F.gelu(self.conv(x if self.norm is None else self.norm(x), layout))


class PackedPositionStack:
    """data2vec's positional convolutions."""

    def __init__(self, module: PositionalStack, groups: int):
        self.convs = [FourierConv(conv.weight, conv.bias, groups) for conv in module.convs]

    def __call__(self, x: Tensor, layout: FrameLayout) -> Tensor:
        """Convolve (F, D) to float32 (F, D)."""
        for conv in self.convs:
            x = norm_and_gelu(conv(x, layout))
        return x


class PackedLayer:
    """A transformer layer, with one product for queries, keys and values."""

    def __init__(
        self,
        layer: TransformerLayer,
        config: BackboneConfig,
        precision: Precision,
        relative: PackedBiases | None = None,
    ):
        attention = layer.attention
        projections = attention.q_proj, attention.k_proj, attention.v_proj
        scale = (config.width // config.num_heads) ** -0.5  # of the queries, whose products with keys are weights
        scaled = list(zip((scale, 1.0, 1.0), projections, strict=True))
        self.inputs = make_linear(
            torch.cat([factor * projection.weight.detach().float() for factor, projection in scaled]),
            torch.cat([factor * projection.bias.detach().float() for factor, projection in scaled]),
            precision,
        )
        self.output = pack_linear(attention.out_proj, precision)
        self.inner = pack_linear(layer.feed_forward.intermediate_dense, precision)
        self.outer = pack_linear(layer.feed_forward.output_dense, precision)
        dtype = STATE_DTYPES[precision]
        self.norm, self.final_norm = PackedNorm(layer.layer_norm, dtype), PackedNorm(layer.final_layer_norm, dtype)
        self.num_heads, self.pre_norm = config.num_heads, config.pre_norm
        self.one_by_one = precision == "int8"
        self.relative = relative
        self.gate = None if attention.gate is None else PackedGate(attention.gate, dtype)

    def __call__(self, states: Tensor, layout: FrameLayout, return_feed_forward: bool) -> tuple[Tensor, Tensor]:
        """Run the layer on (F, D) states, as `PackedBackbone.layer` does; further rows may follow, to be ignored."""
        if self.one_by_one and len(layout) > 1:
            assert isinstance(layout, PackedLayout)  # graphs are for devices, and int8 is for CPUs
            parts = [
                self(rows, PackedLayout(torch.tensor([len(rows)])), return_feed_forward)
                for rows in states.split(layout.seqlens_list)
            ]
            return torch.cat([part for part, _ in parts]), torch.cat([part for _, part in parts])
        mixed = self._attend(self.norm(states) if self.pre_norm else states, layout)
        attended = self.output(mixed, residual=states)
        if not self.pre_norm:
            attended = self.norm(attended)
        inner = self.inner(self.final_norm(attended) if self.pre_norm else attended, gelu=True)
        if return_feed_forward:
            feed_forward = self.outer(inner)
            states = attended + feed_forward
        else:
            states = feed_forward = self.outer(inner, residual=attended)
        return (states if self.pre_norm else self.final_norm(states)), feed_forward

    def _attend(self, heard: Tensor, layout: FrameLayout) -> Tensor:
        """Attend within each utterance: from the input of attention, (F, D), to the input of its output layer."""
        projected = self.inputs(heard)
        if self.relative is None or self.gate is None:
            return attend(projected, layout, self.num_heads)
        assert isinstance(layout, PackedLayout)  # such layers are never captured
        return attend_gated(projected, self.gate(heard), layout, self.relative)
