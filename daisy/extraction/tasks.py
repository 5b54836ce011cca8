"""What an engine's worker does at once: a batch, or as many batches as fill a shard file; and who does it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from daisy import _files
from daisy.encoder import EarlyExitEncoder
from daisy.extraction.batch_encoder import Batch, BatchEncoder, Outcome
from daisy.extraction.journal import Row, Settings
from daisy.extraction.places import Folder, Place
from daisy.extraction.shard_files import write_shard

MakeBatchEncoder = Callable[[EarlyExitEncoder, Path, Settings, float], BatchEncoder]
"""From what `BatchEncoder` is made of; that class itself, or what makes another kind."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """Batches whose files are finished together."""

    batches: Sequence[Batch]
    shard: str = ""
    """Name of the file that holds them all; empty: each recording has its own."""

    @property
    def num_recordings(self) -> int:
        """Of all batches."""
        return sum(len(batch.recordings) for batch in self.batches)

    def halve(self) -> list[Task]:
        """Divide it into two, each with a shard file of its own, or none where it is of one recording."""
        if len(self.batches) > 1:
            middle = len(self.batches) // 2
            halves = [self.batches[:middle], self.batches[middle:]]
        else:
            (batch,) = self.batches
            middle = len(batch.recordings) // 2
            if not middle:
                return []
            halves = [
                [replace(batch, recordings=batch.recordings[part], outputs=batch.outputs[part])]
                for part in (slice(middle), slice(middle, None))
            ]
        stem, dot, ending = self.shard.rpartition(".")
        names = [f"{stem}-{index}{dot}{ending}" if self.shard else "" for index in range(2)]
        return [Task(batches=half, shard=name) for half, name in zip(halves, names, strict=True)]


def fill_shards(batches: Iterable[Batch], max_samples: int, names: Iterator[str]) -> Iterator[Task]:
    """Group batches into tasks that fill a shard file each.

    Args:
        batches: in any order.
        max_samples: of a shard's recordings; a batch of more is a shard by itself.
        names: of the shard files.
    """
    group: list[Batch] = []
    total = 0
    for batch in batches:
        size = len(batch.recordings) * batch.num_samples
        if group and total + size > max_samples:
            yield Task(batches=group, shard=next(names))
            group, total = [], 0
        group.append(batch)
        total += size
    if group:
        yield Task(batches=group, shard=next(names))


class TaskEncoder:
    """Encodes tasks: recordings' files go to their place, directly, in shard files or by upload.

    Args:
        encoder: what runs.
        place: for the files.
        settings: of the run.
        batch_sec: seconds of audio that windows run in.
        make_batch_encoder: makes what encodes batches into a folder; it can be pickled.
        check: is called before a shard file gets its name, and may refuse.
    """

    def __init__(
        self,
        encoder: EarlyExitEncoder,
        place: Place,
        settings: Settings,
        batch_sec: float,
        make_batch_encoder: MakeBatchEncoder = BatchEncoder,
        check: Callable[[], None] = lambda: None,
    ):
        self.encoder, self.place, self.settings, self.batch_sec = encoder, place, settings, batch_sec
        self.make_batch_encoder, self.check = make_batch_encoder, check

    def encode(self, task: Task) -> Iterator[Outcome]:
        """Encode a task's batches.

        Yields:
            Each recording, and its row, when its file is at its place, or why there is none.

        Raises:
            OutputError: where a file cannot be written.
        """
        if not task.shard and isinstance(self.place, Folder):
            yield from self._encode_batches(task, self.place.root)
            return
        with tempfile.TemporaryDirectory(prefix="daisy-") as scratch:
            if task.shard:
                yield from self._encode_shard(task, Path(scratch))
            else:
                for recording, outcome in self._encode_batches(task, Path(scratch)):
                    if isinstance(outcome, Row) and outcome.output:
                        file = Path(scratch) / outcome.output
                        self.place.take(file, outcome.output)
                        file.unlink()
                    yield recording, outcome

    def _encode_batches(self, task: Task, folder: Path) -> Iterator[Outcome]:
        batch_encoder = self.make_batch_encoder(self.encoder, folder, self.settings, self.batch_sec)
        for batch in task.batches:
            yield from batch_encoder.encode(batch)

    def _encode_shard(self, task: Task, scratch: Path) -> Iterator[Outcome]:
        """Encode all, then write the shard file: nothing is finished before it is at its place."""
        with _files.unflushed():
            outcomes = list(self._encode_batches(task, scratch / "features"))
        rows = [outcome for _, outcome in outcomes if isinstance(outcome, Row)]
        if rows:
            if isinstance(self.place, Folder):
                shard = self.place.root / task.shard
                write_shard(shard, self.settings.shards, scratch / "features", rows, self.settings, self.check)
            else:
                write_shard(scratch / task.shard, self.settings.shards, scratch / "features", rows, self.settings)
                self.place.take(scratch / task.shard, task.shard)
        for recording, outcome in outcomes:
            yield recording, replace(outcome, shard=task.shard) if isinstance(outcome, Row) else outcome
