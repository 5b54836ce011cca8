"""Options of commands that may run on a cluster and write to storage, and their parsing."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from daisy.cli.console import say, warn
from daisy.errors import UsageError

if TYPE_CHECKING:
    from daisy.distributed.extraction import RayEngine
    from daisy.extraction.throughput import Throughput

EngineName = Annotated[
    Literal["local", "ray"], typer.Option(help="Run in this process, or in actors of a Ray cluster (the extra ray).")
]
Address = Annotated[
    str,
    typer.Option(help="The Ray cluster, such as auto or HOST:6379; default: one started here for the run."),
]
Workers = Annotated[int, typer.Option(help="Actors of --engine ray; 0: as many as the cluster has room for.")]
CpusPerWorker = Annotated[int, typer.Option(help="Cores that each actor requests, and its number of threads.")]
GpusPerWorker = Annotated[float, typer.Option(help="GPUs that each actor requests and runs on, such as 1 or 0.5.")]
ShardKind = Annotated[
    Literal["tar", "parquet", "safetensors"] | None,
    typer.Option(help="Write shard files instead of a file for each recording; tar is WebDataset's."),
]
ShardMb = Annotated[float, typer.Option(help="Approximate megabytes of states in a shard file.")]
OutOrUrl = Annotated[
    str, typer.Option("--out", "-o", help="Folder to write to, or with --journal a URL, such as s3://bucket/run.")
]
JournalFolder = Annotated[
    Path | None, typer.Option("--journal", help="Folder in which to note what is finished if --out is a URL.")
]


def make_engine(
    name: str, *, address: str, workers: int, cpus: int, gpus: float, device: str, deadline_ms: float | None
) -> RayEngine | None:
    """Create the engine; return None to use this process.

    Raises:
        UsageError: if Ray is not installed, or options are given that do not apply to this engine.
    """
    if name == "local":
        if address or workers or cpus != 1 or gpus:
            raise UsageError("--address, --workers, --cpus-per-worker and --gpus-per-worker are of --engine ray")
        return None
    if device != "cpu":
        raise UsageError(f"--device {device} is where this process computes: for --engine ray give --gpus-per-worker")
    if gpus and deadline_ms is not None:
        raise UsageError("--deadline-ms is measured on this machine's cores, not on the workers' GPUs: --deadline-macs")
    from daisy.distributed.cluster import import_ray
    from daisy.distributed.extraction import RayEngine

    # Ray prints a paragraph to stdout for each worker that dies, regardless of its logging settings.
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
    import_ray()  # fails here, before anything takes long
    return RayEngine(address or None, workers=workers or None, cpus_per_worker=cpus, gpus_per_worker=gpus)


def parse_out(out: str, journal: Path | None) -> tuple[Path, str]:
    """Return the places of a run's journal and of its files.

    Returns:
        The run's folder; and the URL of the files, empty if they are in the folder.

    Raises:
        UsageError: if one of them is missing.
    """
    if "://" not in out:
        if journal is not None:
            raise UsageError("--journal is for results at a URL; of a folder the journal is in it")
        return Path(out), ""
    if journal is None:
        raise UsageError(f"--out {out} needs --journal FOLDER too: what is finished is noted in files of this machine")
    return journal, out


def say_throughput(throughput: Throughput, engine: RayEngine) -> None:
    """Print how fast the workers were, including start-up, and what became of them."""
    tally = engine.tally
    if not tally.workers:
        return
    nodes = len({worker.node for worker in tally.workers})
    say(
        f"{_count(len(tally.workers) - tally.lost, 'worker')} on {_count(nodes, 'machine')}, the first after "
        f"{tally.start_sec:.0f} s" + (f": {throughput.describe()}" if throughput.num_recordings else "")
    )
    if tally.lost:
        say(f"{_count(tally.lost, 'worker')} lost; of what they did, {tally.repeated} batches or shards begun again")
    for refusal in dict.fromkeys(tally.refusals):
        warn(f"workers were given up: {refusal}")


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
