"""What runs in an actor: the encoder on the actor's share of a machine."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path

import torch

from daisy.distributed.cluster import import_ray
from daisy.distributed.extraction.fence import Fence
from daisy.distributed.extraction.pool import WorkerProcess
from daisy.encoder import EarlyExitEncoder
from daisy.errors import AudioError, OutputError
from daisy.extraction.journal import Row, Settings
from daisy.extraction.places import Folder, Place
from daisy.extraction.scratch import remove_abandoned
from daisy.extraction.tasks import MakeBatchEncoder, Task, TaskEncoder


@dataclass(frozen=True, kw_only=True)
class Job:
    """What all tasks of a run have in common, but for the encoder."""

    place: Place
    """For the files; a folder by its absolute path."""
    settings: Settings
    batch_sec: float
    make_batch_encoder: MakeBatchEncoder
    run_file: Path
    """In the run's folder: where the files go there, a worker must see it."""
    fence: Fence | None
    """Around shard files in a folder; in storage there is none."""


class Worker:
    """Encodes tasks and writes their files; of the results it returns rows only.

    Args:
        encoder: what runs.
        job: the run.
        threads: of torch.
        device: to run on.
    """

    def __init__(self, encoder: EarlyExitEncoder, job: Job, threads: int, device: str):
        self.encoder, self.job, self.threads, self.device = encoder, job, threads, device

    def prepare(self) -> WorkerProcess:
        """Get ready to encode.

        Returns:
            Where this is.

        Raises:
            OutputError: where this machine does not see the run's folder.
        """
        node = import_ray().get_runtime_context().get_node_id()
        job = self.job
        if isinstance(job.place, Folder) and not job.run_file.is_file():
            raise OutputError(
                f"{job.place}: is not the same folder on {socket.gethostname()}: all machines must see it, on storage "
                "that they share"
            )
        remove_abandoned()
        torch.set_num_threads(self.threads)  # whatever OMP_NUM_THREADS says on this machine
        self.task_encoder = TaskEncoder(
            self.encoder.to(self.device),
            job.place,
            job.settings,
            job.batch_sec,
            job.make_batch_encoder,
            check=job.fence.check if job.fence is not None else lambda: None,
        )
        return WorkerProcess(node, socket.gethostname(), os.getpid())

    def encode(self, task: Task) -> list[Row | AudioError]:
        """Encode a task.

        Returns:
            For each of its batches' recordings the row, or why there is none.
        """
        outcomes = {recording.label: outcome for recording, outcome in self.task_encoder.encode(task)}
        return [outcomes[recording.label] for batch in task.batches for recording in batch.recordings]
