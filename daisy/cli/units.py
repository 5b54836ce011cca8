"""daisy units."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from daisy.cli.console import say
from daisy.cli.engines import Address, CpusPerWorker, EngineName, GpusPerWorker, Workers, make_engine, say_throughput
from daisy.cli.extract import MaxSec, Scores, WindowSec, run_extraction, say_extraction
from daisy.cli.options import (
    DEFAULT_CHECKPOINT,
    DEFAULT_POLICY,
    BatchSec,
    ChannelText,
    Checkpoint,
    ComputeDtype,
    ContextSec,
    DeadlineMacs,
    DeadlineMs,
    Device,
    Inputs,
    Out,
    Overwrite,
    PolicySettings,
    ShardText,
    check_deadlines,
    check_device,
    limit_cost,
    note_lost_guarantee,
    parse_channel,
    parse_names,
    parse_settings,
    parse_shard,
    say_share,
)
from daisy.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from daisy.checkpoints import Model
    from daisy.extraction import ExtractionReport
    from daisy.units import UnitEncoder

Forms = Annotated[
    str,
    typer.Option(
        "--form",
        help="Formats to write, such as jsonl,km: units.jsonl; fairseq's units.km with units.tsv; for text units.txt, "
        "lines FILE|5 5 12; units.parquet.",
    ),
]
PolicyName = Annotated[
    str,
    typer.Option(
        "--policy", "-p", help=f"A policy's name, or a file written by daisy calibrate; default: {DEFAULT_POLICY}."
    ),
]
Dedup = Annotated[
    bool, typer.Option("--dedup", help="Write each run of one unit once, with its number of frames (durations).")
]
Kmeans = Annotated[
    Path | None,
    typer.Option(help="Centres to assign instead of the heads' units: .npy, .safetensors, torch, or fairseq's joblib."),
]
Layer = Annotated[int | None, typer.Option(help="The layer that the k-means is for; layers above it are not run.")]
AllowPickle = Annotated[
    bool,
    typer.Option("--allow-pickle", help="Unpickle --kmeans, which can run code: only for files you trust."),
]


def command(
    inputs: Inputs,
    out: Out,
    checkpoint: Checkpoint = DEFAULT_CHECKPOINT,
    form: Forms = "jsonl",
    dedup: Dedup = False,
    policy: PolicyName = "",
    set: PolicySettings = None,
    deadline_ms: DeadlineMs = None,
    deadline_macs: DeadlineMacs = None,
    kmeans: Kmeans = None,
    layer: Layer = None,
    allow_pickle: AllowPickle = False,
    scores: Scores = "",
    batch_sec: BatchSec = 30.0,
    max_sec: MaxSec = 600.0,
    window: WindowSec = None,
    context: ContextSec = None,
    channel: ChannelText = "mean",
    precision: ComputeDtype = "float32",
    device: Device = "cpu",
    shard: ShardText = "",
    engine: EngineName = "local",
    address: Address = "",
    workers: Workers = 0,
    cpus_per_worker: CpusPerWorker = 1,
    gpus_per_worker: GpusPerWorker = 0.0,
    overwrite: Overwrite = False,
) -> None:
    """Write discrete units, each recording at its own exit.

    Each recording exits at its own layer, and its units are those that the head there predicts; with --kmeans FILE
    --layer N all run up to layer N, and no features are written. A stopped run resumes where it ended; other forms of
    finished results cost nothing. Exit status 1: some recordings could not be read; 2: nothing was done.
    """
    from daisy import audio, checkpoints
    from daisy.extraction import Settings
    from daisy.extraction.shards import take_share
    from daisy.extraction.throughput import Throughput
    from daisy.units import UnitExtractor

    if context is not None and window is None:
        raise UsageError("--context is of windows: give --window SEC too")
    _check_source(kmeans, layer, allow_pickle, policy, set, scores, deadline_ms, deadline_macs)
    cluster = make_engine(
        engine,
        address=address,
        workers=workers,
        cpus=cpus_per_worker,
        gpus=gpus_per_worker,
        device=device,
        deadline_ms=deadline_ms,
    )
    share, heard = parse_shard(shard), parse_channel(channel)
    findings = audio.search(inputs)
    ours, others = take_share(findings.recordings, share, heard)
    model = checkpoints.load(checkpoint, device=check_device(device))
    if kmeans is not None:
        units = _read_kmeans(model, kmeans, layer, allow_pickle, precision)
    else:
        units = _make_heads(model, policy or DEFAULT_POLICY, set or [], scores, precision)
        note_lost_guarantee(
            policy, milliseconds=deadline_ms, macs=deadline_macs, window_sec=window, precision=precision
        )
        limit_cost(
            units.encoder,
            milliseconds=deadline_ms,
            macs=deadline_macs,
            begun_in=None if overwrite else out,
            threads=cpus_per_worker if cluster else None,
        )
    extractor = UnitExtractor(
        units,
        out,
        checkpoint=checkpoints.digest(checkpoint),
        forms=parse_names(form),
        deduplicated=dedup,
        batch_sec=batch_sec,
        max_sec=max_sec,
        window_sec=window,
        context_sec=Settings.context_sec if context is None else context,
        channel=heard,
        engine=cluster,
    )
    throughput = Throughput()
    report = run_extraction(extractor, ours, others, share, overwrite, throughput, task="writing units")
    if share.count > 1:
        say_share(share, len(report.rows) + len(report.failed), findings.recordings, heard)
    if cluster is not None:
        say_throughput(throughput, cluster)
    _say_units(report, units)
    say_extraction(report, findings)


def _check_source(
    kmeans: Path | None,
    layer: int | None,
    allow_pickle: bool,
    policy: str,
    settings: list[str] | None,
    scores: str,
    deadline_ms: float | None,
    deadline_macs: float | None,
) -> None:
    """Reject options for heads with a k-means, and the reverse."""
    check_deadlines(deadline_ms, deadline_macs)
    if kmeans is None:
        if layer is not None or allow_pickle:
            raise UsageError("--layer and --allow-pickle are of --kmeans FILE; a cut is --policy fixed --set layer=N")
        return
    of_heads = {
        "--policy": policy,
        "--set": settings,
        "--scores": scores,
        "--deadline-ms": deadline_ms is not None,
        "--deadline-macs": deadline_macs is not None,
    }
    if given := [name for name, value in of_heads.items() if value]:
        raise UsageError(f"--kmeans is of one layer, which every recording runs to: leave out {', '.join(given)}")


def _read_kmeans(model: Model, path: Path, layer: int | None, allow_pickle: bool, precision: Any) -> UnitEncoder:
    from daisy.units import UnitEncoder, read_kmeans

    return UnitEncoder(model, kmeans=read_kmeans(path, allow_pickle=allow_pickle), layer=layer, dtype=precision)


def _make_heads(model: Model, policy: str, settings: list[str], scores: str, precision: Any) -> UnitEncoder:
    from daisy.units import UnitEncoder

    given: dict[str, Any] = {**parse_settings(settings)}
    layer = given.pop("layer", None)
    return UnitEncoder(model, policy, layer=layer, scores=parse_names(scores), dtype=precision, **given)


def _say_units(report: ExtractionReport, units: UnitEncoder) -> None:
    """Print how many units there are, with and without repetitions, and their bitrate."""
    from daisy.units import UnitRow, bitrate, deduplicate

    seconds = report.summary.audio_sec
    if not seconds:
        return
    frames = kept = 0

    def sequences() -> Iterator[list[int]]:
        nonlocal frames, kept
        for row in report.rows:  # one by one: a large corpus has too many
            if isinstance(row, UnitRow):
                sequence, durations = deduplicate(row.list_units())
                frames += sum(durations)
                kept += len(sequence)
                yield sequence

    bits = bitrate(sequences(), seconds)
    say(f"units 0 to {units.num_units - 1}: {frames} frames, {kept} without repetitions, {bits:.0f} bits a second")
