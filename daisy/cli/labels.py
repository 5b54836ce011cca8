"""daisy labels."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from daisy.cli.console import end_with_failures, explain, say, warn, warn_of_failures
from daisy.cli.options import Device, Out, Strict, check_device
from daisy.cli.progress import track
from daisy.errors import UsageError

if TYPE_CHECKING:
    from daisy.extraction import LabelReport

USUAL_LABEL_RATE, USUAL_SAMPLE_RATE = 50, 16000
"""Usual rates; fairseq must be told of others."""


def command(
    manifests: Annotated[list[Path], typer.Argument(help="fairseq manifests; k-means is fitted on the first.")],
    out: Out,
    clusters: Annotated[int, typer.Option(help="Number of units.")] = 100,
    teacher: Annotated[
        str | None,
        typer.Option(
            "--teacher",
            "-t",
            help="What is clustered instead of MFCC: a HuBERT (a checkpoint, daisy-mini), a transformers encoder "
            "(Whisper, wav2vec 2.0, WavLM, ...; a folder or a name on the hub), or a folder of features. "
            "--checkpoint, -c: older names of this option.",
        ),
    ] = None,
    checkpoint: Annotated[str | None, typer.Option("--checkpoint", "-c", hidden=True)] = None,
    layer: Annotated[int | None, typer.Option(help="Layer of the teacher.")] = None,
    centre: Annotated[
        bool,
        typer.Option("--centre", help="Subtract each recording's mean first: units then tell less of the speaker."),
    ] = False,
    label_rate: Annotated[
        float | None,
        typer.Option(help="Units per second: 50 (default) or 100 for MFCC; a teacher has its own rate."),
    ] = None,
    feature_rate: Annotated[
        float | None,
        typer.Option(help="Frames per second of a folder of features; default: whichever of 50, 100 and 25 fits."),
    ] = None,
    fit_frames: Annotated[int, typer.Option(help="Maximum number of frames to fit k-means on.")] = 500_000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the frames drawn and of k-means.")] = 0,
    precision: Annotated[
        Literal["float32", "bfloat16"], typer.Option(help="Precision in which a teacher computes.")
    ] = "float32",
    device: Device = "cpu",
    allow_pickle: Annotated[
        bool,
        typer.Option("--allow-pickle", help="Unpickle Python objects, which can run code: only for files you trust."),
    ] = False,
    strict: Strict = False,
) -> None:
    """Make k-means units for fairseq's hubert_pretraining.

    Writes SPLIT.km for each manifest, and dict.km.txt. A folder of features either holds a .npy file (frames, width)
    for each recording, a/b.npy for a/b.flac; or was written by daisy extract; or holds fairseq's dumps (SPLIT_0_1.npy
    and .len).

    A stopped run resumes where it ended, even if manifests have changed: a recording that has units keeps them.
    Recordings that cannot be used are skipped and listed (exit status 1); manifests of the others are then written
    beside their units.
    """
    if teacher is not None and checkpoint is not None:
        raise UsageError("--checkpoint is an older name of --teacher: give one of them")
    from daisy.extraction import make_labels

    try:
        report = make_labels(
            manifests,
            out,
            teacher=checkpoint if teacher is None else teacher,
            layer=layer,
            clusters=clusters,
            centre=centre,
            label_rate=label_rate,
            feature_rate=feature_rate,
            fit_frames=fit_frames,
            seed=seed,
            precision=precision,
            device=check_device(device),
            allow_pickle=allow_pickle,
            strict=strict,
            track=track,
        )
    except KeyboardInterrupt:
        warn("stopped: what is finished is kept, and the same command goes on from there")
        raise typer.Exit(130) from None
    _say_report(report, out)


def _say_report(report: LabelReport, out: Path) -> None:
    """Print what was made, what fairseq must be told, and failures; set the exit status by the failures."""
    rate = f"{report.label_rate:.10g}"
    for note in report.notes:
        warn(f"note: {note}")
    for file in report.files:
        if file.is_written:
            say(f"{file.path}: units of {file.num_labelled} recordings at {rate} a second")
        elif not file.num_labelled:
            warn(f"{file.path}: not written: no recording of {file.manifest} has units")
        else:
            warn(
                f"{file.path}: not written: fairseq would read {file.beside} with it, which lies there; give another "
                f"--out, or take the lines of recordings without units out of {file.manifest} and call this again"
            )
    if report.has_manifests:
        say(f"{out}: holds manifests of the recordings that have units: train on them, with task.data={out}")
    if report.label_rate != USUAL_LABEL_RATE:
        warn(f"note: tell fairseq task.label_rate={rate}")
    if report.sample_rate not in (None, USUAL_SAMPLE_RATE):
        warn(f"note: tell fairseq task.sample_rate={report.sample_rate}")
    warn_of_failures(map(explain, report.failed.values()))
    num_done = sum(file.num_labelled for file in report.files)
    end_with_failures(sum(file.num_recordings for file in report.files) - num_done, num_done)
