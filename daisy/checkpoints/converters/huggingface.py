"""Hugging Face's HuBERT: a folder with ``config.json`` and ``model.safetensors`` or ``pytorch_model.bin``.

Source: transformers 4.57 and 5.24, transformers/models/hubert/{configuration_hubert,modeling_hubert}.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from daisy.checkpoints.converters.mapping import POSITION, Config, assemble, fold_weight_norm, rename
from daisy.checkpoints.converters.reading import read_state
from daisy.checkpoints.model import Model
from daisy.errors import CheckpointError

_PREFIX = r"(?:hubert\.)?"
_POSITION = _PREFIX + r"encoder\.pos_conv_embed\.conv\."
RULES = (
    (_PREFIX + r"masked_spec_embed", "backbone.mask_embedding"),
    (_PREFIX + r"(feature_extractor\..*)", r"backbone.\1"),
    (_PREFIX + r"(feature_projection\..*)", r"backbone.encoder.\1"),
    (_POSITION + r"bias", POSITION + "bias"),
    (_POSITION + r"(?:weight_g|parametrizations\.weight\.original0)", POSITION + "g"),
    (_POSITION + r"(?:weight_v|parametrizations\.weight\.original1)", POSITION + "v"),
    (_PREFIX + r"encoder\.(layer_norm\..*|layers\..*)", r"backbone.encoder.transformer.\1"),
    (r"(?:lm_head|projector|classifier)\.(?:weight|bias)|layer_weights", None),  # outputs of fine-tuned models
)
WEIGHTS = ("model.safetensors", "pytorch_model.bin")


def recognises(state: dict[str, Any]) -> bool:
    """Tell whether a loaded file holds Hugging Face's weights of a HuBERT."""
    return any(str(key).removeprefix("hubert.").startswith("encoder.layers.0.attention.") for key in state)


def read(folder: Path, allow_pickle: bool) -> Model:
    """Build a model from a folder as ``save_pretrained`` writes it."""
    config = _read_json(folder / "config.json")
    if config.get("model_type") != "hubert":
        raise CheckpointError(f"config.json describes a model of type {config.get('model_type')!r}, not hubert")
    weights = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if weights is None:
        raise CheckpointError(f"has no weights: neither {' nor '.join(WEIGHTS)}")
    tensors = rename(read_state(weights, allow_pickle), RULES)
    fold_weight_norm(tensors)
    return assemble({"backbone": _read_backbone_fields(config, folder)}, tensors)


def _read_backbone_fields(config: Config, folder: Path) -> Config:
    for option, supported in (
        ("hidden_act", "gelu"),
        ("feat_extract_activation", "gelu"),
        ("feat_proj_layer_norm", True),
    ):
        value = config.get(option, supported)
        if value != supported:
            raise CheckpointError(f"HuBERT with {option}={value} is not supported, only {supported}")
    if config.get("conv_pos_batch_norm"):
        raise CheckpointError("HuBERT with conv_pos_batch_norm is not supported")
    preprocessor = folder / "preprocessor_config.json"
    layer_norm = config.get("feat_extract_norm", "group") == "layer"
    normalize = _read_json(preprocessor).get("do_normalize", layer_norm) if preprocessor.is_file() else layer_norm
    conv = HF_CONV | {key: config[key] for key in HF_CONV if key in config}
    return {
        "num_layers": config.get("num_hidden_layers", 12),
        "width": config.get("hidden_size", 768),
        "ffn_width": config.get("intermediate_size", 3072),
        "num_heads": config.get("num_attention_heads", 12),
        "pre_norm": bool(config.get("do_stable_layer_norm", False)),
        "conv_layers": list(zip(conv["conv_dim"], conv["conv_kernel"], conv["conv_stride"], strict=True)),
        "conv_norm": "layer" if layer_norm else "group",
        "conv_bias": bool(config.get("conv_bias", False)),
        "pos_kernel": config.get("num_conv_pos_embeddings", 128),
        "pos_groups": config.get("num_conv_pos_embedding_groups", 16),
        "normalize": bool(normalize),
    }


HF_CONV = {"conv_dim": [512] * 7, "conv_kernel": [10, 3, 3, 3, 3, 2, 2], "conv_stride": [5, 2, 2, 2, 2, 2, 2]}


def _read_json(path: Path) -> Config:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"has no {path.name}: not a Hugging Face model") from None
    except ValueError as error:
        raise CheckpointError(f"{path.name} is not JSON ({error})") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path.name} holds no object")
    return content
