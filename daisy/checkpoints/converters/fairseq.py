"""fairseq's HuBERT, pre-trained (``hubert``) and fine-tuned (``hubert_ctc``, ``hubert_seq2seq``).

Source of names and meanings: fairseq 0.12.2, fairseq/models/hubert/{hubert,hubert_asr}.py.
"""

from __future__ import annotations

import ast
import re
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from daisy.checkpoints.converters.mapping import (
    POSITION,
    Config,
    add_identity_projection,
    assemble,
    fold_weight_norm,
    rename,
)
from daisy.checkpoints.converters.reading import to_plain
from daisy.checkpoints.model import Model
from daisy.errors import CheckpointError
from daisy.models.lengths import HUBERT_CONV

_LAYER = r"encoder\.layers\.(\d+)\."
_OUR_LAYER = r"backbone.encoder.transformer.layers.\1."
BACKBONE_RULES = (
    (r"mask_emb", "backbone.mask_embedding"),
    (r"feature_extractor\.conv_layers\.(\d+)\.0\.(weight|bias)", r"backbone.feature_extractor.conv_layers.\1.conv.\2"),
    (
        r"feature_extractor\.conv_layers\.(\d+)\.2\.(?:1\.)?(weight|bias)",
        r"backbone.feature_extractor.conv_layers.\1.layer_norm.\2",
    ),
    (r"layer_norm\.(weight|bias)", r"backbone.encoder.feature_projection.layer_norm.\1"),
    (r"post_extract_proj\.(weight|bias)", r"backbone.encoder.feature_projection.projection.\1"),
    (r"encoder\.pos_conv\.0\.bias", POSITION + "bias"),
    (r"encoder\.pos_conv\.0\.(?:weight_g|parametrizations\.weight\.original0)", POSITION + "g"),
    (r"encoder\.pos_conv\.0\.(?:weight_v|parametrizations\.weight\.original1)", POSITION + "v"),
    (r"encoder\.layer_norm\.(weight|bias)", r"backbone.encoder.transformer.layer_norm.\1"),
    (_LAYER + r"self_attn\.([kvq]|out)_proj\.(weight|bias)", _OUR_LAYER + r"attention.\2_proj.\3"),
    (_LAYER + r"self_attn_layer_norm\.(weight|bias)", _OUR_LAYER + r"layer_norm.\2"),
    (_LAYER + r"fc1\.(weight|bias)", _OUR_LAYER + r"feed_forward.intermediate_dense.\2"),
    (_LAYER + r"fc2\.(weight|bias)", _OUR_LAYER + r"feed_forward.output_dense.\2"),
    (_LAYER + r"final_layer_norm\.(weight|bias)", _OUR_LAYER + r"final_layer_norm.\2"),
)
HEAD_RULES = (
    (r"final_proj\.(weight|bias)", r"final_head.projection.\1"),
    (r"label_embs_concat", "final_head.embeddings"),
    (r"target_glu\.0\.(weight|bias)", r"target_glu.\1"),
    (r"exits\.(heads\..*)", r"\1"),  # of the plugin's pre-training
)
_OURS = r"backbone\.encoder\.transformer\.layers\.(\d+)\."
_THEIRS = r"encoder.layers.\1."
THEIR_NAMES = (
    (r"backbone\.mask_embedding", "mask_emb"),
    (r"backbone\.feature_extractor\.conv_layers\.(\d+)\.conv\.(.*)", r"feature_extractor.conv_layers.\1.0.\2"),
    (
        r"backbone\.feature_extractor\.conv_layers\.(\d+)\.layer_norm\.(.*)",
        r"feature_extractor.conv_layers.\1.2.\2",
    ),
    (r"backbone\.encoder\.feature_projection\.layer_norm\.(.*)", r"layer_norm.\1"),
    (r"backbone\.encoder\.feature_projection\.projection\.(.*)", r"post_extract_proj.\1"),
    (re.escape(POSITION) + "bias", "encoder.pos_conv.0.bias"),
    (re.escape(POSITION) + "([gv])", r"encoder.pos_conv.0.weight_\1"),
    (r"backbone\.encoder\.transformer\.layer_norm\.(.*)", r"encoder.layer_norm.\1"),
    (_OURS + r"attention\.(.*)", _THEIRS + r"self_attn.\2"),
    (_OURS + r"layer_norm\.(.*)", _THEIRS + r"self_attn_layer_norm.\2"),
    (_OURS + r"feed_forward\.intermediate_dense\.(.*)", _THEIRS + r"fc1.\2"),
    (_OURS + r"feed_forward\.output_dense\.(.*)", _THEIRS + r"fc2.\2"),
    (_OURS + r"final_layer_norm\.(.*)", _THEIRS + r"final_layer_norm.\2"),
    (r"final_head\.projection\.(.*)", r"final_proj.\1"),
    (r"final_head\.embeddings", "label_embs_concat"),
)
FINE_TUNED = re.compile(r"(?:w2v_encoder|encoder)\.w2v_model\.(.*)")
FINE_TUNED_HEAD = re.compile(r"w2v_encoder\.proj\.(weight|bias)|encoder\.proj\.(weight|bias)|decoder\..*")


