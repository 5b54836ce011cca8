"""torchaudio's HuBERT state dicts: our own names behind a prefix. What they do not tell is guessed by size, or given.

Source: torchaudio 2.5, torchaudio/models/wav2vec2/model.py (``hubert_base`` … , ``hubert_pretrain_base`` …).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from daisy.checkpoints.converters.mapping import POSITION, Config, assemble, fold_weight_norm, rename
from daisy.checkpoints.model import Model
from daisy.errors import CheckpointError, unknown_name
from daisy.models import BackboneConfig
from daisy.models.lengths import HUBERT_CONV

_POSITION = r"encoder\.transformer\.pos_conv_embed\.conv\."
_KNOWN = r"((?:feature_extractor|encoder)\..*)"
HEADS_BY_WIDTH = {768: 12, 1024: 16, 1280: 16}
GUESSED = ("num_heads", "pre_norm", "normalize", "pos_groups", "sample_rate")


def recognises(state: dict[str, Any]) -> bool:
    """Tell whether a loaded file is a state dict of a torchaudio model."""
    return any(re.fullmatch(r"(wav2vec2\.)?encoder\.transformer\.layers\.0\..*", str(key)) for key in state)


def read(state: Mapping[str, Tensor], overrides: Mapping[str, str]) -> Model:
    """Build a model from a state dict; ``overrides`` give fields that the weights do not tell, as text."""
    prefix = r"wav2vec2\." if any(key.startswith("wav2vec2.") for key in state) else ""
    rules = (
        (prefix + _POSITION + r"(?:weight_g|parametrizations\.weight\.original0)", POSITION + "g"),
        (prefix + _POSITION + r"(?:weight_v|parametrizations\.weight\.original1)", POSITION + "v"),
        (prefix + _KNOWN, r"backbone.\1"),
        (r"mask_generator\.mask_embedding", "backbone.mask_embedding"),
        (r"logit_generator\.label_embeddings", "final_head.embeddings"),
        (r"logit_generator\.final_proj\.(weight|bias)", r"final_head.projection.\1"),
        (prefix + r"aux\.(weight|bias)", None),  # the output layer of a fine-tuned model
    )
    tensors = rename(state, rules)
    fold_weight_norm(tensors)
    embeddings = tensors.get("final_head.embeddings")
    head = None if embeddings is None else {"num_units": embeddings.shape[0], "final_dim": embeddings.shape[1]}
    return assemble({"backbone": _guess_backbone(tensors, overrides), "final_head": head}, tensors)


def _guess_backbone(tensors: dict[str, Tensor], overrides: Mapping[str, str]) -> Config:
    prefix = "backbone.encoder.transformer."
    convolutions = sorted(
        (int(match[1]), tensor)
        for key, tensor in tensors.items()
        if (match := re.fullmatch(r"backbone\.feature_extractor\.conv_layers\.(\d+)\.conv\.weight", key))
    )
    strides = [stride for _, _, stride in HUBERT_CONV]
    if len(convolutions) != len(strides):
        raise CheckpointError(f"has {len(convolutions)} convolutions where HuBERT has {len(strides)}")
    position = tensors[POSITION + "weight"]
    width, per_group, kernel = position.shape
    layer_norms = sum(bool(re.fullmatch(r".*conv_layers\.\d+\.layer_norm\.weight", key)) for key in tensors)
    large = layer_norms > 1
    fields: Config = {
        "num_layers": sum(bool(re.fullmatch(r".*layers\.\d+\.attention\.k_proj\.weight", key)) for key in tensors),
        "width": width,
        "ffn_width": tensors[prefix + "layers.0.feed_forward.intermediate_dense.weight"].shape[0],
        "num_heads": HEADS_BY_WIDTH.get(width),
        "pre_norm": large,
        "conv_layers": [
            (tensor.shape[0], tensor.shape[2], stride)
            for (_, tensor), stride in zip(convolutions, strides, strict=True)
        ],
        "conv_norm": "layer" if large else "group",
        "conv_bias": "backbone.feature_extractor.conv_layers.0.conv.bias" in tensors,
        "pos_kernel": kernel,
        "pos_groups": width // per_group,
        "normalize": large,
    }
    fields.update(_parse_overrides(overrides))
    if fields["num_heads"] is None:
        raise CheckpointError(
            f"a state dict does not tell its number of attention heads, and width {width} is none of "
            f"{', '.join(map(str, HEADS_BY_WIDTH))}",
            remedy="num_heads",
        )
    return fields


def _parse_overrides(overrides: Mapping[str, str]) -> dict[str, int | bool]:
    kinds = {field.name: str(field.type) for field in dataclasses.fields(BackboneConfig) if field.name in GUESSED}
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
