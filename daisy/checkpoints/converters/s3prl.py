"""Read s3prl's converted HuBERT and wav2vec 2.0, and the checkpoints of the published DAISY code in the same form.

Source: s3prl 0.4.18, s3prl/upstream/{hubert,wav2vec2}/convert.py (``task_cfg``, ``model_cfg``, ``model_weight``, and of
HuBERT ``dictionaries_symbols``); the public repository nervjack2/DAISY-Data-Adaptive-Self-Supervised-Early-Exit, whose
``model_weight`` has one linear head per layer, ``final_proj.{i}``, with the input that ``cls_pred_position`` names.
"""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

from daisy.checkpoints.converters import fairseq
from daisy.checkpoints.converters.fairseq_configuration import read_backbone_fields, read_configuration
from daisy.checkpoints.converters.label_sets import read_label_sets
from daisy.checkpoints.converters.mapping import (
    Config,
    add_identity_projection,
    assemble,
    describe_keys,
    fold_weight_norm,
    rename,
)
from daisy.checkpoints.converters.reading import to_plain
from daisy.checkpoints.model import Model
from daisy.errors import CheckpointError

KEYS = {"task_cfg", "model_cfg", "model_weight"}
EXIT_HEAD = re.compile(r"final_proj\.(\d+)\.(weight|bias)")
READS = {"before-norm": "feed_forward", "after-norm": "states"}


def recognises(state: dict[str, Any]) -> bool:
    """Tell whether a loaded file is in s3prl's converted form."""
    return set(state) >= KEYS


def read(state: dict[str, Any], label_set: int | None = None) -> Model:
    """Build a model from a loaded file; ``label_set`` as in `fairseq.read`."""
    model_cfg, task_cfg, weights = to_plain(state["model_cfg"]), to_plain(state["task_cfg"]), state["model_weight"]
    if any(EXIT_HEAD.fullmatch(key) for key in weights):
        if label_set is not None:
            raise CheckpointError("has exit heads, and no label sets to choose from")
        return _build_published_daisy(model_cfg, task_cfg, weights)
    sets = read_label_sets(task_cfg, to_plain(state.get("dictionaries_symbols")), label_set)
    if model_cfg.get("w2v_args"):
        model_cfg, task_cfg = read_configuration({"cfg": {"model": model_cfg, "task": task_cfg}})
    return fairseq.from_parts(model_cfg, task_cfg, fairseq.strip_fine_tuning(weights), sets)


def _build_published_daisy(model_cfg: Config, task_cfg: Config, weights: dict[str, Tensor]) -> Model:
    backbone = read_backbone_fields(model_cfg, task_cfg)
    position = model_cfg.get("cls_pred_position", "before-norm")
    if position not in READS:
        raise CheckpointError(f"cls_pred_position must be one of {', '.join(READS)}, found {position!r}")
    rules = ((EXIT_HEAD.pattern, r"heads.units.\1.\2"), (r"label_embs_concat", None), *fairseq.BACKBONE_RULES)
    tensors, left_out = rename(weights, rules)
    fold_weight_norm(tensors)
    add_identity_projection(tensors, backbone["width"])
    heads = [tensor for key, tensor in tensors.items() if re.fullmatch(r"heads\.units\.\d+\.weight", key)]
    if len(heads) != backbone["num_layers"]:
        raise CheckpointError(f"has {len(heads)} exit heads for {backbone['num_layers']} layers")
    config = {
        "backbone": backbone,
        "heads": {
            "num_layers": backbone["num_layers"],
            "width": backbone["width"],
            "num_units": heads[0].shape[0],
            "reads": READS[position],
            "regressors": False,
        },
    }
    return assemble(config, tensors, left_out=describe_keys(left_out))
