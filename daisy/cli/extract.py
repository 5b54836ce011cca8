"""daisy extract."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.table import Table

from daisy.cli.console import (
    DEFAULT_CHECKPOINT,
    DEFAULT_POLICY,
    Checkpoint,
    Device,
    Out,
    checked_device,
    errors,
    numbers,
    output,
    printable,
    progress_bar,
)
from daisy.errors import UsageError

if TYPE_CHECKING:
    from daisy.checkpoints.format import Model
    from daisy.extraction import ExtractionReport
    from daisy.policies import Policy

MOST_ROWS = 40


def command(
    inputs: Annotated[list[str], typer.Argument(help="Files, folders, globs, or fairseq manifests (.tsv).")],
    out: Out,
    checkpoint: Checkpoint = DEFAULT_CHECKPOINT,
    policy: Annotated[
        str, typer.Option("--policy", "-p", help="A policy's name, or a file of daisy calibrate.")
    ] = DEFAULT_POLICY,
    deadline_ms: Annotated[
        float | None, typer.Option(help="Budget of an utterance in ms, from times measured at the start.")
    ] = None,
    deadline_macs: Annotated[float | None, typer.Option(help="Budget of an utterance in multiply-accumulates.")] = None,
    set: Annotated[list[str] | None, typer.Option(help="A policy's setting, such as threshold=1.2.")] = None,
    layers: Annotated[
        Literal["last", "all"], typer.Option(help="last: the exit layer's states; all: every executed layer's.")
    ] = "last",
    format: Annotated[Literal["safetensors", "npy"], typer.Option(help="Of the files.")] = "safetensors",
    dtype: Annotated[Literal["float32", "float16"], typer.Option(help="Of the states on disk.")] = "float32",
    scores: Annotated[str, typer.Option(help="Scores to record besides the policy's: entropy,regressed.")] = "",
    batch_sec: Annotated[float, typer.Option(help="Seconds of audio in a batch.")] = 30.0,
    max_sec: Annotated[float, typer.Option(help="Longest recording that is accepted without --window.")] = 600.0,
    window: Annotated[
        float | None, typer.Option(help="Run longer recordings in windows of so many seconds, each with its own exit.")
    ] = None,
    context: Annotated[
        float | None, typer.Option(help="Seconds of a window's ends that are computed and dropped; 2 if not given.")
    ] = None,
    precision: Annotated[
        Literal["float32", "bfloat16", "int8"], typer.Option(help="What to compute in; int8 on CPUs only.")
    ] = "float32",
    device: Device = "cpu",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Begin again in a folder that holds a run.")] = False,
) -> None:
    """Extract features, each recording at its own exit layer.

    Writes a file per recording, index.json and index.csv. A stopped run goes on where it ended. Exit status 1: some
    recordings could not be read; 2: nothing was done.
    """
    from daisy import audio, checkpoints
    from daisy.calibration import cost
    from daisy.encoder import EarlyExitEncoder
    from daisy.extraction import Extractor, Settings

    if context is not None and window is None:
        raise UsageError("--context is of windows: give --window SEC too")
    recordings = audio.find(inputs)
    model = checkpoints.load(checkpoint, device=checked_device(device))
    chosen, stride = _policy(model, checkpoint, policy, set or [])
    if deadline_ms is not None and deadline_macs is not None:
        raise UsageError("--deadline-ms and --deadline-macs exclude each other")
    if deadline_ms is not None:
        chosen = cost.measured_deadline(model.backbone, model.heads, deadline_ms, chosen, stride, dtype=precision)
    elif deadline_macs is not None:
        chosen = cost.macs_deadline(model.backbone, model.heads, deadline_macs, chosen, stride)
    extra = [name for name in scores.split(",") if name]
    encoder = EarlyExitEncoder(
        model.backbone, model.heads, chosen, keep=layers, scores=extra, score_stride=stride, dtype=precision
    )
    try:
        with progress_bar() as bar:
            task = bar.add_task("extracting", total=len(recordings))
            extractor = Extractor(
                encoder,
                out,
                checkpoint=checkpoints.digest(checkpoint),
                format=format,
                dtype=dtype,
                batch_sec=batch_sec,
                max_sec=max_sec,
                window_sec=window,
                context_sec=Settings.context_sec if context is None else context,
            )
            report = extractor.run(
                recordings, overwrite=overwrite, progress=lambda count: bar.advance(task, count)
            )
    except KeyboardInterrupt:
        errors.print("stopped: what is finished is kept, and the same command goes on from there")
        raise typer.Exit(130) from None
    _print(report)
    if report.failed:
        raise typer.Exit(1 if report.rows else 2)


def _policy(model: Model, checkpoint: str, name: str, settings: list[str]) -> tuple[Policy, int]:
    """The policy, and the stride of its scores."""
    from daisy import checkpoints
    from daisy.policies import POLICIES, read_policy

    if name not in POLICIES and Path(name).suffix and not Path(name).is_file():
        raise UsageError(f"{name}: no such policy file; daisy calibrate makes one")
    if name in ("oracle", "score"):
        raise UsageError(f"policy {name} is for comparisons: daisy noise-curve, daisy replay")
    if name in POLICIES or not Path(name).is_file():
        return model.policy(name, **numbers(settings)), 1
    if settings:
        raise UsageError("--set changes a policy that is named; a policy file is calibrated: calibrate another")
    return read_policy(Path(name), checkpoint=Path(checkpoint).stem, digest=checkpoints.digest(checkpoint))


def _print(report: ExtractionReport) -> None:
    if 0 < len(report.rows) <= MOST_ROWS:
        output.print(_table(report))
    totals = report.totals()
    if report.rows:
        num_layers = report.rows[0].num_layers
        histogram = Counter(layer for row in report.rows for layer in row.window_exits or [row.exit_layer])
        label = "exits, each window's  " if any(row.window_exits for row in report.rows) else "exits  "
        output.print(label + "  ".join(f"{layer}: {histogram[layer]}" for layer in sorted(histogram)))
        output.print(
            f"{totals['num_recordings']} recordings, {totals['audio_sec']:.1f} s of audio: mean exit layer "
            f"{totals['mean_exit_layer']:.2f} of {num_layers} ({totals['depth']:.0%} of the layers), "
            f"{totals['seconds']:.1f} s, real-time factor {totals['real_time_factor']:.4f}",
            soft_wrap=True,
        )
    if report.num_resumed:
        output.print(f"{report.num_resumed} of them were finished before")
    for row in report.rows:
        if row.silent:
            errors.print(printable(f"note: {row.path}: digital silence; its exit layer means nothing"), soft_wrap=True)
    for path, reason in report.failed.items():
        errors.print(printable(f"failed: {path}: {reason}"), soft_wrap=True)
    if report.failed:
        errors.print(f"{len(report.failed)} of {len(report.rows) + len(report.failed)} recordings failed")


def _table(report: ExtractionReport) -> Table:
    table = Table("recording", "seconds", "exit layer", "predicted loss at exit (nats)", box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in report.rows:
        losses = row.predicted_loss
        exit_layer = (
            f"{row.mean_exit_layer:g} of {row.num_layers}"
            if not row.window_exits
            else (f"{row.mean_exit_layer:.1f} of {row.num_layers} ({len(row.window_exits)} windows)")
        )
        table.add_row(
            printable(row.output.rpartition(".")[0]),
            f"{row.duration_sec:.2f}",
            exit_layer,
            f"{losses[-1]:.3f}" if losses else "",
        )
    return table
