"""Read fairseq's configuration of a HuBERT or its kin: where a checkpoint keeps it, and which of our fields it gives.

Source: fairseq 0.12.2, fairseq/models/hubert/{hubert,hubert_asr}.py, fairseq/tasks/hubert_pretraining.py, and
fairseq/models/wav2vec/{wav2vec2,wav2vec2_asr}.py, fairseq/tasks/audio_{pretraining,finetuning}.py,
examples/data2vec/models/data2vec_audio.py;
for WavLM's options, in its own WavLMConfig: microsoft/unilm, wavlm/WavLM.py, in s3prl 0.4.18;
for ``conv_pos_batch_norm``: fairseq's main branch, fairseq/models/wav2vec/wav2vec2.py.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from typing import Any

from daisy.checkpoints.converters.mapping import DATA2VEC, HUBERT, HUBERT_OR_WAV2VEC2, WAV2VEC2, WAVLM, Config
from daisy.checkpoints.converters.reading import to_plain
from daisy.errors import CheckpointError
from daisy.models.lengths import HUBERT_CONV

ONLY = {"activation_fn": "gelu", "layer_type": "transformer", "quantize_input": False, "crop_seq_to_multiple": 1}
"""Options that change the computation, with the one value that is supported."""
NETWORKS = {"hubert": HUBERT, "wav2vec2": WAV2VEC2, "data2vec_audio": DATA2VEC}
"""Networks by the name of fairseq's pre-training model, which is in ``_name``, formerly ``arch``."""
EXTRACTOR_MODES = {"default": "group", "layer_norm": "layer"}


def tells_its_shape(state: dict[str, Any]) -> bool:
    """Tell whether a fairseq checkpoint has a configuration."""
    return bool(to_plain(state.get("cfg")) or to_plain(state.get("args")))


def read_configuration(state: dict[str, Any]) -> tuple[Config, Config]:
    """Read the network's configuration from ``cfg``, the older ``args``, or a fine-tuned model's own configuration.

    Args:
        state: a loaded checkpoint.

    Returns:
        fairseq's configurations of the model and of the task.

    Raises:
        CheckpointError: where there is no configuration.
    """
    source = to_plain(state.get("cfg")) or to_plain(state.get("args"))
    if not isinstance(source, dict):
        raise CheckpointError("holds neither cfg nor args: not a whole fairseq checkpoint")
    source = _resolve(source, source)
    model_cfg, task_cfg = _split(source)
    inner = model_cfg.get("w2v_args")
    if inner:
        inner_model, inner_task = _split(inner)
        normalize = model_cfg.get("normalize")
        return inner_model, inner_task if normalize is None else {**inner_task, "normalize": normalize}
    return model_cfg, task_cfg


def name_network(model_cfg: Config | None, keys: Iterable[str]) -> str:
    """Tell which network a checkpoint holds: by its name, or else by weights that only it or its pre-training has.

    Args:
        model_cfg: configuration of the pre-trained model; None where there is none.
        keys: names of the weights.

    Returns:
        The network's name for users.
    """
    names = list(keys)
    if any(".self_attn.grep_" in key for key in names):
        return WAVLM
    name = str((model_cfg or {}).get("_name") or (model_cfg or {}).get("arch") or "")
    known = next((network for key, network in NETWORKS.items() if name.startswith(key)), None)
    if known is not None:
        return known
    if "encoder.pos_conv.0.0.weight" in names:
        return DATA2VEC
    if any(key.startswith(("quantizer.", "project_q.")) for key in names):
        return WAV2VEC2
    return HUBERT if model_cfg or "label_embs_concat" in names else HUBERT_OR_WAV2VEC2


def read_labels(state: dict[str, Any]) -> str | None:
    """Read the name of a fine-tuned model's labels, such as "ltr"; None where the checkpoint has none."""
    source = to_plain(state.get("cfg")) or to_plain(state.get("args"))
    labels = _split(source)[1].get("labels") if isinstance(source, dict) else None
    labels = labels[0] if isinstance(labels, list) and labels else labels
    return labels if isinstance(labels, str) and labels.isidentifier() else None


