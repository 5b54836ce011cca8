"""Run the tasks of an extraction on a pool of Ray actors.

Ray actors are used rather than Ray Data: batches already have about equal numbers of frames, the actors write the
results to files, and the run's journal holds all that must survive a crash. Only Ray Data's actor pool would be of use,
and on some clusters it stays at one actor; a failed block would also hide which of its batches was being encoded.
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
"""Number of workers that may die on a task of several recordings before the task is halved."""
MAX_DEATHS = 5
"""Number of workers that may die while encoding one recording alone before the recording is taken to be the cause."""


class RayEngine:
    """An extraction engine that encodes batches in Ray actors; its results are those of the local engine.

    If a worker is killed or a machine leaves, no finished work is lost, and at most the batch being encoded is encoded
    again. If a machine cannot write, or does not see the run's folder, others do its work. All machines must see the
    run's folder and the recordings under the same paths, and have daisy installed.

    Args:
        address: address of the cluster, such as "auto" or "HOST:6379"; None: the cluster that this process is connected
            to, or that ``RAY_ADDRESS`` names, or else one that is started on this machine for the duration of the run.
        workers: number of actors throughout the run; they wait until there is room for them. None: as many as the
            machines now in the cluster would hold if nothing else ran there.
        cpus_per_worker: cores that each worker requests; torch uses as many threads.
        gpus_per_worker: GPUs that each worker requests and runs on; a fraction shares a GPU; 0 runs on CPU.

    Raises:
        UsageError: if a number is impossible.

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
        """Tally of the last run's workers."""

    @contextlib.contextmanager
    def open(self, encoder: EarlyExitEncoder) -> Iterator[Any]:
        """Connect to the cluster, or start one, for as long as the context lasts.

        Args:
            encoder: encoder that will run.

        Yields:
            The module ``ray``.

        Raises:
            UsageError: if Ray is not installed, no cluster answers, or the cluster has no room for a worker.
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
            UsageError: if Ray is not installed, no cluster answers, or no worker starts.
            OutputError: if no worker can write, or none sees the folder.
        """
        tasks, self.tally = iter(tasks), Tally()
        first = next(tasks, None)
        if first is None:
            return  # no need to start a cluster
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
            num_cpus=self.share.cpus,  # Ray then sets OMP_NUM_THREADS to it, unless the machine has set that
            num_gpus=self.share.gpus,
            max_restarts=0,  # the pool replaces the actor, and knows its task
        )
        return lambda: kind.remote(encoder, job, self.share.cpus, "cuda" if self.share.gpus else "cpu")


def _try_again(attempt: Attempt[Task]) -> list[Attempt[Task]]:
    """After a worker's death retry a task, later its halves; give up a recording that kills worker after worker."""
    if attempt.task.num_recordings == 1:
        return [attempt] if attempt.deaths < MAX_DEATHS else []
    if attempt.deaths < MAX_TASK_DEATHS:
        return [attempt]
    return [Attempt(half) for half in attempt.task.halve()]


def _describe_room(ray: Any, share: Share) -> str:
    return f"each asks for {share}, and the cluster's machines hold {count_places(ray, share)} of them in all"


def _report_deaths() -> AudioError:
    return AudioError(f"{MAX_DEATHS} workers have died while they encoded it: out of memory?")
