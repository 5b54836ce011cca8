"""What an engine's worker does at once: a batch, or as many batches as fill a shard file; and who does it."""

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
        names = halve_name(self.shard) if self.shard else ["", ""]
        return [Task(batches=half, shard=name) for half, name in zip(halves, names, strict=True)]


def halve_name(shard: str) -> list[str]:
    """Name the two shard files that are written in one's place."""
    stem, dot, ending = shard.rpartition(".")
    return [f"{stem}-{index}{dot}{ending}" for index in range(2)]


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
        """Encode all, then write the shard file: nothing is finished before it is at its place."""
        with _files.unflushed():
            outcomes = list(self._encode_batches(task, scratch / "features"))
        rows = [outcome for _, outcome in outcomes if isinstance(outcome, Row)]
        shards = self._store(task.shard, rows, scratch) if rows else {}
        for recording, outcome in outcomes:
            yield recording, replace(outcome, shard=shards[outcome.output]) if isinstance(outcome, Row) else outcome

    def _store(self, shard: str, rows: Sequence[Row], scratch: Path) -> dict[str, str]:
        """Put recordings into a shard file, or into more of them where the format does not hold so many.

        Returns:
            Each recording's output to its shard file.
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
