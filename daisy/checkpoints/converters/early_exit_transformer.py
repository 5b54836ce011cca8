"""Conformers and Splitformers of Wright et al.'s public code: state dicts without a configuration.

Source of names: augustgw/early-exit-transformer @7adad07, models/model/early_exit.py (``Early_conformer``,
``Splitformer``, and ``full_conformer``, which has attention decoders beside).
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from daisy.checkpoints.converters.mapping import NO_WEIGHT, Config, assemble, describe_keys, rename
from daisy.checkpoints.converters.token_files import fit_tokens, make_exits_config
from daisy.checkpoints.model import Model
from daisy.errors import CheckpointError, unknown_name
from daisy.models import ConformerConfig, Tokens

FIRST = "conv_subsample.sequential.0.weight"
A_LAYER = re.compile(r"conformer\.(\d+)\.conformer_layers\.(\d+)\.self_attn\.in_proj_weight")
PARALLEL = re.compile(r"conformer_parallel\.(\d+)\.conformer_layers\.0\.self_attn\.in_proj_weight")
NUM_HEADS = 8
"""Of the public code's own command line; weights do not tell them."""


def recognises(state: Mapping[str, Any]) -> bool:
    """Tell whether a loaded file is a state dict of that code."""
    return FIRST in state and any(A_LAYER.fullmatch(str(key)) for key in state)


def read(state: Mapping[str, Tensor], overrides: Mapping[str, str], tokens: Tokens | None) -> Model:
    """Build a model.

    Args:
        state: the state dict.
        overrides: fields of `ConformerConfig` that weights do not tell, as text.
        tokens: of its outputs, which are pieces of a SentencePiece model that the file does not hold.

    Raises:
        CheckpointError: where there are no tokens, or something cannot be mapped.
    """
    head = "linears" if "linears.0.weight" in state else "linears_1"
    output = state.get(f"{head}.0.weight")
    if output is None:
        raise CheckpointError("has no output layer after each block, so no exits (early_zipformer has one at its end)")
    chosen = fit_tokens(output, tokens, None)
    if chosen is None:
        raise CheckpointError(
            f"its {len(output)} outputs are pieces of a SentencePiece model that it does not hold", remedy="tokens"
        )
    config = read_config(state, overrides)
    ends, per_block = list(config.block_ends), config.block_layers
    rules = (
        (r"positional_encoder(?:_\d)?\.pe", NO_WEIGHT),
        (r"conv_subsample\.sequential\.(\d+)\.(.*)", r"backbone.subsampling.\1.\2"),
        *(
            (
                rf"conformer\.{block}\.conformer_layers\.{place}\.(.*)",
                rf"backbone.layers.{block * per_block + place}.\1",
            )
            for block in range(len(ends))
            for place in range(per_block)
        ),
        *(
            (rf"conformer_parallel\.{place}\.conformer_layers\.0\.(.*)", rf"backbone.half_rate.{block}.\1")
            for place, block in enumerate(config.split_blocks)
        ),
        *((rf"{head}\.{block}\.(weight|bias)", rf"ctc.classifiers.{end}.\1") for block, end in enumerate(ends)),
        (r"linears_2\..*|decoders\..*|emb\.weight|layer_norm\..*", None),  # attention decoders
    )
    counted = {key: value.float() if key.endswith("num_batches_tracked") else value for key, value in state.items()}
    tensors, left_out = rename(counted, rules)
    parts = {"backbone": config.to_dict(), **make_exits_config(ends, output, chosen)}
    assumed = "" if "num_heads" in overrides else f"num_heads {NUM_HEADS}: the weights do not tell"
    return assemble(parts, tensors, left_out=describe_keys(left_out), assumed=assumed)


def read_config(state: Mapping[str, Tensor], overrides: Mapping[str, str]) -> ConformerConfig:
    """Read the shape from the weights; what they do not tell is the public code's choice.

    Raises:
        CheckpointError: where blocks are not alike.
    """
    blocks = [(int(match[1]), int(match[2])) for key in state if (match := A_LAYER.fullmatch(key))]
    num_blocks, per_block = max(blocks)[0] + 1, max(place for _, place in blocks) + 1
    if len(blocks) != num_blocks * per_block:
        raise CheckpointError(f"has {len(blocks)} Conformer layers in {num_blocks} blocks, which are not alike")
    parallel = sum(bool(PARALLEL.fullmatch(key)) for key in state)
    if parallel not in (0, 2):
        raise CheckpointError(f"has {parallel} parallel layers where Splitformer has two, at the first and last exit")
    width, num_mels, _ = state[FIRST].shape
    layer = "conformer.0.conformer_layers.0."
    config = ConformerConfig(
        num_layers=len(blocks),
        width=width,
        ffn_width=state[f"{layer}ffn1.sequential.1.weight"].shape[0],
        num_heads=NUM_HEADS,
        kernel=state[f"{layer}conv_module.sequential.2.weight"].shape[-1],
        block_layers=per_block,
        split_blocks=(1, num_blocks) if parallel else (),
        num_mels=num_mels,
    )
    return dataclasses.replace(config.as_published(), **_parse(overrides))


def _parse(overrides: Mapping[str, str]) -> Config:
    known = {field.name: str(field.type) for field in dataclasses.fields(ConformerConfig)}
    can_be_given = [name for name, kind in known.items() if kind == "bool" or name in ("num_heads", "sample_rate")]
    parsed: Config = {}
    for name, text in overrides.items():
        if name not in can_be_given:
            raise CheckpointError(unknown_name("field to set", name, can_be_given))
        try:
            parsed[name] = {"true": True, "false": False}[text.lower()] if known[name] == "bool" else int(text)
        except (KeyError, ValueError):
            raise CheckpointError(
                f"{name} must be {'true or false' if known[name] == 'bool' else 'a whole number'}, found {text!r}"
            ) from None
    return parsed
