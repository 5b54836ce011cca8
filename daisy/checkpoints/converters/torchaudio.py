"""Read state dicts of torchaudio's HuBERT, wav2vec 2.0 and WavLM, which have our names after a prefix.

Fields that the weights do not give are guessed by size, or given.

Source: torchaudio 2.5, torchaudio/models/wav2vec2/model.py (``hubert_base`` … , ``hubert_pretrain_base`` …,
``wavlm_base`` …), and wavlm_attention.py, which projects to queries, keys and values with one map.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from daisy.checkpoints.converters.guessing import guess_backbone
from daisy.checkpoints.converters.mapping import (
    HUBERT,
    HUBERT_OR_WAV2VEC2,
    POSITION,
    RELATIVE,
    WAVLM,
    assemble,
    describe_keys,
    fold_weight_norm,
    rename,
)
from daisy.checkpoints.converters.token_files import fit_tokens, make_exits_config
from daisy.checkpoints.model import Model
from daisy.models import Tokens

_POSITION = r"encoder\.transformer\.pos_conv_embed\.conv\."
_LAYER = r"(encoder\.transformer\.layers\.\d+\.attention)\."
_IN_ONE = re.compile(r"(.*\.attention)\.attention\.in_proj_(weight|bias)")
_OUTPUT = "output_layer."
_KNOWN = r"((?:feature_extractor|encoder)\..*)"


def recognises(state: dict[str, Any]) -> bool:
    """Tell whether a loaded file is a state dict of a torchaudio model."""
    return any(re.fullmatch(r"(wav2vec2\.)?encoder\.transformer\.layers\.0\..*", str(key)) for key in state)


def read(state: Mapping[str, Tensor], overrides: Mapping[str, str], tokens: Tokens | None = None) -> Model:
    """Build a model from a state dict.

    Args:
        state: state dict of torchaudio's model.
        overrides: fields that the weights do not give, as text.
        tokens: tokens of a fine-tuned model's output layer, which becomes a CTC exit at the last layer; None: it is
            left out.

    Raises:
        CheckpointError: where a weight has no place, or the tokens do not fit.
    """
    prefix = r"wav2vec2\." if any(key.startswith("wav2vec2.") for key in state) else ""
    rules = (
        (prefix + _POSITION + r"(?:weight_g|parametrizations\.weight\.original0)", POSITION + "g"),
        (prefix + _POSITION + r"(?:weight_v|parametrizations\.weight\.original1)", POSITION + "v"),
        (prefix + r"encoder\.transformer\.layers\.0\.attention\.rel_attn_embed\.weight", RELATIVE),
        (prefix + _LAYER + r"(gru_rel_pos_.*)", r"backbone.\1.gate.\2"),
        (prefix + _LAYER + r"attention\.out_proj\.(.*)", r"backbone.\1.out_proj.\2"),
        (prefix + _KNOWN, r"backbone.\1"),
        (r"mask_generator\.mask_embedding", "backbone.mask_embedding"),
        (r"logit_generator\.label_embeddings", "final_head.embeddings"),
        (r"logit_generator\.final_proj\.(weight|bias)", r"final_head.projection.\1"),
        (prefix + r"aux\.(weight|bias)", None if tokens is None else _OUTPUT + r"\1"),
    )
    tensors, left_out = rename(_split_projections(state), rules)
    fold_weight_norm(tensors)
    embeddings = tensors.get("final_head.embeddings")
    head = None if embeddings is None else {"num_units": embeddings.shape[0], "final_dim": embeddings.shape[1]}
    output = {part: tensors.pop(_OUTPUT + part) for part in ("weight", "bias") if _OUTPUT + part in tensors}
    backbone, assumed = guess_backbone(tensors, overrides)
    config = {"backbone": backbone, "final_head": head}
    if tokens is not None and output:
        fit_tokens(len(output["weight"]), tokens)
        config |= make_exits_config([backbone["num_layers"]], output["weight"], tokens)
        tensors |= {f"ctc.classifiers.{backbone['num_layers']}.{part}": value for part, value in output.items()}
    network = WAVLM if RELATIVE in tensors else HUBERT_OR_WAV2VEC2 if head is None else HUBERT
    return assemble(config, tensors, left_out=describe_keys(left_out), assumed=assumed, network=network)


def _split_projections(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Split the joint projection to queries, keys and values into three."""
    split: dict[str, Tensor] = {}
    for key, tensor in state.items():
        if match := _IN_ONE.fullmatch(str(key)):
            parts = zip("qkv", tensor.chunk(3), strict=True)
            split |= {f"{match[1]}.{name}_proj.{match[2]}": part for name, part in parts}
        else:
            split[key] = tensor
    return split
