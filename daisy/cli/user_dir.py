"""daisy user-dir."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import typer

from daisy.errors import UsageError


def command() -> None:
    """Print the fairseq plugin's folder.

    For fairseq-train --user-dir "$(daisy user-dir)".
    """
    spec = importlib.util.find_spec("fairseq_plugins")
    if spec is None or spec.origin is None:
        raise UsageError("the fairseq plugin is not installed beside daisy: reinstall daisy-speech")
    typer.echo(os.fsencode(Path(spec.origin).parent))  # a shell takes the bytes, whatever the terminal's encoding
