"""Read fairseq's HuBERT, pre-trained (``hubert``) or fine-tuned (``hubert_ctc``, ``hubert_seq2seq``), and its kin.

wav2vec 2.0 has different names only for its pre-training modules. WavLM, as published by its authors, also has
fairseq's names.

Source of names: fairseq 0.12.2, fairseq/models/hubert/{hubert,hubert_asr}.py and
fairseq/models/wav2vec/{wav2vec2,wav2vec2_asr}.py; for batch norm before the positional convolution: fairseq's main
branch, fairseq/models/wav2vec/wav2vec2.py (``make_conv_pos``); for WavLM: microsoft/unilm, wavlm/{WavLM,modules}.py, in
s3prl 0.4.18.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from daisy.checkpoints.converters.fairseq_configuration import (
    name_network,
    read_backbone_fields,
    read_blank_weight,
    read_configuration,
    read_labels,
    tells_its_shape,
)
from daisy.checkpoints.converters.guessing import guess_backbone
from daisy.checkpoints.converters.label_sets import LabelSets, read_label_sets, take_final_head
from daisy.checkpoints.converters.mapping import (
    BATCH_NORM,
    HUBERT,
    HUBERT_OR_WAV2VEC2,
    NO_WEIGHT,
    POSITION,
    POSITION_STACK,
    RELATIVE,
    WAVLM,
    Config,
    add_identity_projection,
    assemble,
    describe_keys,
    fold_weight_norm,
    rename,
)
from daisy.checkpoints.converters.reading import to_plain
from daisy.checkpoints.converters.token_files import fit_tokens, make_exits_config, make_from_dictionary
from daisy.checkpoints.model import Model
from daisy.errors import CheckpointError
from daisy.models import BackboneConfig, Tokens
from daisy.models.config import FAIRSEQ_EPS

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
    (r"encoder\.pos_conv\.0\.(weight|bias)", POSITION + r"\1"),
    (r"encoder\.pos_conv\.batch_norm\.num_batches_tracked", NO_WEIGHT),
    (r"encoder\.pos_conv\.batch_norm\.(.*)", BATCH_NORM + r"\1"),
    (r"encoder\.pos_conv\.0\.(?:weight_g|parametrizations\.weight\.original0)", POSITION + "g"),
    (r"encoder\.pos_conv\.0\.(?:weight_v|parametrizations\.weight\.original1)", POSITION + "v"),
    (r"encoder\.pos_conv\.(\d+)\.0\.(weight|bias)", POSITION_STACK + r"\1.\2"),
    (r"encoder\.layer_norm\.(weight|bias)", r"backbone.encoder.transformer.layer_norm.\1"),
    (_LAYER + r"self_attn\.([kvq]|out)_proj\.(weight|bias)", _OUR_LAYER + r"attention.\2_proj.\3"),
    (r"encoder\.layers\.0\.self_attn\.relative_attention_bias\.weight", RELATIVE),
    (_LAYER + r"self_attn\.grep_linear\.(weight|bias)", _OUR_LAYER + r"attention.gate.gru_rel_pos_linear.\2"),
    (_LAYER + r"self_attn\.grep_a", _OUR_LAYER + "attention.gate.gru_rel_pos_const"),
    (_LAYER + r"self_attn_layer_norm\.(weight|bias)", _OUR_LAYER + r"layer_norm.\2"),
    (_LAYER + r"fc1\.(weight|bias)", _OUR_LAYER + r"feed_forward.intermediate_dense.\2"),
    (_LAYER + r"fc2\.(weight|bias)", _OUR_LAYER + r"feed_forward.output_dense.\2"),
    (_LAYER + r"final_layer_norm\.(weight|bias)", _OUR_LAYER + r"final_layer_norm.\2"),
)
HEAD_RULES = (
    (r"final_proj\.(weight|bias)", r"final_head.projection.\1"),
    (r"label_embs_concat", "final_head.embeddings"),
    (r"target_glu\.0\.(weight|bias)", r"target_glu.\1"),
    (r"exits\.(heads\..*)", r"\1"),  # from the plugin's pre-training
)
PRE_TRAINING_RULES = (
    (r"(?:quantizer|project_q|final_proj|target_glu)\..*", None),
    (r"_ema", None),  # data2vec's teacher, a moving average of the network
)
"""Rules for networks that predict no units."""
FINE_TUNED = re.compile(r"(?:w2v_encoder|encoder)\.w2v_model\.(.*)")
FINE_TUNED_HEAD = re.compile(r"w2v_encoder\.proj\.(weight|bias)|encoder\.proj\.(weight|bias)|decoder\..*")
OUTPUT_RULES = ((FINE_TUNED_HEAD.pattern, None),)
CTC_OUTPUT = "w2v_encoder.proj."
"""Prefix of the output layer in ``hubert_ctc`` and ``wav2vec_ctc``; other names belong to an attention decoder."""
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
A_LAYER = re.compile(r"(?:(?:w2v_encoder|encoder)\.w2v_model\.)?encoder\.layers\.0\.self_attn\.k_proj\.weight")


def recognises(state: dict[str, Any]) -> bool:
    """Tell whether a loaded file is a fairseq checkpoint, or holds only its weights."""
    model = state.get("model", state)
    has_configuration = isinstance(state.get("model"), dict) and ("cfg" in state or "args" in state)
    return has_configuration or (isinstance(model, dict) and any(A_LAYER.fullmatch(str(key)) for key in model))


def read(
    state: dict[str, Any],
    overrides: Mapping[str, str],
    label_set: int | None = None,
    tokens: Tokens | None = None,
    folder: Path | None = None,
) -> Model:
    """Build a model from a loaded fairseq checkpoint.

    Args:
        state: content of the file.
        overrides: fields that weights without a configuration do not specify, as text.
        label_set: number, from 1, of the label set whose prediction head is kept; needed where there are several.
        tokens: tokens of the output layer of ``hubert_ctc``, which becomes a CTC exit at the last layer; None: those of
            the task's dictionary, in the checkpoint or beside it; without one the layer is left out.
        folder: folder of the file, which may hold the dictionary.

    Raises:
        CheckpointError: where the given tokens do not fit.
    """
    weights = strip_fine_tuning(state.get("model", state))
    task_state = to_plain(state.get("task_state"))
    dictionaries = task_state.get("dictionaries") if isinstance(task_state, dict) else None
    output = weights.get(CTC_OUTPUT + "weight")
    if output is not None:
        tokens = fit_tokens(len(output), tokens, _find_tokens(state, task_state, folder))
    if not tells_its_shape(state):
        sets = read_label_sets({}, dictionaries, label_set)
        return from_parts(None, {}, weights, sets, overrides, tokens)
    model_cfg, task_cfg = read_configuration(state)
    sets = read_label_sets(task_cfg, dictionaries, label_set)
    if tokens is not None:
        _add_blank_weight(weights, *read_blank_weight(state))
    return from_parts(model_cfg, task_cfg, weights, sets, tokens=tokens)


def _add_blank_weight(weights: dict[str, Tensor], weight: float, mode: str) -> None:
    """Fold the constant that ``wav2vec_ctc`` adds to the logit of token 0 into the output layer's bias."""
    if weight and mode != "add":
        raise CheckpointError(f"wav2vec_ctc with blank_mode={mode} is not supported, only add")
    if weight:
        bias = weights[CTC_OUTPUT + "bias"] = weights[CTC_OUTPUT + "bias"].clone()
        bias[0] += weight


