"""Runs an extraction's tasks by a pool of Ray actors.

Ray's actors and not Ray Data: batches are of about equal frames before Ray sees them, results are files that the actors
write, and what must survive a crash is in the run's journal. Of Ray Data nothing would be used but its pool of actors,
which on some clusters stays at one; and a block that fails would hide which of its batches was being encoded.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from daisy.distributed.cluster import Share, connect, count_places
from daisy.distributed.extraction.fence import Fence
from daisy.distributed.extraction.pool import Attempt, Tally, WorkerPool
from daisy.distributed.extraction.worker import Job, Worker
from daisy.encoder import EarlyExitEncoder
from daisy.errors import AudioError, UsageError
from daisy.extraction.batch_encoder import Outcome
from daisy.extraction.places import Folder
from daisy.extraction.tasks import Task, TaskEncoder

MAX_TASK_DEATHS = 2
"""Workers that may die while they do a task of several recordings, before it is halved."""
MAX_DEATHS = 5
"""Workers that may die while they encode one recording by itself, before it counts as the reason."""


class RayEngine:
    """An extraction's engine whose batches run in actors; results are those of the local engine.

    A killed worker, or a machine that leaves, loses nothing finished, and at most the batch that it was encoding is
    encoded again. Where a machine cannot write, or does not see the run's folder, others do its work. All machines must
    see the run's folder and the recordings under the same paths, and have daisy installed.

    Args:
        address: of the cluster, such as "auto" or "HOST:6379"; None: the one that this process is connected to, or that
            ``RAY_ADDRESS`` names, or one that is started on this machine for as long as the run takes.
        workers: number of actors, from beginning to end, which wait for places; None: as many as the machines that the
            cluster has now would hold, if nothing else ran there.
        cpus_per_worker: cores that each asks for, and torch's threads.
        gpus_per_worker: GPUs that each asks for and runs on; 0: it runs on its cores. A part of one shares it.

    Raises:
        UsageError: on impossible numbers.

    Example:
        >>> from daisy.distributed.extraction import RayEngine
        >>> RayEngine(workers=4, gpus_per_worker=0.5).share.gpus
        0.5
    """

    has_workers = True

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

    @contextlib.contextmanager
    def open(self, encoder: EarlyExitEncoder) -> Iterator[Any]:
        """Connect to the cluster, or start one, for as long as the context lasts.

        Args:
            encoder: that will run.

        Yields:
            The module ``ray``.

        Raises:
            UsageError: where Ray is not installed, no cluster answers, or it has no room for a worker.
        """
        weights = sum(weight.numel() * weight.element_size() for weight in encoder.state_dict().values())
        cores = self.workers and self.workers * self.share.cpus
        with connect(self.address, num_cpus=cores, store_bytes=weights) as ray:
            if not (self.workers or count_places(ray, self.share)):
                raise UsageError(f"no machine of the cluster has {self.share} for a worker", remedy="workers")
            yield ray

    def encode(
        self, task_encoder: TaskEncoder, tasks: Iterable[Task], run_file: Path
    ) -> Generator[Iterable[Outcome], None, None]:
        """Encode all tasks.

        Raises:
            UsageError: where Ray is not installed, no cluster answers, or no worker starts.
            OutputError: where no worker can write, or sees the folder.
        """
        tasks, self.tally = iter(tasks), Tally()
        first = next(tasks, None)
        if first is None:
            return  # a cluster would start for nothing
        start = time.monotonic()
        with self.open(task_encoder.encoder) as ray:
            size = self.workers or count_places(ray, self.share)
            hire = self._make_hiring(ray, task_encoder, run_file)
            pool: WorkerPool[Task] = WorkerPool(
                ray, hire, size, _try_again, lambda: _describe_room(ray, self.share), start
            )
            self.tally = pool.tally
            for task, outcomes in pool.run(chain([first], tasks)):
                recordings = [recording for batch in task.batches for recording in batch.recordings]
                yield list(zip(recordings, outcomes or [_report_deaths()], strict=True))

    def _make_hiring(self, ray: Any, task_encoder: TaskEncoder, run_file: Path) -> Callable[[], Any]:
        """Make the function that creates an actor."""
        place = task_encoder.place
        job = Job(
            place=Folder(place.root.absolute()) if isinstance(place, Folder) else place,
            settings=task_encoder.settings,
            batch_sec=task_encoder.batch_sec,
            make_batch_encoder=task_encoder.make_batch_encoder,
            run_file=run_file.absolute(),
            fence=Fence.read(run_file.absolute()) if isinstance(place, Folder) else None,
        )
        encoder = ray.put(task_encoder.encoder)
        kind = ray.remote(Worker).options(
            num_cpus=self.share.cpus,  # as it is asked for, Ray sets OMP_NUM_THREADS to it, unless the machine has
            num_gpus=self.share.gpus,
            max_restarts=0,  # the pool replaces it, and knows what it was doing
        )
        return lambda: kind.remote(encoder, job, self.share.cpus, "cuda" if self.share.gpus else "cpu")


def _try_again(attempt: Attempt[Task]) -> list[Attempt[Task]]:
    """After a worker's death try a task again, then its halves; one recording that kills worker after worker never."""
    if attempt.task.num_recordings == 1:
        return [attempt] if attempt.deaths < MAX_DEATHS else []
    if attempt.deaths < MAX_TASK_DEATHS:
        return [attempt]
    return [Attempt(half) for half in attempt.task.halve()]


def _describe_room(ray: Any, share: Share) -> str:
    return f"each asks for {share}, and the cluster's machines hold {count_places(ray, share)} of them in all"


def _report_deaths() -> AudioError:
    return AudioError(f"{MAX_DEATHS} workers have died while they encoded it: out of memory?")
