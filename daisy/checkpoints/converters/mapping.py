"""Renaming keys, and what every source needs: the positional convolution's weight norm, and a place for each key."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from daisy.checkpoints.format import build, load_weights
from daisy.checkpoints.model import Model
from daisy.errors import CheckpointError

Rules = Sequence[tuple[str, str | None]]
"""(pattern of the whole key, replacement); None leaves the key out, by name."""

Config = dict[str, Any]
"""A source's configuration, or ours as `Model.config` has it."""

POSITION = "backbone.encoder.transformer.pos_conv_embed.conv."


def rename(tensors: Mapping[str, Tensor], rules: Rules) -> dict[str, Tensor]:
    """Rename every key by the first rule that matches it.

    Args:
        tensors: by their source's names.
        rules: to try in turn.

    Returns:
        float32 tensors by our names.

    Raises:
        CheckpointError: naming the keys that no rule matches.
    """
    renamed: dict[str, Tensor] = {}
    unknown = []
    for key, tensor in tensors.items():
        for pattern, replacement in rules:
            if match := re.fullmatch(pattern, key):
                if replacement is not None:
                    renamed[match.expand(replacement)] = tensor.float()
                break
        else:
            unknown.append(key)
    if unknown:
        more = f" and {len(unknown) - 4} more" if len(unknown) > 4 else ""
        raise CheckpointError(f"has weights with no place in a HuBERT: {', '.join(unknown[:4])}{more}")
    return renamed


def fold_weight_norm(tensors: dict[str, Tensor]) -> None:
    """Replace the positional convolution's magnitude and direction, ``g`` and ``v``, by its weight, in place."""
    magnitude, direction = tensors.pop(POSITION + "g", None), tensors.pop(POSITION + "v", None)
    if magnitude is not None and direction is not None:
        tensors[POSITION + "weight"] = torch._weight_norm(direction, magnitude, 2)


def add_identity_projection(tensors: dict[str, Tensor], width: int) -> None:
    """Add the projection that fairseq leaves out where the convolutions have the transformer's width."""
    prefix = "backbone.encoder.feature_projection.projection."
    if prefix + "weight" not in tensors:
        tensors[prefix + "weight"] = torch.eye(width)
        tensors[prefix + "bias"] = torch.zeros(width)


def assemble(config: Config, tensors: dict[str, Tensor]) -> Model:
    """Build a model from its configuration (as `Model.config`) and its tensors under our names.

    Raises:
        CheckpointError: where a tensor has no place, or a place no tensor of its shape.
    """
    model = build(config)
    tensors.setdefault("backbone.mask_embedding", torch.zeros(model.backbone.config.width))
    load_weights(model, tensors)
    return model
