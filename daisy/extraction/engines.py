"""What runs an extraction's batches: this process, or others (`daisy.distributed.extraction`)."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from typing import Protocol

from daisy.extraction.batch_encoder import Batch, BatchEncoder, Outcome


class Engine(Protocol):
    """Runs batches, and says what came out of each."""

    def encode(self, batch_encoder: BatchEncoder, batches: Iterable[Batch]) -> Generator[Iterable[Outcome], None, None]:
        """Encode all batches and write their files.

        Args:
            batch_encoder: what runs.
            batches: taken one by one, as there is somebody to run them.

        Yields:
            A batch's outcomes, in any order of the batches; each batch once. What is yielded is finished: its files
            are whole.

        Raises:
            OutputError: where a file cannot be written.
        """
        ...


class LocalEngine:
    """Runs batches in this process, one after the other, in their order."""

    def encode(self, batch_encoder: BatchEncoder, batches: Iterable[Batch]) -> Generator[Iterable[Outcome], None, None]:
        """Encode all batches; a batch's recordings are finished one by one."""
        for batch in batches:
            yield batch_encoder.encode(batch)
