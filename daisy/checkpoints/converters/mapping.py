"""Renaming keys, and what every source needs: the positional convolution's weight norm, and a place for each key."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from daisy.checkpoints.format import Model, build, load_weights
from daisy.errors import CheckpointError

Rules = Sequence[tuple[str, str | None]]
"""(pattern of the whole key, replacement); None leaves the key out, by name."""

POSITION = "backbone.encoder.transformer.pos_conv_embed.conv."


def rename(tensors: Mapping[str, Tensor], rules: Rules) -> dict[str, Tensor]:
    """Every key by the first rule that matches it.

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


def identity_projection(tensors: dict[str, Tensor], width: int) -> None:
    """Add the projection that fairseq leaves out where the convolutions have the transformer's width."""
    prefix = "backbone.encoder.feature_projection.projection."
    if prefix + "weight" not in tensors:
        tensors[prefix + "weight"] = torch.eye(width)
        tensors[prefix + "bias"] = torch.zeros(width)


def assemble(config: dict, tensors: dict[str, Tensor]) -> Model:
    """A model from its configuration (as `Model.config`) and its tensors under our names."""
    model = build(config)
    tensors.setdefault("backbone.mask_embedding", torch.zeros(model.backbone.config.width))
    load_weights(model, tensors)
    return model
