"""Part of a model: some layers and their exit heads, without other weights, as sent to and built on a worker."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from daisy.checkpoints import Model
from daisy.checkpoints.model import HeadsKind
from daisy.errors import CheckpointError, UsageError
from daisy.models import (
    Backbone,
    BackboneConfig,
    Conformer,
    ConformerConfig,
    CTCHeads,
    CTCHeadsConfig,
    ExitHeads,
    WhisperConfig,
)
from daisy.models.heads import HeadsConfig
from daisy.models.kinds import AnyBackbone, AnyBackboneConfig, AnyHeads
from daisy.models.meta import build_without_memory

OF_LAYERS = re.compile(r"(?:encoder\.transformer\.)?layers\.(\d+)\.|(?:units|regressors)\.(\d+)\.")
"""Names of weights that belong to one layer, counted from 0."""
OF_EXITS = re.compile(r"(?:classifiers|attentions)\.(\d+)\.")
"""Names of weights of CTC exits, counted from 1."""
OF_BLOCKS = re.compile(r"half_rate\.(\d+)\.")
"""Names of weights of a Conformer's blocks, counted from 1; they belong to the last layer of the block."""
ALWAYS = ("mask_embedding", "encoder.transformer.layer_norm.", "encoder.transformer.rel_attn_embed.", "subsampling.0.")
"""Weights that every part has: the one that shows a backbone's device and dtype, the final norm, WavLM's positions."""


@dataclass(frozen=True, kw_only=True)
class ModelPart:
    """Layers ``first`` to ``last`` of a model, as they are sent to a worker."""

    first: int
    last: int
    backbone: BackboneConfig | ConformerConfig
    heads: HeadsConfig | CTCHeadsConfig | None
    backbone_weights: Mapping[str, Tensor]
    head_weights: Mapping[str, Tensor]

    @property
    def num_bytes(self) -> int:
        """Bytes of the weights."""
        tensors = (*self.backbone_weights.values(), *self.head_weights.values())
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def cut_model(model: Model, first: int, last: int, heads: HeadsKind | None = None) -> ModelPart:
    """Cut out layers ``first`` to ``last`` of a model, with their heads and, if ``first`` is 1, with the front end.

    Args:
        model: the whole model.
        first: first layer, from 1.
        last: last layer, up to L.
        heads: kind of heads; see `daisy.checkpoints.Model.exit_heads`.

    Raises:
        UsageError: if the model does not have these layers, or as `check_cuts` does.
        CheckpointError: if the model is Whisper's encoder.
    """
    config = model.backbone.config
    if isinstance(config, WhisperConfig):
        raise CheckpointError("Whisper's encoder is not cut into parts")
    if not 1 <= first <= last <= config.num_layers:
        raise UsageError(f"layers {first}-{last} are not of 1-{config.num_layers}")
    check_cuts(config, [first - 1, last])
    chosen, block = model.exit_heads(heads), getattr(config, "block_layers", 1)
    return ModelPart(
        first=first,
        last=last,
        backbone=config,
        heads=None if chosen is None else chosen.config,
        backbone_weights=_select(model.backbone, first, last, block),
        head_weights={} if chosen is None else _select(chosen, first, last, block),
    )


def check_cuts(config: AnyBackboneConfig, ends: Iterable[int]) -> None:
    """Refuse to pass on a Splitformer's states inside a block: its half-rate layer needs the input of the block.

    Args:
        config: configuration of the backbone.
        ends: layers after which states may be passed on.

    Raises:
        UsageError: if a block is cut; names the layer.
    """
    if isinstance(config, ConformerConfig) and config.split_blocks:
        for end in ends:
            if end % config.block_layers:
                raise UsageError(
                    f"a stage that ends at layer {end} cuts a block with a half-rate layer: "
                    f"blocks have {config.block_layers} layers, from 1 on"
                )


def _select(module: nn.Module, first: int, last: int, block_layers: int) -> dict[str, Tensor]:
    """Copy a module's weights that belong to some layers, and with layer 1 also those that belong to none."""
    weights = {}
    for name, tensor in module.state_dict().items():
        layer = 0
        if match := OF_LAYERS.match(name):
            layer = 1 + int(match[1] or match[2])
        elif match := OF_EXITS.match(name):
            layer = int(match[1])
        elif match := OF_BLOCKS.match(name):
            layer = int(match[1]) * block_layers
        if first <= layer <= last or (layer == 0 and first == 1) or name.startswith(ALWAYS):
            weights[name] = tensor.detach().cpu().clone()
    return weights


def build_part(part: ModelPart, device: str = "cpu") -> tuple[AnyBackbone, AnyHeads | None]:
    """Build the modules of a part; layers outside it take no memory (torch's device "meta")."""
    with build_without_memory():
        backbone: AnyBackbone = (
            Backbone(part.backbone) if isinstance(part.backbone, BackboneConfig) else Conformer(part.backbone)
        )
        heads: AnyHeads | None = None
        if isinstance(part.heads, CTCHeadsConfig):
            heads = CTCHeads(part.heads)
        elif part.heads is not None:
            heads = ExitHeads(part.heads)
    for module, weights in ((backbone, part.backbone_weights), (heads, part.head_weights)):
        if module is not None:
            there = {name: tensor.to(device) for name, tensor in weights.items()}
            module.load_state_dict(there, strict=False, assign=True)
            module.eval().requires_grad_(False)
    return backbone, heads
