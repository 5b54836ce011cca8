"""daisy convert."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from daisy.cli.console import say
from daisy.cli.options import parse_pairs
from daisy.errors import OutputError


def command(
    source: Annotated[
        Path,
        typer.Argument(
            help="A checkpoint of fairseq, s3prl, torchaudio, Hugging Face, DAISY's or Wright et al.'s published code."
        ),
    ],
    out: Annotated[Path, typer.Argument(help="The .safetensors file to write.")],
    allow_pickle: Annotated[
        bool,
        typer.Option("--allow-pickle", help="Unpickle Python objects, which can run code: only for files you trust."),
    ] = False,
    half: Annotated[bool, typer.Option("--half", help="Write float16 weights.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
    set: Annotated[
        list[str] | None,
        typer.Option(help="KEY=VALUE for what weights without a configuration do not tell, such as num_heads=12."),
    ] = None,
    label_set: Annotated[
        int | None,
        typer.Option(help="Which of fairseq's several label sets has the prediction head to keep, counted from 1."),
    ] = None,
    tokens: Annotated[
        Path | None,
        typer.Option(help="For a fine-tuned model: dict.ltr.txt, vocab.json or a SentencePiece .model of its outputs."),
    ] = None,
) -> None:
    """Convert another toolkit's checkpoint to daisy's format."""
    import torch

    from daisy import checkpoints
    from daisy.checkpoints.converters import convert
    from daisy.checkpoints.model import describe_exits

    if out.exists() and not overwrite:
        raise OutputError(f"{out}: exists; add --overwrite to replace it")
    overrides = parse_pairs(set or ())
    model = convert(source, allow_pickle=allow_pickle, overrides=overrides, label_set=label_set, tokens=tokens)
    checkpoints.save(model, out, dtype=torch.float16 if half else torch.float32)
    config = model.backbone.config
    heads = f"exit heads for {model.heads.config.num_units} units" if model.heads else "no exit heads"
    if model.final_head:
        heads += f", prediction head for {model.final_head.num_units} units"
    if model.ctc:
        heads += f", CTC exits of {describe_exits(model.ctc.config)}"
    if model.decoders:
        heads += f", attention decoders of depth {model.decoders.config.num_blocks}"
    megabytes = out.stat().st_size / 1e6
    say(f"{out}: {config.num_layers} layers of width {config.width}, {heads}, {megabytes:.1f} MB")
    if left_out := model.provenance.get("left_out"):
        chooses = "; --label-set N keeps one" if label_set is None and "label sets" in left_out else ""
        say(f"left out: {left_out}{chooses}")
    if assumed := model.provenance.get("assumed"):
        say(f"assumed: {assumed}")
