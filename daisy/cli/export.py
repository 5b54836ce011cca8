"""daisy export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from daisy.cli.console import say


def command(
    form: Annotated[Literal["hf"], typer.Argument(help="hf: a folder of Hugging Face transformers.")],
    checkpoint: Annotated[str, typer.Argument(help="A daisy checkpoint of a HuBERT, or a bundled model's name.")],
    folder: Annotated[Path, typer.Argument(help="The folder to write.")],
    policy: Annotated[
        str,
        typer.Option(
            "--policy", "-p", help="Which of the checkpoint's policies is the default of a call; forecast if not given."
        ),
    ] = "",
    half: Annotated[bool, typer.Option("--half", help="Write float16 weights.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing files.")] = False,
) -> None:
    """Write a checkpoint in another toolkit's form.

    hf: AutoModel.from_pretrained(FOLDER, trust_remote_code=True) and AutoFeatureExtractor load it without daisy; the
    output has exit_layer, predicted_loss and units in addition to the states.
    """
    import torch

    from daisy import checkpoints
    from daisy.integrations import export_huggingface

    model = checkpoints.load(checkpoint)
    dtype = torch.float16 if half else torch.float32
    files = export_huggingface(model, folder, exit_policy=policy, dtype=dtype, overwrite=overwrite)
    megabytes = sum(path.stat().st_size for path in files) / 1e6
    say(f"{folder}: {', '.join(path.name for path in files)}, {megabytes:.1f} MB")
    say(f'load it with AutoModel.from_pretrained("{folder}", trust_remote_code=True)')