def _find_tokens(state: dict[str, Any], task_state: Any, folder: Path | None) -> Tokens | None:
    """Find the dictionary of a fine-tuned model: in its task's state, or ``dict.{labels}.txt`` beside the file."""
    kept = task_state if isinstance(task_state, dict) else {}
    several = kept.get("dictionaries")  # from hubert_pretraining with fine_tuning
    dictionary = kept.get("target_dictionary") or (several[0] if isinstance(several, list) and several else None)
    if isinstance(dictionary, dict) and isinstance(dictionary.get("symbols"), list):
        return Tokens(symbols=tuple(map(str, dictionary["symbols"])), blank=dictionary.get("bos_index", 0))
    labels = read_labels(state)
    path = None if folder is None or labels is None else folder / f"dict.{labels}.txt"
    if path is None or not path.is_file():
        return None
    return make_from_dictionary(path.read_text(encoding="utf-8"))


def strip_fine_tuning(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Strip the prefix of the HuBERT in a fine-tuned model; its output layer or decoder keeps its name.

    Raises:
        CheckpointError: on weights that belong to none of these.
    """
    if not any(FINE_TUNED.fullmatch(key) for key in weights):
        return weights
    names = {key: match[1] if (match := FINE_TUNED.fullmatch(key)) else key for key in weights}
    rest = [key for key, name in names.items() if key == name and not FINE_TUNED_HEAD.fullmatch(key)]
    if rest:
        raise CheckpointError(f"fine-tuned model with weights of no known place: {', '.join(rest[:4])}")
    return {names[key]: value for key, value in weights.items()}


def from_parts(
    model_cfg: Config | None,
    task_cfg: Config,
    weights: dict[str, Tensor],
    sets: LabelSets | None = None,
    overrides: Mapping[str, str] | None = None,
    tokens: Tokens | None = None,
) -> Model:
    """Build a model from fairseq's model and task configuration and its weights under fairseq's names.

    Args:
        model_cfg: the model's configuration; None: the shape is read from the weights and ``overrides``.
        task_cfg: configuration of the task.
        weights: weights of the network, perhaps with those of an output layer.
        sets: label sets of the prediction head; None: there is one set.
        overrides: see `guess_backbone`.
        tokens: tokens of the output layer of ``hubert_ctc``; None: the layer is left out.

    Raises:
        CheckpointError: on options or weights that are not supported.
    """
    weights = dict(weights)
    exits: dict[str, Tensor] = {}
    if tokens is not None:
        exits = {
            part: weights.pop(CTC_OUTPUT + part).float() for part in ("weight", "bias") if CTC_OUTPUT + part in weights
        }
    network = name_network(model_cfg, weights)
    backbone = None if model_cfg is None else read_backbone_fields(model_cfg, task_cfg, network)
    heads = HEAD_RULES if network in (HUBERT, HUBERT_OR_WAV2VEC2, WAVLM) else PRE_TRAINING_RULES
    rules = (*BACKBONE_RULES, *heads, *OUTPUT_RULES)
    tensors, left_out = rename(_separate_batch_norm(weights), rules, network)
    fold_weight_norm(tensors)
    add_identity_projection(tensors, len(tensors["backbone.encoder.transformer.layer_norm.weight"]))
    assumed = ""
    if backbone is None:
        backbone, assumed = guess_backbone(tensors, overrides or {})
    temperature = (model_cfg or {}).get("logit_temp", 0.1)
    head, not_kept = take_final_head(temperature, sets or LabelSets(), tensors)
    if head and sets and not sets.names and not sets.sizes:
        assumed = "; ".join(part for part in (assumed, f"one label set of {head['num_units']} units") if part)
    said = ", ".join(part for part in (describe_keys(left_out), not_kept) if part)
    config = {"backbone": backbone, "final_head": head, "heads": _read_exit_heads(tensors)}
    if exits and tokens is not None:
        config |= make_exits_config([backbone["num_layers"]], exits["weight"], tokens)
        tensors |= {f"ctc.classifiers.{backbone['num_layers']}.{part}": value for part, value in exits.items()}
    return assemble(config, tensors, left_out=said, assumed=assumed, network=network)


def _separate_batch_norm(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename a batch norm before the positional convolution, which is then the second module, not the first."""
    if "encoder.pos_conv.0.running_mean" not in weights:
        return dict(weights)
    places = {"encoder.pos_conv.0.": "encoder.pos_conv.batch_norm.", "encoder.pos_conv.1.": "encoder.pos_conv.0."}
    return {
        next((new + key.removeprefix(old) for old, new in places.items() if key.startswith(old)), key): value
        for key, value in weights.items()
    }


def check_fits(config: BackboneConfig) -> None:
    """Check that fairseq's HuBERT of this shape computes the same.

    Raises:
        CheckpointError: where the shape has other positions, or other norms.
    """
    if config.relative_buckets is not None or config.pos_stack is not None:
        raise CheckpointError(
            "has the positions of WavLM or data2vec, for which fairseq's HuBERT has no place: cannot be written for it"
        )
    if config.pos_batch_norm or not config.projection_norm or config.layer_norm_eps != FAIRSEQ_EPS:
        raise CheckpointError(
            "fairseq's HuBERT has no batch norm before the positional convolution, always a layer norm before the "
            f"projection, and adds {FAIRSEQ_EPS} to the variance in its norms: this one differs, and cannot be written "
            "for it"
        )
    if config.pre_norm and not config.final_norm:
        raise CheckpointError(
            "was cut before its last layer and has no final norm, with which fairseq's pre-norm HuBERT always ends: "
            "cannot be written for it; take the whole model"
        )


def weights(model: Model) -> dict[str, Tensor]:
    """Rename a model's backbone and final head to fairseq's names, as `from_parts` reads them.

    Raises:
        CheckpointError: where fairseq's HuBERT has no place for a weight, or computes with other norms.
    """
    config = model.hubert.config
    check_fits(config)
    parts = nn.ModuleDict({name: part for name, part in model.parts().items() if name not in ("heads", "ctc")})
    tensors = {key: value.detach().clone() for key, value in parts.state_dict().items()}
    kernel = tensors.pop(POSITION + "weight")  # fairseq normalises it over all but the last dimension
    tensors[POSITION + "v"], tensors[POSITION + "g"] = (
        kernel,
        torch.linalg.vector_norm(kernel, dim=(0, 1), keepdim=True),
    )
    if config.conv_layers[-1][0] == config.width:
        projection = "backbone.encoder.feature_projection.projection."
        eye = torch.eye(config.width)
        if not torch.equal(tensors[projection + "weight"], eye) or tensors[projection + "bias"].any():
            raise CheckpointError("has a projection where fairseq has none: its convolutions are as wide as its layers")
        del tensors[projection + "weight"], tensors[projection + "bias"]
    named = {_rename_to_theirs(key): value for key, value in tensors.items()}
    if config.conv_norm == "group":
        return named
    return {re.sub(r"(conv_layers\.\d+\.2)\.", r"\1.1.", key): value for key, value in named.items()}


def _rename_to_theirs(key: str) -> str:
    for pattern, replacement in THEIR_NAMES:
        if match := re.fullmatch(pattern, key):
            return match.expand(replacement)
    raise CheckpointError(f"{key} has no place in fairseq's HuBERT")


def _read_exit_heads(tensors: dict[str, Tensor]) -> Config | None:
    """Return the configuration of exit heads from the plugin's pre-training; None where there are none."""
    first = tensors.get("heads.units.0.weight")
    if first is None:
        return None
    num_layers = len([key for key in tensors if re.fullmatch(r"heads\.units\.\d+\.weight", key)])
    return {"num_layers": num_layers, "width": first.shape[1], "num_units": first.shape[0]}