def read_blank_weight(state: dict[str, Any]) -> tuple[float, str]:
    """Read how a fine-tuned model changes the logit of token 0: a number, and whether to "add" or "set" it."""
    model_cfg = _split(to_plain(state.get("cfg")) or to_plain(state.get("args")))[0]
    return float(model_cfg.get("blank_weight") or 0), str(model_cfg.get("blank_mode", "add"))


def _resolve(node: Any, root: Config) -> Any:
    """Replace OmegaConf's references, such as "${task.normalize}", by the values that they refer to."""
    if isinstance(node, dict):
        return {key: _resolve(value, root) for key, value in node.items()}
    reference = re.fullmatch(r"\$\{(\w+)\.(\w+)\}", node) if isinstance(node, str) else None
    if reference is None:
        return node
    section = root.get(reference[1])
    return section.get(reference[2]) if isinstance(section, dict) else None


def _split(source: Config) -> tuple[Config, Config]:
    nested = isinstance(source.get("model"), dict)
    return (source["model"], source.get("task") or {}) if nested else (source, source)


def read_backbone_fields(model_cfg: Config, task_cfg: Config, network: str = HUBERT) -> Config:
    """Read the fields of `BackboneConfig` from fairseq's configuration; ``network`` is its name for users.

    Raises:
        CheckpointError: on an option of fairseq's that changes the computation and is not supported.
    """
    for option, supported in ONLY.items():
        if (value := model_cfg.get(option, supported)) != supported:
            raise CheckpointError(f"{network} with {option}={value} is not supported, only {supported}")
    mode = model_cfg.get("extractor_mode", "default")
    if mode not in EXTRACTOR_MODES:
        raise CheckpointError(f"extractor_mode must be one of {', '.join(EXTRACTOR_MODES)}, found {mode!r}")
    fields = {
        "num_layers": model_cfg.get("encoder_layers", 12),
        "width": model_cfg.get("encoder_embed_dim", 768),
        "ffn_width": model_cfg.get("encoder_ffn_embed_dim", 3072),
        "num_heads": model_cfg.get("encoder_attention_heads", 12),
        "pre_norm": bool(model_cfg.get("layer_norm_first", False)),
        "conv_layers": parse_conv_layers(model_cfg.get("conv_feature_layers")),
        "conv_norm": EXTRACTOR_MODES[mode],
        "conv_bias": bool(model_cfg.get("conv_bias", False)),
        "pos_kernel": model_cfg.get("conv_pos", 128),
        "pos_groups": model_cfg.get("conv_pos_groups", 16),
        "pos_batch_norm": bool(model_cfg.get("conv_pos_batch_norm", False)),
        "normalize": bool(task_cfg.get("normalize", False)),
        "sample_rate": task_cfg.get("sample_rate", 16000),
    }
    if model_cfg.get("relative_position_embedding"):
        if not model_cfg.get("gru_rel_pos"):
            raise CheckpointError(f"{network} with relative_position_embedding without gru_rel_pos is not supported")
        fields["relative_buckets"] = model_cfg.get("num_buckets", 320)
        fields["relative_max_distance"] = model_cfg.get("max_distance", 1280)
    if (depth := model_cfg.get("pos_conv_depth", 1)) > 1:
        fields |= {"pos_stack": depth, "pos_kernel": max(3, fields["pos_kernel"] // depth), "pos_batch_norm": False}
    return fields


def parse_conv_layers(text: str | None) -> tuple[tuple[int, int, int], ...]:
    """Parse fairseq's Python expression for the convolutions, "[(512,10,5)] + [(512,3,2)] * 4", without running it.

    Args:
        text: the expression; None: HuBERT's seven convolutions.

    Returns:
        (channels, kernel, stride) of each convolution.

    Raises:
        CheckpointError: where the expression is of another form.
    """
    if text is None:
        return HUBERT_CONV

    def value(node: ast.expr) -> Any:
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            return value(node.left) + value(node.right)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
            return value(node.left) * value(node.right)
        return ast.literal_eval(node)

    try:
        layers = value(ast.parse(text.strip(), mode="eval").body)
        return tuple((int(c), int(k), int(s)) for c, k, s in layers)
    except (ValueError, TypeError, SyntaxError):
        raise CheckpointError(f"conv_feature_layers is not a list of (channels, kernel, stride): {text!r}") from None
