"""Checkpoints that fairseq writes with daisy's plugin: our configuration in the task's state, our names for weights."""

from __future__ import annotations

from typing import Any

from daisy.checkpoints.converters.mapping import assemble, rename
from daisy.checkpoints.converters.reading import to_plain
from daisy.checkpoints.model import Model

STATE_KEY = "daisy_config"
"""Where the plugin keeps `Model.config` in fairseq's task state."""


def recognises(state: dict[str, Any]) -> bool:
    """Tell whether a loaded file was written by fairseq with daisy's plugin."""
    return isinstance(state.get("task_state"), dict) and STATE_KEY in state["task_state"]


def read(state: dict[str, Any]) -> Model:
    """Build a model from a loaded file."""
    tensors, _ = rename(state["model"], ((r"(.*)", r"\1"),))  # our names already
    return assemble(to_plain(state["task_state"][STATE_KEY]), tensors)
