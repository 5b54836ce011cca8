"""Read the encoder of Hugging Face's Whisper from a folder with ``config.json`` and weights; the decoder is left out.

Source: transformers 4.57, transformers/models/whisper/{configuration_whisper,modeling_whisper}.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from daisy.checkpoints.converters.huggingface_folder import PREPROCESSORS, read_json, read_weights
from daisy.checkpoints.converters.mapping import Config, assemble, describe_keys, rename
from daisy.checkpoints.model import Model
from daisy.errors import CheckpointError
from daisy.models.whisper_config import FFT_SIZE, HOP_SAMPLES

NETWORK = "Whisper's encoder"
_LAYER = r"(?:model\.)?encoder\.layers\.(\d+)\."
_OUR_LAYER = r"backbone.layers.\1."
RULES = (
    (r"(?:model\.)?encoder\.(conv[12]\.(?:weight|bias))", r"backbone.\1"),
    (r"(?:model\.)?encoder\.embed_positions\.weight", "backbone.positions"),
    (r"(?:model\.)?encoder\.(layer_norm\.(?:weight|bias))", r"backbone.\1"),
    (_LAYER + r"self_attn\.((?:[kvq]|out)_proj\.(?:weight|bias))", _OUR_LAYER + r"attention.\2"),
    (_LAYER + r"self_attn_layer_norm\.(weight|bias)", _OUR_LAYER + r"layer_norm.\2"),
    (_LAYER + r"fc1\.(weight|bias)", _OUR_LAYER + r"feed_forward.intermediate_dense.\2"),
    (_LAYER + r"fc2\.(weight|bias)", _OUR_LAYER + r"feed_forward.output_dense.\2"),
    (_LAYER + r"final_layer_norm\.(weight|bias)", _OUR_LAYER + r"final_layer_norm.\2"),
    (r"(?:model\.)?decoder\..*|proj_out\.weight|(?:projector|classifier)\.(?:weight|bias)|layer_weights", None),
)
ONLY = {"activation_function": "gelu"}
"""Options that change the computation, with the one value that is supported."""
NONE_OF = ("pruned_heads", "quantization_config")
SPECTRA = {"n_fft": FFT_SIZE, "hop_length": HOP_SAMPLES, "sampling_rate": 16000, "dither": 0.0, "do_normalize": False}
"""Values that the feature extractor must have, where it gives any."""


def read(folder: Path, allow_pickle: bool) -> Model:
    """Build a model from a folder as made by ``save_pretrained``.

    Raises:
        CheckpointError: on an option that changes the computation and is not supported.
    """
    config = read_json(folder / "config.json")
    backbone = read_backbone_fields(config)
    assumed = check_spectra(folder, backbone)
    tensors, left_out = rename(read_weights(folder, allow_pickle), RULES, NETWORK)
    add_key_biases(tensors)
    return assemble({"backbone": backbone}, tensors, left_out=describe_keys(left_out), assumed=assumed, network=NETWORK)


def read_backbone_fields(config: Config) -> Config:
    """Read the fields of `WhisperConfig` from ``config.json``."""
    for option, supported in ONLY.items():
        if (value := config.get(option, supported)) != supported:
            raise CheckpointError(f"Whisper with {option}={value} is not supported, only {supported}")
    for option in NONE_OF:
        if config.get(option):
            raise CheckpointError(f"Whisper with {option} is not supported")
    return {
        "kind": "whisper",
        "num_layers": config.get("encoder_layers", 4),
        "width": config.get("d_model", 384),
        "ffn_width": config.get("encoder_ffn_dim", 1536),
        "num_heads": config.get("encoder_attention_heads", 6),
        "num_mels": config.get("num_mel_bins", 80),
        "window_frames": config.get("max_source_positions", 1500),
    }


def check_spectra(folder: Path, backbone: Config) -> str:
    """Check that the feature extractor makes the same spectra as ours; without one, return what was assumed.

    Raises:
        CheckpointError: where its spectra differ.
    """
    for name in PREPROCESSORS:
        if not (folder / name).is_file():
            continue
        content: Any = read_json(folder / name)
        content = content.get("feature_extractor") if name == PREPROCESSORS[1] else content
        if not isinstance(content, dict):
            continue
        seconds = backbone["window_frames"] * 2 * HOP_SAMPLES // 16000
        for option, wanted in {**SPECTRA, "feature_size": backbone["num_mels"], "chunk_length": seconds}.items():
            if (value := content.get(option, wanted)) != wanted:
                raise CheckpointError(f"{name}: Whisper with {option}={value} is not supported, only {wanted}")
        return ""
    return f"Whisper's own spectra: there is no {PREPROCESSORS[0]}, which would tell"


def add_key_biases(tensors: dict[str, Tensor]) -> None:
    """Add key biases of 0, which Whisper does not have."""
    for key in [key for key in tensors if key.endswith(".k_proj.weight")]:
        tensors[key.removesuffix("weight") + "bias"] = torch.zeros(len(tensors[key]))
