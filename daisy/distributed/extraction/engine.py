"""Runs an extraction's batches by a pool of Ray actors.

Ray's actors and not Ray Data: batches are of about equal frames before Ray sees them, results are files that the actors
write, and what must survive a crash is in the run's journal. Of Ray Data nothing would be used but its pool of actors,
which on some clusters stays at one; and a block that fails would hide which of its batches was being encoded.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from itertools import chain
from pathlib import Path
from typing import Any

from daisy.distributed.cluster import Share, connect, count_places
from daisy.distributed.extraction.pool import Attempt, Tally, WorkerPool
from daisy.distributed.extraction.worker import Job, Worker
from daisy.errors import AudioError, UsageError
from daisy.extraction.batch_encoder import Batch, BatchEncoder, Outcome
from daisy.extraction.run_folder import list_journals

MAX_BATCH_DEATHS = 2
"""Workers that may die while they encode a batch, before its recordings are encoded one by one."""
MAX_DEATHS = 5
"""Workers that may die while they encode one recording by itself, before it counts as the reason."""


class RayEngine:
    """An extraction's engine whose batches run in actors; results are those of the local engine.

    A killed worker, or a machine that leaves, loses nothing finished, and at most the batch that it was encoding is
    encoded again. All machines must see the run's folder and the recordings under the same paths, and have daisy
    installed.

    Args:
        address: of the cluster, such as "auto" or "HOST:6379"; None: the one that this process is connected to, or that
            ``RAY_ADDRESS`` names, or one that is started on this machine for as long as the run takes.
        workers: number of actors, from beginning to end; None: as many as the cluster has room for now.
        cpus_per_worker: cores that each asks for, and torch's threads.
        gpus_per_worker: GPUs that each asks for and runs on; 0: it runs on its cores. A part of one shares it.

    Raises:
        UsageError: on impossible numbers.

    Example:
        >>> from daisy.distributed.extraction import RayEngine
        >>> RayEngine(workers=4, gpus_per_worker=0.5).share.gpus
        0.5
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        workers: int | None = None,
        cpus_per_worker: int = 1,
        gpus_per_worker: float = 0.0,
    ):
        if workers is not None and workers < 1:
            raise UsageError(f"there must be 1 worker at least, found {workers}")
        self.address, self.workers = address, workers
        self.share = Share(cpus_per_worker, gpus_per_worker)
        self.tally = Tally()
        """Of the last run's workers."""

    def encode(self, batch_encoder: BatchEncoder, batches: Iterable[Batch]) -> Generator[Iterable[Outcome], None, None]:
        """Encode all batches.

        Raises:
            UsageError: where Ray is not installed, no cluster answers, or no worker starts.
            OutputError: where a worker cannot write, or does not see the folder.
        """
        batches, self.tally = iter(batches), Tally()
        first = next(batches, None)
        if first is None:
            return  # a cluster would start for nothing
        weights = sum(weight.numel() * weight.element_size() for weight in batch_encoder.encoder.state_dict().values())
        cores = self.workers and self.workers * self.share.cpus
        with connect(self.address, num_cpus=cores, store_bytes=weights) as ray:
            size = self.workers or count_places(ray, self.share)
            if size < 1:
                raise UsageError(f"no machine of the cluster has {self.share} for a worker")
            pool: WorkerPool[Batch] = WorkerPool(
                ray, self._make_hiring(ray, batch_encoder), size, _try_again, lambda: _describe_room(ray, self.share)
            )
            self.tally = pool.tally
            for batch, outcomes in pool.run(chain([first], batches)):
                yield zip(batch.recordings, outcomes or [_report_deaths()], strict=True)

    def _make_hiring(self, ray: Any, batch_encoder: BatchEncoder) -> Callable[[], Any]:
        """Make the function that creates an actor."""
        job = Job(
            out=Path(batch_encoder.out).absolute(),
            settings=batch_encoder.settings,
            batch_sec=batch_encoder.batch_sec,
            seen=list_journals(batch_encoder.out)[0].journal,
        )
        encoder = ray.put(batch_encoder.encoder)
        threads = str(self.share.cpus)
        kind = ray.remote(Worker).options(
            num_cpus=self.share.cpus,
            num_gpus=self.share.gpus,
            max_restarts=0,  # the pool replaces it, and knows what it was doing
            runtime_env={"env_vars": {"OMP_NUM_THREADS": threads}},
        )
        return lambda: kind.remote(encoder, job, self.share.cpus, "cuda" if self.share.gpus else "cpu")


def _try_again(attempt: Attempt[Batch]) -> list[Attempt[Batch]]:
    """After the death of a worker try a batch again, then its recordings one by one; none that kills every worker."""
    batch = attempt.task
    if len(batch.recordings) == 1:
        return [attempt] if attempt.deaths < MAX_DEATHS else []
    if attempt.deaths < MAX_BATCH_DEATHS:
        return [attempt]
    pairs = zip(batch.recordings, batch.outputs, strict=True)
    return [
        Attempt(Batch(recordings=[recording], outputs=[output], num_samples=batch.num_samples))
        for recording, output in pairs
    ]


def _describe_room(ray: Any, share: Share) -> str:
    return f"each asks for {share}, and the cluster has room for {count_places(ray, share)} of them in all"


def _report_deaths() -> AudioError:
    return AudioError(f"{MAX_DEATHS} workers have died while they encoded it: out of memory?")
