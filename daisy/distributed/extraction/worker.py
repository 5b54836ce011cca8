"""The code that runs in an actor: the encoder on the actor's share of a machine."""

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
    """Everything that the tasks of a run have in common, except the encoder."""

    place: Place
    """Place for the files; a folder has an absolute path."""
    settings: Settings
    batch_sec: float
    make_batch_encoder: MakeBatchEncoder
    run_file: Path
    """File in the run's folder; workers must see it if the output goes to that folder."""
    fence: Fence | None
    """Protects shard files in a folder; None for object storage."""


class Worker:
    """Encode tasks and write their files; return only rows of the results.

    Args:
        encoder: encoder to run.
        job: settings of the run.
        threads: threads of torch.
        device: device to run on.
    """

    def __init__(self, encoder: EarlyExitEncoder, job: Job, threads: int, device: str):
        self.encoder, self.job, self.threads, self.device = encoder, job, threads, device

    def prepare(self) -> WorkerProcess:
        """Get ready to encode.

        Returns:
            The process in which this worker runs.

        Raises:
            OutputError: if this machine does not see the run's folder.
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
            For each recording of the task, its row or the error.
        """
        outcomes = {recording.label: outcome for recording, outcome in self.task_encoder.encode(task)}
        return [outcomes[recording.label] for batch in task.batches for recording in batch.recordings]
