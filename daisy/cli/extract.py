"""daisy extract."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from daisy.cli.console import (
    explain,
    name_same_command,
    report_failures,
    say,
    say_table,
    warn,
    warn_of_rest,
    warn_of_sources,
)
from daisy.cli.engines import (
    Address,
    CpusPerWorker,
    EngineName,
    GpusPerWorker,
    JournalFolder,
    OutOrUrl,
    ShardKind,
    ShardMb,
    Workers,
    make_engine,
    parse_out,
    say_throughput,
)
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
from daisy.cli.progress import track
from daisy.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from daisy.audio import Findings, Recording
    from daisy.checkpoints import Model
    from daisy.extraction import ExtractionReport, Extractor, Row, Shard
    from daisy.extraction.throughput import Throughput
    from daisy.policies import Policy

MAX_TABLE_ROWS = 40
"""Number of recordings above which only the totals are printed."""


PolicyName = Annotated[
    str, typer.Option("--policy", "-p", help="A policy's name, or a file written by daisy calibrate.")
]
Layers = Annotated[
    Literal["last", "all"], typer.Option(help="Write the exit layer's states, or those of all executed layers.")
]
Format = Annotated[Literal["safetensors", "npy"], typer.Option(help="Format of the files.")]
StoredDtype = Annotated[Literal["float32", "float16"], typer.Option(help="Data type of the states on disk.")]
Scores = Annotated[str, typer.Option(help="Scores to record in addition to the policy's, such as entropy,regressed.")]
MaxSec = Annotated[float, typer.Option(help="Longest recording, in seconds, that is accepted without --window.")]
WindowSec = Annotated[
    float | None, typer.Option(help="Run longer recordings in windows of this many seconds, each with its own exit.")
]


def command(
    inputs: Inputs,
    out: OutOrUrl,
    checkpoint: Checkpoint = DEFAULT_CHECKPOINT,
    policy: PolicyName = DEFAULT_POLICY,
    deadline_ms: DeadlineMs = None,
    deadline_macs: DeadlineMacs = None,
    set: PolicySettings = None,
    layers: Layers = "last",
    format: Format = "safetensors",
    dtype: StoredDtype = "float32",
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
    shards: ShardKind = None,
    shard_mb: ShardMb = 256.0,
    journal: JournalFolder = None,
    overwrite: Overwrite = False,
) -> None:
    """Extract features, each recording at its own exit layer.

    Writes a file per recording, index.json and index.csv. A stopped run resumes where it ended. In a SLURM job array:
    --shard $SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT with --array=0-15. Exit status 1: some
    recordings could not be read; 2: nothing was done.
    """
    from daisy import audio, checkpoints
    from daisy.encoder import EarlyExitEncoder
    from daisy.extraction import Extractor, Settings
    from daisy.extraction.shards import take_share
    from daisy.extraction.throughput import Throughput

    if context is not None and window is None:
        raise UsageError("--context is of windows: give --window SEC too")
    check_deadlines(deadline_ms, deadline_macs)
    folder, store = parse_out(out, journal)
    cluster = make_engine(
        engine,
        address=address,
        workers=workers,
        cpus=cpus_per_worker,
        gpus=gpus_per_worker,
        device=device,
        deadline_ms=deadline_ms,
    )
    share = parse_shard(shard)
    findings, heard = audio.search(inputs), parse_channel(channel)
    ours, others = take_share(findings.recordings, share, heard)
    model = checkpoints.load(checkpoint, device=check_device(device))
    rule, stride = _read_policy(model, checkpoint, policy, set or [])
    note_lost_guarantee(policy, milliseconds=deadline_ms, macs=deadline_macs, window_sec=window, precision=precision)
    encoder = EarlyExitEncoder(
        model.backbone,
        model.exit_heads(),
        rule,
        keep=layers,
        scores=parse_names(scores),
        score_stride=stride,
        dtype=precision,
    )
    limit_cost(
        encoder,
        milliseconds=deadline_ms,
        macs=deadline_macs,
        begun_in=None if overwrite else folder,
        threads=cpus_per_worker if cluster else None,
    )
    extractor = Extractor(
        encoder,
        folder,
        checkpoint=checkpoints.digest(checkpoint),
        format=format,
        dtype=dtype,
        batch_sec=batch_sec,
        max_sec=max_sec,
        window_sec=window,
        context_sec=Settings.context_sec if context is None else context,
        channel=heard,
        engine=cluster,
        shards=shards,
        shard_mb=shard_mb,
        store=store,
    )
    throughput = Throughput()
    report = run_extraction(extractor, ours, others, share, overwrite, throughput)
    if share.count > 1:
        say_share(share, len(report.rows) + len(report.failed), findings.recordings, heard)
    if cluster is not None:
        say_throughput(throughput, cluster)
    say_extraction(report, findings)


def _read_policy(model: Model, checkpoint: str, name: str, settings: list[str]) -> tuple[Policy, int]:
    """Create the policy from its name or file, and return it with the stride of its scores."""
    from daisy import checkpoints
    from daisy.policies import POLICIES, read_policy

    if name not in POLICIES and Path(name).suffix and not Path(name).is_file():
        raise UsageError(f"{name}: no such policy file; daisy calibrate makes one")
    if name in ("oracle", "score"):
        raise UsageError(f"policy {name} is for comparisons: daisy noise-curve, daisy replay")
    if name in POLICIES or not Path(name).is_file():
        given: dict[str, Any] = {**parse_settings(settings)}
        return model.policy(name, **given), 1
    if settings:
        raise UsageError("--set changes a policy that is named; a policy file is calibrated: calibrate another")
    reads_ctc = model.heads is None and model.ctc is not None
    return read_policy(
        Path(name),
        checkpoint=Path(checkpoint).stem,
        digest=checkpoints.digest(checkpoint),
        heads="ctc" if reads_ctc else "units",
    )


def run_extraction(
    extractor: Extractor,
    ours: Sequence[Recording],
    others: Sequence[Recording],
    share: Shard,
    overwrite: bool,
    throughput: Throughput | None = None,
    task: str = "extracting",
) -> ExtractionReport:
    """Extract with a progress display under the name ``task``; Ctrl-C prints one line and exits with status 130."""
    from daisy.extraction.throughput import Throughput

    shard = (share.index, share.count)
    throughput = throughput or Throughput()
    try:
        with track(task, len(ours), throughput.describe) as advance:
            return extractor.run(
                [*ours, *others], shard=shard, overwrite=overwrite, progress=advance, watch=throughput.add
            )
    except KeyboardInterrupt:
        warn(f"stopped: what is finished is kept, and {name_same_command(overwrite)} goes on from there")
        raise typer.Exit(130) from None


def say_extraction(report: ExtractionReport, findings: Findings) -> None:
    """Print exit layers, totals and failures, and set the exit status by the failures."""
    if 0 < len(report.rows) <= MAX_TABLE_ROWS:
        _say_recordings(report.rows)
    if report.rows:
        _say_totals(report)
    if report.num_resumed:
        say(f"{report.num_resumed} of them were finished before")
    warn_of_sources(report.num_changed, report.num_gone)
    for label in report.summary.silent:
        warn(f"note: {label}: digital silence; its exit layer means nothing")
    warn_of_rest(findings)
    report_failures([f"{path}: {explain(error)}" for path, error in report.failed.items()], len(report.rows))


def _say_totals(report: ExtractionReport) -> None:
    """Print how many recordings exited at each layer, their mean, and the time."""
    totals, summary = report.totals(), report.summary
    label = "exits, each window's  " if summary.has_windows else "exits  "
    say(label + "  ".join(f"{layer}: {summary.exits[layer]}" for layer in sorted(summary.exits)))
    say(
        f"{totals['num_recordings']} recordings, {totals['audio_sec']:.1f} s of audio: mean exit layer "
        f"{totals['mean_exit_layer']:.2f} of {summary.num_layers} ({totals['depth']:.0%} of the layers), "
        f"{totals['seconds']:.1f} s, real-time factor {totals['real_time_factor']:.4f}"
    )


def _say_recordings(rows: Sequence[Row]) -> None:
    """Print the exit layer of each recording."""
    from rich.table import Table

    table = Table("recording", "seconds", "exit layer", "predicted loss at exit (nats)", box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        exit_layer = f"{row.mean_exit_layer:g} of {row.num_layers}"
        if row.window_exits:
            exit_layer = f"{row.mean_exit_layer:.1f} of {row.num_layers} ({len(row.window_exits)} windows)"
        losses = row.predicted_loss
        loss = f"{losses[-1]:.3f}" if losses else ""
        table.add_row(row.output.rpartition(".")[0] or row.label, f"{row.duration_sec:.2f}", exit_layer, loss)
    say_table(table)
