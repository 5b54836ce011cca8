"""Read Hugging Face's HuBERT and kin: folders with ``config.json``, weights, and usually ``preprocessor_config.json``.

wav2vec 2.0 computes the same as HuBERT; modules only for its pre-training (quantizer, projections) are left out.

Source: transformers 4.57 and 5.20, transformers/models/hubert/{configuration_hubert,modeling_hubert}.py,
transformers/models/wavlm/{configuration_wavlm,modeling_wavlm}.py,
transformers/models/data2vec/{configuration_data2vec_audio,modeling_data2vec_audio}.py and
transformers/models/wav2vec2/{modeling_wav2vec2,feature_extraction_wav2vec2}.py (``zero_mean_unit_var_norm``: 1e-7).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from torch import Tensor

from daisy.checkpoints.converters import huggingface_whisper
from daisy.checkpoints.converters.huggingface_ctc import is_head, read_exits
from daisy.checkpoints.converters.huggingface_folder import (
    PREPROCESSORS,
    find_snapshot,
    name_model,
    read_json,
    read_weights,
)
from daisy.checkpoints.converters.mapping import (
    BATCH_NORM,
    DATA2VEC,
    HUBERT,
    NO_WEIGHT,
    POSITION,
    POSITION_STACK,
    RELATIVE,
    WAV2VEC2,
    WAVLM,
    Config,
    assemble,
    describe_keys,
    fold_weight_norm,
    rename,
)
from daisy.checkpoints.model import Model
from daisy.errors import CheckpointError
from daisy.models import Tokens, WhisperConfig

_POSITION = r"encoder\.pos_conv_embed\.conv\."
_BATCH_NORM = r"encoder\.pos_conv_embed\.batch_norm\."
NETWORK_RULES = (
    (r"masked_spec_embed", "backbone.mask_embedding"),
    (r"(feature_extractor\..*)", r"backbone.\1"),
    (r"(feature_projection\..*)", r"backbone.encoder.\1"),
    (_POSITION + r"(weight|bias)", POSITION + r"\1"),
    (_POSITION + r"(?:weight_g|parametrizations\.weight\.original0)", POSITION + "g"),
    (_POSITION + r"(?:weight_v|parametrizations\.weight\.original1)", POSITION + "v"),
    (r"encoder\.pos_conv_embed\.layers\.(\d+)\.conv\.(weight|bias)", POSITION_STACK + r"\1.\2"),
    (_BATCH_NORM + r"num_batches_tracked", NO_WEIGHT),
    (_BATCH_NORM + r"(.*)", BATCH_NORM + r"\1"),
    (r"encoder\.layers\.0\.attention\.rel_attn_embed\.weight", RELATIVE),
    (r"(encoder)\.(layers\.\d+\.attention)\.(gru_rel_pos_.*)", r"backbone.\1.transformer.\2.gate.\3"),
    (r"encoder\.(layer_norm\..*|layers\..*)", r"backbone.encoder.transformer.\1"),
)
RULES = (
    *NETWORK_RULES,
    # Modules on top of the network: in fine-tuned models, and in ContentVec and other pre-trained ones.
    (r"(?:lm_head|projector|classifier|final_proj)\.(?:weight|bias)|layer_weights|label_embs_concat", None),
)
NETWORKS = {"hubert": HUBERT, "wav2vec2": WAV2VEC2, "wavlm": WAVLM, "data2vec-audio": DATA2VEC}
"""Networks by transformers' ``model_type``."""
PREFIX = r"(?:hubert|wav2vec2|wavlm|data2vec_audio)\."
PREFIXED_RULES = (
    *((PREFIX + pattern, replacement) for pattern, replacement in NETWORK_RULES),
    (rf"(?!{PREFIX}).*", None),
)
"""Where names begin with the prefix, other names are not part of the network; they may be of a second encoder."""
NORMALIZE_EPS = 1e-7
CONVOLUTIONS = {"conv_dim": [512] * 7, "conv_kernel": [10, 3, 3, 3, 3, 2, 2], "conv_stride": [5, 2, 2, 2, 2, 2, 2]}
ONLY = {
    "hidden_act": "gelu",
    "feat_extract_activation": "gelu",
}
"""Options that change the computation, with the one value that is supported."""
NONE_OF = ("adapter_attn_dim", "pruned_heads", "quantization_config")
"""Options that change the computation, which must be null or empty."""


def recognises(state: dict[str, Any]) -> bool:
    """Tell whether a loaded file holds Hugging Face's weights of a HuBERT."""
    return any(re.match(rf"(?:{PREFIX})?encoder\.layers\.0\.attention\.", str(key)) for key in state)


