"""Read checkpoints that fairseq writes with daisy's plugin, with our configuration in the task's state.

Weights have our names, except in the network of ``daisy_ctc``, which is fairseq's own.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from daisy.checkpoints.converters import fairseq
from daisy.checkpoints.converters.mapping import add_identity_projection, assemble, fold_weight_norm, rename
from daisy.checkpoints.converters.reading import to_plain
from daisy.checkpoints.model import Model

STATE_KEY = "daisy_config"
"""Where the plugin keeps `Model.config` in fairseq's task state."""
RULES = (*((rf"hubert\.{pattern}", replacement) for pattern, replacement in fairseq.BACKBONE_RULES), (r"(.*)", r"\1"))


def recognises(state: dict[str, Any]) -> bool:
    """Tell whether a loaded file was written by fairseq with daisy's plugin."""
    return isinstance(state.get("task_state"), dict) and STATE_KEY in state["task_state"]


def read(state: dict[str, Any]) -> Model:
    """Build a model from a loaded file."""
    weights = state["model"]
    tensors, _ = rename({key: _to_weight(key, value) for key, value in weights.items()}, RULES)
    config = to_plain(state["task_state"][STATE_KEY])
    fold_weight_norm(tensors)
    if any(key.startswith("hubert.") for key in weights):
        add_identity_projection(tensors, config["backbone"]["width"])
    return assemble(config, tensors)


def _to_weight(key: str, tensor: Tensor) -> Tensor:
    """Convert the counter of a batch norm, the only integer among the weights, to the file format's type."""
    return tensor.float() if key.endswith("num_batches_tracked") else tensor
