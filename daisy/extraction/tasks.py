"""A task of an engine's worker: one batch, or as many batches as fill a shard file; and the encoder of tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from daisy import _files
from daisy.encoder import EarlyExitEncoder
from daisy.extraction.batch_encoder import Batch, BatchEncoder, Outcome
from daisy.extraction.journal import Row, Settings
from daisy.extraction.places import Folder, Place
from daisy.extraction.scratch import open_scratch
from daisy.extraction.shard_files import HeaderTooLongError, write_shard

MakeBatchEncoder = Callable[[EarlyExitEncoder, Path, Settings, float], BatchEncoder]
"""Function with the arguments of `BatchEncoder`: that class itself, or a function that creates another kind."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """Batches whose files are finished together."""

    batches: Sequence[Batch]
    shard: str = ""
    """Name of the file that holds all recordings; empty: each recording has its own."""

    @property
    def num_recordings(self) -> int:
        """Number of recordings in all batches."""
        return sum(len(batch.recordings) for batch in self.batches)

    def halve(self) -> list[Task]:
        """Divide the task into two, each with its own shard file; return no tasks if it has only one recording."""
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
        names = halve_name(self.shard) if self.shard else ["", ""]
        return [Task(batches=half, shard=name) for half, name in zip(halves, names, strict=True)]


def halve_name(shard: str) -> list[str]:
    """Return the names of the two shard files that replace one."""
    stem, dot, ending = shard.rpartition(".")
    return [f"{stem}-{index}{dot}{ending}" for index in range(2)]


def fill_shards(batches: Iterable[Batch], max_samples: int, names: Iterator[str]) -> Iterator[Task]:
    """Group batches into tasks, each of which fills a shard file.

    Args:
        batches: batches in any order.
        max_samples: samples of a shard's recordings; a longer batch is a shard of its own.
        names: names of the shard files.
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
    """Encode tasks, and put recordings' files in their place: directly, in shard files or by upload.

    Args:
        encoder: encoder to run.
        place: place for the files.
        settings: settings of the run.
        batch_sec: seconds of audio in windows that run together.
        make_batch_encoder: function that creates the encoder of batches into a folder; it must be picklable.
        check: called before a shard file gets its name; it may raise an error.
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
            Each recording with its row, once its file is in place, or with the error that left it without one.

        Raises:
            OutputError: if a file cannot be written.
        """
        if not task.shard and isinstance(self.place, Folder):
            yield from self._encode_batches(task, self.place.root)
            return
        with open_scratch() as scratch:
            if task.shard:
                yield from self._encode_shard(task, scratch)
            else:
                for recording, outcome in self._encode_batches(task, scratch):
                    if isinstance(outcome, Row) and outcome.output:
                        file = scratch / outcome.output
                        self.place.take(file, outcome.output)
                        file.unlink()
                    yield recording, outcome

    def _encode_batches(self, task: Task, folder: Path) -> Iterator[Outcome]:
        batch_encoder = self.make_batch_encoder(self.encoder, folder, self.settings, self.batch_sec)
        for batch in task.batches:
            yield from batch_encoder.encode(batch)

    def _encode_shard(self, task: Task, scratch: Path) -> Iterator[Outcome]:
        """Encode everything, then write the shard file; nothing is finished before the file is in place."""
        with _files.unflushed():
            outcomes = list(self._encode_batches(task, scratch / "features"))
        rows = [outcome for _, outcome in outcomes if isinstance(outcome, Row)]
        shards = self._store(task.shard, rows, scratch) if rows else {}
        for recording, outcome in outcomes:
            yield recording, replace(outcome, shard=shards[outcome.output]) if isinstance(outcome, Row) else outcome

    def _store(self, shard: str, rows: Sequence[Row], scratch: Path) -> dict[str, str]:
        """Put recordings into a shard file, or into several if there are too many for the format.

        Returns:
            Shard file of each recording, by the recording's output.
        """
        kind, features = self.settings.shards, scratch / "features"
        try:
            if isinstance(self.place, Folder):
                write_shard(self.place.root / shard, kind, features, rows, self.settings, self.check)
            else:
                write_shard(scratch / shard, kind, features, rows, self.settings)
                self.place.take(scratch / shard, shard)
                (scratch / shard).unlink()
        except HeaderTooLongError:
            if len(rows) == 1:
                raise
            middle, (first, second) = len(rows) // 2, halve_name(shard)
            return self._store(first, rows[:middle], scratch) | self._store(second, rows[middle:], scratch)
        return {row.output: shard for row in rows}
