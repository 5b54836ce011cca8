"""What runs in an actor: the encoder on the actor's share of a machine."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path

import torch

from daisy.encoder import EarlyExitEncoder
from daisy.errors import AudioError, OutputError
from daisy.extraction.batch_encoder import Batch, BatchEncoder
from daisy.extraction.journal import Row, Settings


@dataclass(frozen=True, kw_only=True)
class Job:
    """What all batches of a run have in common, but for the encoder."""

    out: Path
    """Absolute."""
    settings: Settings
    batch_sec: float
    seen: str
    """A file in the folder, by which a worker knows that it is the driver's."""


class Worker:
    """Encodes batches and writes their files; of the results it returns rows only.

    Args:
        encoder: what runs.
        job: the run.
        threads: of torch.
        device: to run on.
    """

    def __init__(self, encoder: EarlyExitEncoder, job: Job, threads: int, device: str):
        self.encoder, self.job, self.threads, self.device = encoder, job, threads, device

    def prepare(self) -> tuple[str, int]:
        """Get ready to encode.

        Returns:
            The machine and the process that this is.

        Raises:
            OutputError: where this machine does not see the run's folder.
        """
        if not (self.job.out / self.job.seen).is_file():
            raise OutputError(
                f"{self.job.out}: is not the same folder on {socket.gethostname()}: "
                "all machines must see it, on storage that they share"
            )
        torch.set_num_threads(self.threads)
        encoder = self.encoder.to(self.device)
        self.batch_encoder = BatchEncoder(encoder, self.job.out, self.job.settings, self.job.batch_sec)
        return socket.gethostname(), os.getpid()

    def encode(self, batch: Batch) -> list[Row | AudioError]:
        """Encode a batch.

        Returns:
            For each of its recordings the row, or why there is none.
        """
        outcomes = {recording.label: outcome for recording, outcome in self.batch_encoder.encode(batch)}
        return [outcomes[recording.label] for recording in batch.recordings]
