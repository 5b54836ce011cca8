"""Read the shape of a HuBERT from its weights alone; fields that no weight gives are guessed by size, or given."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping

from torch import Tensor

from daisy.checkpoints.converters.mapping import BATCH_NORM, POSITION, POSITION_STACK, RELATIVE, Config
from daisy.errors import CheckpointError, unknown_name
from daisy.models import BackboneConfig
from daisy.models.lengths import HUBERT_CONV

HEADS_BY_WIDTH = {768: 12, 1024: 16, 1280: 16, 1920: 16}
"""Attention heads of the published HuBERTs and XLS-Rs, 64 to 120 channels per head: the weights do not show them."""
GUESSED = ("num_heads", "pre_norm", "normalize", "sample_rate")
CAN_BE_GIVEN = (*GUESSED, "pos_groups", "relative_max_distance")


def guess_backbone(tensors: Mapping[str, Tensor], overrides: Mapping[str, str]) -> tuple[Config, str]:
    """Read the fields of `BackboneConfig` from weights with our names.

    Args:
        tensors: all weights of a backbone.
        overrides: fields that the weights do not give, as text.

    Returns:
        The fields, and the end of a message that says which were guessed, and how.

    Raises:
        CheckpointError: where the convolutions are not HuBERT's seven, whose strides are known, where the
            number of attention heads is neither given nor known for this width, or on invalid overrides.
    """
    given = _parse_overrides(overrides)
    fields: Config = {**_read_shapes(tensors), **given}
    if fields["num_heads"] is None:
        raise CheckpointError(
            f"weights do not tell the number of attention heads, and width {fields['width']} is none of "
            f"{', '.join(map(str, HEADS_BY_WIDTH))}",
            remedy="num_heads",
        )
    guessed = [name for name in GUESSED if not (name == "num_heads" and RELATIVE in tensors)]
    if RELATIVE in tensors:
        guessed.append("relative_max_distance")
    guesses = [f"{name} {str(fields[name]).lower()}" for name in guessed if name not in given]
    return fields, f"{', '.join(guesses)}: the weights do not tell" if guesses else ""


def _read_shapes(tensors: Mapping[str, Tensor]) -> Config:
    prefix = "backbone.encoder.transformer."
    convolutions = sorted(
        (int(match[1]), tensor)
        for key, tensor in tensors.items()
        if (match := re.fullmatch(r"backbone\.feature_extractor\.conv_layers\.(\d+)\.conv\.weight", key))
    )
    strides = [stride for _, _, stride in HUBERT_CONV]
    if len(convolutions) != len(strides):
        raise CheckpointError(
            f"has {len(convolutions)} convolutions where HuBERT has {len(strides)}: weights do not tell their strides"
        )
    depth = sum(key.startswith(POSITION_STACK) and key.endswith("weight") for key in tensors)
    width, per_group, kernel = tensors[(POSITION_STACK + "0." if depth else POSITION) + "weight"].shape
    layer_norms = sum(bool(re.fullmatch(r".*conv_layers\.\d+\.layer_norm\.weight", key)) for key in tensors)
    large = layer_norms > 1
    fields = {
        "num_layers": sum(bool(re.fullmatch(r".*layers\.\d+\.attention\.k_proj\.weight", key)) for key in tensors),
        "width": width,
        "ffn_width": tensors[prefix + "layers.0.feed_forward.intermediate_dense.weight"].shape[0],
        "num_heads": HEADS_BY_WIDTH.get(width),
        "pre_norm": large and not depth,
        "conv_layers": [
            (tensor.shape[0], tensor.shape[2], stride)
            for (_, tensor), stride in zip(convolutions, strides, strict=True)
        ],
        "conv_norm": "layer" if large else "group",
        "conv_bias": "backbone.feature_extractor.conv_layers.0.conv.bias" in tensors,
        "pos_kernel": kernel,
        "pos_groups": width // per_group,
        "pos_batch_norm": BATCH_NORM + "running_var" in tensors,
        "projection_norm": "backbone.encoder.feature_projection.layer_norm.weight" in tensors,
        "normalize": large,
        "sample_rate": 16000,
    }
    if depth:
        fields["pos_stack"] = depth
    if RELATIVE in tensors:
        buckets, heads = tensors[RELATIVE].shape
        fields |= {"num_heads": heads, "relative_buckets": buckets, "relative_max_distance": 800}
    return fields


def _parse_overrides(overrides: Mapping[str, str]) -> dict[str, int | bool]:
    kinds = {field.name: str(field.type) for field in dataclasses.fields(BackboneConfig) if field.name in CAN_BE_GIVEN}
    typed: dict[str, int | bool] = {}
    for name, text in overrides.items():
        if name not in kinds:
            raise CheckpointError(unknown_name("field to set", name, kinds))
        try:
            typed[name] = {"true": True, "false": False}[text.lower()] if kinds[name] == "bool" else int(text)
        except (KeyError, ValueError):
            raise CheckpointError(
                f"{name} must be {'true or false' if kinds[name] == 'bool' else 'a whole number'}, found {text!r}"
            ) from None
    return typed
