"""Read state dicts of the public code: Conformers with exits by Wright et al. (arXiv:2309.09546), and Splitformers.

Source: augustgw/early-exit-transformer, models/model/early_exit.py, ``Early_conformer``, ``Splitformer`` and
``full_conformer``, which has attention decoders beside CTC.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from daisy.checkpoints.converters.mapping import NO_WEIGHT, assemble, describe_keys, rename
from daisy.checkpoints.converters.token_files import fit_tokens
from daisy.checkpoints.model import Model
from daisy.errors import CheckpointError, unknown_name
from daisy.models import ConformerConfig, CTCHeadsConfig, DecodersConfig, Tokens

CAN_BE_GIVEN = ("num_heads",)
BEGIN, END = 1, 2
"""Tokens that texts begin and end with in the public code."""
CONVOLUTION = "conv_subsample.sequential.0.weight"
LAYER = "conformer.0.conformer_layers.0."


def recognises(state: Mapping[str, Any]) -> bool:
    """Tell whether a loaded file is a state dict of this code."""
    return CONVOLUTION in state and LAYER + "ffn1.sequential.1.weight" in state


def read(state: Mapping[str, Tensor], overrides: Mapping[str, str], tokens: Tokens | None) -> Model:
    """Build a model from a state dict.

    Args:
        state: weights by the public code's names.
        overrides: "num_heads", as text; 8 where it is not given.
        tokens: pieces of the SentencePiece model of the targets, which the file does not hold.

    Raises:
        CheckpointError: on weights that have no place, or where the tokens are missing or do not fit.
    """
    if unknown := [name for name in overrides if name not in CAN_BE_GIVEN]:
        raise CheckpointError(unknown_name("field", unknown[0], CAN_BE_GIVEN))
    shape = _read_shape(state, overrides)
    tensors, left_out = rename(state, _make_rules(shape), network="Conformer")
    for key in [key for key in tensors if key.endswith("running_mean")]:  # counters, which are not read
        tensors[key.replace("running_mean", "num_batches_tracked")] = torch.zeros(())
    ends = tuple(shape.block_ends)
    classifier = tensors.get(f"ctc.classifiers.{ends[0]}.weight")
    if classifier is None:
        raise CheckpointError("has no classifier at its first exit: a model with one exit at the end is not read")
    if fit_tokens(len(classifier), tokens) is None or tokens is None:
        raise CheckpointError("weights do not tell what they write: the SentencePiece model is wanted", remedy="tokens")
    exits = CTCHeadsConfig(layers=ends, width=shape.width, num_tokens=len(classifier), blank=tokens.blank)
    assumed = "features without logarithm and padding that is heard, as in the public code"
    if "num_heads" not in overrides:
        assumed += f"; {shape.num_heads} attention heads: the weights do not tell"
    config = {
        "backbone": shape.to_dict(),
        "ctc": dataclasses.asdict(exits),
        "tokens": tokens.to_dict(),
    }
    if "decoders.embedding.weight" in tensors:
        config["decoders"] = dataclasses.asdict(_read_decoders(tensors, exits, shape.num_heads))
    return assemble(config, tensors, left_out=describe_keys(left_out), assumed=assumed)


def _read_shape(state: Mapping[str, Tensor], overrides: Mapping[str, str]) -> ConformerConfig:
    width, num_mels, _ = state[CONVOLUTION].shape
    blocks = _count(state, r"conformer\.(\d+)\.")
    block_layers = _count(state, r"conformer\.0\.conformer_layers\.(\d+)\.")
    if not overrides.get("num_heads", "8").isdecimal():
        raise CheckpointError(f"num_heads must be a whole number, found {overrides['num_heads']!r}")
    shape = ConformerConfig(
        num_layers=blocks * block_layers,
        width=width,
        ffn_width=len(state[LAYER + "ffn1.sequential.1.weight"]),
        num_heads=int(overrides.get("num_heads", "8")),
        kernel=state[LAYER + "conv_module.sequential.2.weight"].shape[-1],
        block_layers=block_layers,
        split_blocks=(1, blocks) if any(key.startswith("conformer_parallel.") for key in state) else (),
        num_mels=num_mels,
    ).as_published()
    shape.validate()
    return shape


def _read_decoders(tensors: Mapping[str, Tensor], exits: CTCHeadsConfig, num_heads: int) -> DecodersConfig:
    first = f"decoders.blocks.{exits.layers[0]}."
    return DecodersConfig(
        layers=exits.layers,
        width=exits.width,
        num_tokens=exits.num_tokens,
        begin=BEGIN,
        end=END,
        num_blocks=_count(tensors, re.escape(first) + r"(\d+)\."),
        num_heads=num_heads,
        ffn_width=len(tensors[first + "0.linear1.weight"]),
    )


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    """Return one more than the largest number in the names that match a pattern."""
    return 1 + max(int(match[1]) for key in state if (match := re.match(pattern, key)))


def _make_rules(shape: ConformerConfig) -> list[tuple[str, str | None]]:
    """Make the rules from names that number blocks to ours, which number layers."""
    rules: list[tuple[str, str | None]] = [
        (r"positional_encoder(?:_[12])?\.pe", NO_WEIGHT),
        (r"conv_subsample\.sequential\.([01])\.(weight|bias)", r"backbone.subsampling.\1.\2"),
        (r"emb\.weight", "decoders.embedding.weight"),
        (r"layer_norm\.(weight|bias)", r"decoders.norm.\1"),
        (r"decoders\.\d+\.norm\.(?:weight|bias)", NO_WEIGHT),  # the shared norm, under each decoder's name
    ]
    for block, end in enumerate(shape.block_ends):
        rules.append((rf"linears(?:_1)?\.{block}\.(weight|bias)", rf"ctc.classifiers.{end}.\1"))
        rules.append((rf"linears_2\.{block}\.(weight|bias)", rf"decoders.classifiers.{end}.\1"))
        rules.append((rf"decoders\.{block}\.layers\.(.*)", rf"decoders.blocks.{end}.\1"))
        for layer in range(shape.block_layers):
            number = end - shape.block_layers + layer
            rules.append((rf"conformer\.{block}\.conformer_layers\.{layer}\.(.*num_batches_tracked)", NO_WEIGHT))
            rules.append((rf"conformer\.{block}\.conformer_layers\.{layer}\.(.*)", rf"backbone.layers.{number}.\1"))
    for index, block in enumerate(shape.split_blocks):
        rules.append((rf"conformer_parallel\.{index}\.conformer_layers\.0\.(.*num_batches_tracked)", NO_WEIGHT))
        rules.append((rf"conformer_parallel\.{index}\.conformer_layers\.0\.(.*)", rf"backbone.half_rate.{block}.\1"))
    return rules
