"""daisy truncate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from daisy.cli.console import say
from daisy.errors import OutputError


def command(
    checkpoint: Annotated[str, typer.Argument(help="A daisy checkpoint, or a bundled model's name.")],
    out: Annotated[Path, typer.Argument(help="The .safetensors file to write.")],
    exit: Annotated[int, typer.Option("--exit", help="The layer that becomes the last.")],
    half: Annotated[bool, typer.Option("--half", help="Write float16 weights.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
) -> None:
    """Cut a model after one of its exits.

    The result is a shallow model of its own: its output is that of the policy fixed at that layer, without the later
    layers' weights.
    """
    import torch

    from daisy import checkpoints

    if out.exists() and not overwrite:
        raise OutputError(f"{out}: exists; add --overwrite to replace it")
    model = checkpoints.load(checkpoint)
    cut = checkpoints.truncate(model, exit)
    checkpoints.save(cut, out, dtype=torch.float16 if half else torch.float32)
    millions = sum(parameter.numel() for parameter in cut.parameters()) / 1e6
    say(f"{out}: layers 1 to {exit} of {model.backbone.config.num_layers}, {millions:.1f} M parameters")
    before = {("", name) for name in model.policies} | {("CTC ", name) for name in model.ctc_policies}
    after = {("", name) for name in cut.policies} | {("CTC ", name) for name in cut.ctc_policies}
    if gone := sorted(f"{kind}{name}" for kind, name in before - after):
        say(f"left out: default policies that do not fit: {', '.join(gone)}")