def recognises(state: dict[str, Any]) -> bool:
    """Tell whether a loaded file is a fairseq checkpoint."""
    return isinstance(state.get("model"), dict) and ("cfg" in state or "args" in state)


def read(state: dict[str, Any]) -> Model:
    """Build a model from a loaded fairseq checkpoint."""
    model_cfg, task_cfg = read_configuration(state)
    return from_parts(model_cfg, task_cfg, strip_fine_tuning(state["model"]))


def read_configuration(state: dict[str, Any]) -> tuple[Config, Config]:
    """Read the HuBERT's configuration from ``cfg``, the older ``args``, or inside a fine-tuned model's.

    Args:
        state: a loaded checkpoint.

    Returns:
        fairseq's configurations of the model and of the task.

    Raises:
        CheckpointError: where there is none.
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


def _resolve(node: Any, root: Config) -> Any:
    """Replace OmegaConf's references, such as "${task.normalize}", by what they refer to."""
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


def strip_fine_tuning(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Take the HuBERT out of a fine-tuned model, without its output layer or decoder; others stay as they are.

    Raises:
        CheckpointError: on weights that belong to neither.
    """
    if not any(FINE_TUNED.fullmatch(key) for key in weights):
        return weights
    inner = {match[1]: value for key, value in weights.items() if (match := FINE_TUNED.fullmatch(key))}
    rest = [key for key in weights if not FINE_TUNED.fullmatch(key) and not FINE_TUNED_HEAD.fullmatch(key)]
    if rest:
        raise CheckpointError(f"fine-tuned model with weights of no known place: {', '.join(rest[:4])}")
    return inner


def from_parts(model_cfg: Config, task_cfg: Config, weights: dict[str, Tensor]) -> Model:
    """Build a model from fairseq's model and task configuration and its weights under fairseq's names.

    Raises:
        CheckpointError: on options or weights that are not supported.
    """
    config: Config = {"backbone": read_backbone_fields(model_cfg, task_cfg)}
    tensors = rename(weights, BACKBONE_RULES + HEAD_RULES)
    fold_weight_norm(tensors)
    add_identity_projection(tensors, config["backbone"]["width"])
    config["final_head"] = _read_final_head(model_cfg, tensors)
    config["heads"] = _read_exit_heads(tensors)
    return assemble(config, tensors)


def read_backbone_fields(model_cfg: Config, task_cfg: Config) -> Config:
    """Read the fields of `BackboneConfig` from fairseq's configuration.

    Raises:
        CheckpointError: on an option of fairseq's that changes the computation and is not supported.
    """
    for option, supported in (
        ("activation_fn", "gelu"),
        ("layer_type", "transformer"),
        ("pos_conv_depth", 1),
        ("conv_pos_batch_norm", False),
    ):
        value = model_cfg.get(option, supported)
        if value != supported:
            raise CheckpointError(f"HuBERT with {option}={value} is not supported, only {supported}")
    return {
        "num_layers": model_cfg.get("encoder_layers", 12),
        "width": model_cfg.get("encoder_embed_dim", 768),
        "ffn_width": model_cfg.get("encoder_ffn_embed_dim", 3072),
        "num_heads": model_cfg.get("encoder_attention_heads", 12),
        "pre_norm": bool(model_cfg.get("layer_norm_first", False)),
        "conv_layers": parse_conv_layers(model_cfg.get("conv_feature_layers")),
        "conv_norm": "layer" if model_cfg.get("extractor_mode", "default") == "layer_norm" else "group",
        "conv_bias": bool(model_cfg.get("conv_bias", False)),
        "pos_kernel": model_cfg.get("conv_pos", 128),
        "pos_groups": model_cfg.get("conv_pos_groups", 16),
        "normalize": bool(task_cfg.get("normalize", False)),
        "sample_rate": int(task_cfg.get("sample_rate", 16000)),
    }


def parse_conv_layers(text: str | None) -> tuple[tuple[int, int, int], ...]:
    """Parse fairseq's Python expression of the convolutions, "[(512,10,5)] + [(512,3,2)] * 4", without running it.

    Args:
        text: the expression; HuBERT's own seven convolutions where it is None.

    Returns:
        (channels, kernel, stride) of each.

    Raises:
        CheckpointError: where it is another expression.
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


def weights(model: Model) -> dict[str, Tensor]:
    """Rename a model's backbone and final head to fairseq's names: what `from_parts` reads.

    Raises:
        CheckpointError: where fairseq's HuBERT has no place for a weight.
    """
    parts = nn.ModuleDict({name: part for name, part in model.parts().items() if name != "heads"})
    tensors = {key: value.detach().clone() for key, value in parts.state_dict().items()}
    kernel = tensors.pop(POSITION + "weight")  # fairseq's is normed over all but its last dimension
    tensors[POSITION + "v"], tensors[POSITION + "g"] = (
        kernel,
        torch.linalg.vector_norm(kernel, dim=(0, 1), keepdim=True),
    )
    if model.backbone.config.conv_layers[-1][0] == model.backbone.config.width:
        projection = "backbone.encoder.feature_projection.projection."
        eye = torch.eye(model.backbone.config.width)
        if not torch.equal(tensors[projection + "weight"], eye) or tensors[projection + "bias"].any():
            raise CheckpointError("has a projection where fairseq has none: its convolutions are as wide as its layers")
        del tensors[projection + "weight"], tensors[projection + "bias"]
    named = {_rename_to_theirs(key): value for key, value in tensors.items()}
    if model.backbone.config.conv_norm == "group":
        return named
    return {re.sub(r"(conv_layers\.\d+\.2)\.", r"\1.1.", key): value for key, value in named.items()}


def _rename_to_theirs(key: str) -> str:
    for pattern, replacement in THEIR_NAMES:
        if match := re.fullmatch(pattern, key):
            return match.expand(replacement)
    raise CheckpointError(f"{key} has no place in fairseq's HuBERT")


def _read_final_head(model_cfg: Config, tensors: dict[str, Tensor]) -> Config | None:
    """Configure HuBERT's own head and bring its tensors into our form; None where it has none."""
    embeddings = tensors.get("final_head.embeddings")
    projection = tensors.get("final_head.projection.weight")
    if embeddings is None or projection is None:
        for key in [key for key in tensors if key.startswith(("final_head.", "target_glu."))]:
            del tensors[key]
        return None
    if "target_glu.weight" in tensors:
        gated = F.linear(embeddings, tensors.pop("target_glu.weight"), tensors.pop("target_glu.bias"))
        embeddings = tensors["final_head.embeddings"] = F.glu(gated)
    final_dim = embeddings.shape[1]
    if projection.shape[0] != final_dim:
        raise CheckpointError(
            f"predicts {projection.shape[0] // final_dim} sets of units at once; only one set is supported"
        )
    return {
        "final_dim": final_dim,
        "num_units": embeddings.shape[0],
        "temperature": float(model_cfg.get("logit_temp", 0.1)),
    }


def _read_exit_heads(tensors: dict[str, Tensor]) -> Config | None:
    """Configure the exit heads of the plugin's pre-training; None where there are none."""
    first = tensors.get("heads.units.0.weight")
    if first is None:
        return None
    num_layers = len([key for key in tensors if re.fullmatch(r"heads\.units\.\d+\.weight", key)])
    return {"num_layers": num_layers, "width": first.shape[1], "num_units": first.shape[0]}
