"""Rename keys, and do what every source needs: fold the positional weight norm, and check that each key has a place."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from daisy.checkpoints.format import build_with_weights
from daisy.checkpoints.model import Model
from daisy.checkpoints.weights import list_some
from daisy.errors import CheckpointError

HUBERT, WAV2VEC2, WAVLM, DATA2VEC = "HuBERT", "wav2vec 2.0", "WavLM", "data2vec"
"""Names of networks for users. All but the first are recorded in a converted model's provenance."""
HUBERT_OR_WAV2VEC2 = f"{HUBERT} or {WAV2VEC2}"
"""Both compute the same; modules for pre-training, or a configuration, tell them apart."""

NO_WEIGHT = ""
"""The replacement for a counter or the like, which inference does not read."""

Rules = Sequence[tuple[str, str | None]]
"""(pattern of the whole key, replacement); None leaves the key out and reports it, `NO_WEIGHT` does so silently."""

Config = dict[str, Any]
"""A source's configuration, or ours, as in `Model.config`."""

POSITION = "backbone.encoder.transformer.pos_conv_embed.conv."
MASK_EMBEDDING = "backbone.mask_embedding"
BATCH_NORM = "backbone.encoder.transformer.pos_conv_embed.batch_norm."
POSITION_STACK = "backbone.encoder.transformer.pos_conv_embed.convs."
RELATIVE = "backbone.encoder.transformer.rel_attn_embed.weight"
"""WavLM's biases for distances, which all layers share; other libraries keep them in the first layer."""


def rename(tensors: Mapping[str, Tensor], rules: Rules, network: str = HUBERT) -> tuple[dict[str, Tensor], list[str]]:
    """Rename every key by the first rule that matches it.

    Args:
        tensors: tensors by their source's names.
        rules: rules to try in turn.
        network: name of the network for messages.

    Returns:
        float32 tensors by our names, and the keys that a rule leaves out.

    Raises:
        CheckpointError: naming keys that no rule matches, weights that are not floating-point tensors, or two keys
            for the same weight.
    """
    renamed: dict[str, Tensor] = {}
    sources: dict[str, str] = {}
    left_out, unknown = [], []
    for key, tensor in tensors.items():
        match, replacement = next(
            ((match, to) for pattern, to in rules if (match := re.fullmatch(pattern, str(key)))), (None, None)
        )
        if match is None:
            unknown.append(str(key))
        elif replacement is None:
            left_out.append(key)
        elif replacement != NO_WEIGHT:
            if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
                kind = str(tensor.dtype).removeprefix("torch.") if isinstance(tensor, Tensor) else type(tensor).__name__
                raise CheckpointError(
                    f"{key} is {kind} where weights are floating-point: quantised models are not read"
                )
            name = match.expand(replacement)
            if name in sources:
                raise CheckpointError(
                    f"has one weight twice, as {sources[name]} and as {key}: which counts is not known"
                )
            sources[name] = key
            renamed[name] = tensor.float()
    if unknown:
        raise CheckpointError(f"has weights with no place in a {network}: {list_some(unknown, 4)}")
    return renamed, left_out


def describe_keys(keys: Iterable[str]) -> str:
    """Name the modules that keys belong to: "lm_head, final_proj"."""
    return list_some(list(dict.fromkeys(key.rpartition(".")[0] or key for key in keys)), 4)


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


def assemble(
    config: Config, tensors: dict[str, Tensor], *, left_out: str = "", assumed: str = "", network: str = HUBERT
) -> Model:
    """Build a model from its configuration (as in `Model.config`) and its tensors by our names.

    Args:
        config: the configuration.
        tensors: the weights.
        left_out: parts of the source that are not in the model; recorded in its provenance.
        assumed: values that the source did not give; likewise.
        network: name of the network; likewise, where it is not a HuBERT.

    Raises:
        CheckpointError: where a tensor has no place, or a place has no tensor of its shape, or a weight is not finite.
    """
    norm = tensors.get("backbone.encoder.transformer.layer_norm.weight")
    if norm is not None and MASK_EMBEDDING not in tensors:
        tensors[MASK_EMBEDDING] = torch.zeros(norm.shape)
        assumed = "; ".join(
            part for part in (assumed, "mask_embedding 0, which only training with masks reads") if part
        )
    model = build_with_weights(config, tensors)
    notes = {"network": "" if network == HUBERT else network, "left_out": left_out, "assumed": assumed}
    model.provenance.update({name: note for name, note in notes.items() if note})
    return model