def read(folder: Path, allow_pickle: bool, tokens: Tokens | None = None) -> Model:
    """Build a model from a folder as made by ``save_pretrained`` or the hub's cache.

    Args:
        folder: folder of the model.
        allow_pickle: read files that hold pickled Python objects.
        tokens: tokens of the output layer; None: those of the folder's ``vocab.json``.
    """
    folder = find_snapshot(folder)
    config = read_json(folder / "config.json")
    if config.get("model_type") == WhisperConfig.kind:
        model = huggingface_whisper.read(folder, allow_pickle)
        model.provenance["converted_from"] = name_model(folder)
        return model
    if config.get("model_type") not in NETWORKS:
        raise CheckpointError(
            f"config.json describes a model of type {config.get('model_type')!r}; those that are read: "
            f"{', '.join((*NETWORKS, WhisperConfig.kind))}"
        )
    network = NETWORKS[config["model_type"]]
    fields = read_backbone_fields(config)
    heard, assumed = read_preprocessing(folder, fields["conv_norm"])
    state = read_weights(folder, allow_pickle)
    tensors, left_out = rename_weights(state, network)
    parts = {"backbone": {**fields, **heard}}
    exits = read_exits(state, config, folder, tokens)
    if exits is not None:
        described, classifiers, vocabulary = exits
        parts, tensors = {**parts, **described}, {**tensors, **classifiers}
        left_out = [key for key in left_out if not is_head(key)]
        assumed = "; ".join(note for note in (assumed, vocabulary) if note)
    model = assemble(parts, tensors, left_out=describe_keys(left_out), assumed=assumed, network=network)
    model.provenance["converted_from"] = name_model(folder)
    return model


def rename_weights(state: dict[str, Tensor], network: str = HUBERT) -> tuple[dict[str, Tensor], list[str]]:
    """Rename weights to our names, and list those that are not part of the network."""
    has_prefix = any(re.match(PREFIX, str(key)) for key in state)
    tensors, left_out = rename(state, PREFIXED_RULES if has_prefix else RULES, network)
    fold_weight_norm(tensors)
    return tensors, left_out


def read_backbone_fields(config: Config) -> Config:
    """Read the fields of `BackboneConfig` from ``config.json``, except those of the preprocessor.

    Raises:
        CheckpointError: on an option that changes the computation and is not supported.
    """
    network = NETWORKS[config.get("model_type", "hubert")]
    for option, supported in ONLY.items():
        if (value := config.get(option, supported)) != supported:
            raise CheckpointError(f"{network} with {option}={value} is not supported, only {supported}")
    # HuBERT's configuration has add_adapter, but its model ignores it.
    for option in NONE_OF if network == HUBERT else (*NONE_OF, "add_adapter"):
        if config.get(option):
            raise CheckpointError(f"{network} with {option} is not supported")
    norm = "layer" if network == DATA2VEC else config.get("feat_extract_norm", "group")
    if norm not in ("group", "layer"):
        raise CheckpointError(f"feat_extract_norm must be group or layer, found {norm!r}")
    conv = CONVOLUTIONS | {key: config[key] for key in CONVOLUTIONS if key in config}
    if len({len(values) for values in conv.values()}) > 1:
        counts = ", ".join(f"{name} has {len(values)} values" for name, values in conv.items())
        raise CheckpointError(f"config.json: {counts}: as many as convolutions are wanted of each")
    fields = {
        "num_layers": config.get("num_hidden_layers", 12),
        "width": config.get("hidden_size", 768),
        "ffn_width": config.get("intermediate_size", 3072),
        "num_heads": config.get("num_attention_heads", 12),
        "pre_norm": network != DATA2VEC and bool(config.get("do_stable_layer_norm", False)),
        "conv_layers": list(zip(conv["conv_dim"], conv["conv_kernel"], conv["conv_stride"], strict=True)),
        "conv_norm": norm,
        "conv_bias": bool(config.get("conv_bias", False)),
        "pos_kernel": config.get("num_conv_pos_embeddings", 128),
        "pos_groups": config.get("num_conv_pos_embedding_groups", 16),
        "pos_batch_norm": network == HUBERT and bool(config.get("conv_pos_batch_norm", False)),
        "projection_norm": network != HUBERT or bool(config.get("feat_proj_layer_norm", True)),
        "layer_norm_eps": config.get("layer_norm_eps", 1e-5),
    }
    if network == WAVLM:
        fields["relative_buckets"] = config.get("num_buckets", 320)
        fields["relative_max_distance"] = config.get("max_bucket_distance", 800)
    if network == DATA2VEC:  # in other networks this name is that of their kernel
        fields["pos_stack"] = config.get("num_conv_pos_embeddings", 5)
        fields["pos_kernel"] = config.get("conv_pos_kernel_size", 19)
    return fields


def read_preprocessing(folder: Path, conv_norm: str) -> tuple[Config, str]:
    """Read the preprocessing of the audio: its sample rate, and whether it is normalised.

    Args:
        folder: folder of the model.
        conv_norm: see `BackboneConfig`; without a file, it decides whether normalisation is assumed.

    Returns:
        The fields of `BackboneConfig`, and the end of a message that says what was assumed.
    """
    for name in PREPROCESSORS:
        if not (folder / name).is_file():
            continue
        content: Any = read_json(folder / name)
        if name == PREPROCESSORS[1]:
            content = content.get("feature_extractor")
        if isinstance(content, dict):  # defaults are those of Wav2Vec2FeatureExtractor
            return make_preprocessing(content.get("sampling_rate", 16000), bool(content.get("do_normalize", True))), ""
    normalize = conv_norm == "layer"
    assumed = f"sample_rate 16000, normalize {str(normalize).lower()}: there is no {PREPROCESSORS[0]}, which would tell"
    return make_preprocessing(16000, normalize), assumed


def make_preprocessing(sample_rate: float, normalize: bool) -> Config:
    """Make the fields of `BackboneConfig` for the preprocessing of the audio."""
    if isinstance(sample_rate, float) and sample_rate.is_integer():  # JSON distinguishes 16000 from 16000.0
        sample_rate = int(sample_rate)
    eps = {"normalize_eps": NORMALIZE_EPS} if normalize else {}
    return {"sample_rate": sample_rate, "normalize": normalize, **eps}
