"""The folder of an extraction: who may write there, and what all its journals say is finished."""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType

from daisy import _files, _locks
from daisy.audio import Recording
from daisy.errors import OutputError, UsageError
from daisy.extraction.journal import Failure, Journal, Row, Settings, merge, read_journal, stamp
from daisy.extraction.shards import Shard, parse_journal_name

GATE = ".journal.lock"
"""The lock that is held while locks are taken, and while the index is written: for moments."""
INDEX_FILES = ("index.json", "index.csv")
LOCK_SUFFIX = ".lock"
"""Behind a journal's name it is the lock of the process that writes the journal."""


class RunFolder(AbstractContextManager["RunFolder"]):
    """The right to write a shard's results into a folder, for as long as the context lasts.

    Several shards of one number may be written at once, each by one process. What the folder's other journals hold
    counts as finished, whatever number of shards it was done with.

    Args:
        out: the folder.
        settings: of the run.
        shard: which share is written.
        overwrite: begin again where the folder holds another run.

    Raises:
        OutputError: on entering, where somebody else is writing the same recordings, where the folder cannot be
            written, or where it holds a run with other settings.
    """

    def __init__(self, out: Path, settings: Settings, shard: Shard, *, overwrite: bool = False):
        self.out, self.settings, self.shard, self.overwrite = out, settings, shard, overwrite
        self.rows: dict[str, Row] = {}
        """Finished recordings of all journals, by label."""
        self.failures: dict[str, Failure] = {}
        """Failed ones."""
        self._journal = Journal(out / shard.journal)
        self._lock: _locks.Lock | None = None

    def __enter__(self) -> RunFolder:
        try:
            self.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{self.out}: cannot be written ({_files.explain(error)})") from None
        with _locks.hold(self.out / GATE):
            others = self._refuse_conflicts()
            self._lock = self._take(self.shard)
            try:
                self._open(others)
            except BaseException:
                self._lock.release()
                raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock is not None:
            self._lock.release()

    def has(self, recording: Recording) -> bool:
        """Tell whether a recording is finished, unchanged since, and its file still there."""
        row = self.rows.get(recording.label)
        return row is not None and row.source == stamp(recording) and os.path.isfile(self.out / row.output)

    def check_outputs(self, outputs: Mapping[str, str]) -> None:
        """Refuse to write over another recording's file of an earlier run.

        Raises:
            UsageError: where a file of an earlier run would be overwritten by another recording's.
        """
        taken = {row.output: row.label for row in self.rows.values()}
        for label, output in outputs.items():
            if taken.get(output, label) != label:
                raise UsageError(f"{self.out / output} holds {taken[output]}, not {label}", remedy="other_out")

    def add(self, row: Row) -> None:
        """Note a finished recording."""
        row = dataclasses.replace(row, at=self._now(row.label))
        self._journal.add(row)
        self.rows[row.label] = row
        self.failures.pop(row.label, None)

    def fail(self, path: str, reason: str) -> None:
        """Note a recording that failed; once, where it fails in every run for the same reason."""
        known = self.failures.get(path)
        if known is None or known.reason != reason:
            failure = Failure(path=path, reason=reason, at=self._now(path))
            self._journal.add(failure)
            self.failures[path] = failure
            self.rows.pop(path, None)

    def forget_failures(self, recordings: Iterable[Recording]) -> None:
        """Let failures that earlier runs noted no longer count, but for those of some recordings."""
        wanted = {recording.label for recording in recordings}
        for path in [path for path in self.failures if path not in wanted]:
            self._journal.add(Failure(path=path, reason=None, at=self._now(path)))
            del self.failures[path]

    def _now(self, path: str) -> float:
        """The time, but after what is known of a recording, also where another host's clock is ahead."""
        known = self.rows.get(path) or self.failures.get(path)
        return max(time.time(), math.nextafter(known.at, math.inf)) if known else time.time()

    def _refuse_conflicts(self) -> set[Shard]:
        """List the shards that other processes are writing.

        Raises:
            OutputError: where they have recordings in common with this one.
        """
        live = list_running(self.out)
        for shard in sorted(live, key=lambda shard: shard != self.shard):
            if shard == self.shard or shard.count != self.shard.count:
                holder = _locks.describe_holder(self.out / (shard.journal + LOCK_SUFFIX))
                what = "" if shard.count == 1 else f" {shard}"
                raise OutputError(f"{self.out}:{what} is being written by {holder}", remedy="busy")
        return live

    def _take(self, shard: Shard) -> _locks.Lock:
        lock = _locks.acquire(self.out / (shard.journal + LOCK_SUFFIX))
        assert lock is not None  # nobody takes one without the gate's
        return lock

    def _open(self, running: set[Shard]) -> None:
        """Read what is finished, and begin or go on with the own journal."""
        journals: dict[Shard, Journal] = {}
        for shard in list_journals(self.out):
            path = self.out / shard.journal
            try:
                journals[shard] = read_journal(path, repair=shard not in running)
            except OutputError as error:
                if not self.overwrite or error.remedy != "overwrite":
                    raise
                journals[shard] = Journal(path)
        if self.overwrite:
            self._forget(journals)
        for shard, journal in list(journals.items()):
            different = journal.find_differences(self.settings) if journal.header or journal.rows else []
            if different and not journal.rows and shard not in running:
                _remove(journal.path)  # nothing was finished: it is nobody's
                del journals[shard]
            elif different:
                raise OutputError(f"{self.out}: holds a run with another {', '.join(different)}", remedy="overwrite")
        self._journal = journals.setdefault(self.shard, self._journal)
        _files.remove_leftovers([self._journal.path])
        if not self._journal.header:
            self._journal.begin(self.settings)
        self.rows, self.failures = merge(journals.values())

    def _forget(self, journals: dict[Shard, Journal]) -> None:
        """Take away what earlier runs left, so that none of it is mistaken for this one's."""
        for journal in journals.values():
            for row in journal.rows.values():
                _remove(self.out / row.output)
            _remove(journal.path)
        for name in INDEX_FILES:
            _remove(self.out / name)
        journals.clear()


def list_journals(out: Path) -> list[Shard]:
    """List the shards whose journals are in a folder, the whole run's first."""
    return _list_shards(out, "")


def list_running(out: Path) -> set[Shard]:
    """List the shards that other processes are writing now. Locks that killed ones left are taken away.

    The gate's lock must be held.
    """
    live = set()
    for shard in _list_shards(out, LOCK_SUFFIX):
        lock = _locks.acquire(out / (shard.journal + LOCK_SUFFIX))
        if lock is None:
            live.add(shard)
        else:
            lock.release()
    return live


def _list_shards(out: Path, suffix: str) -> list[Shard]:
    try:
        names = [name.removesuffix(suffix) for name in os.listdir(out) if name.endswith(suffix)]
    except OSError as error:
        raise OutputError(f"{out}: cannot be read ({_files.explain(error)})") from None
    shards = filter(None, map(parse_journal_name, names))
    return sorted(shards, key=lambda shard: (shard.count, shard.index))


def _remove(path: Path) -> None:
    """Take a file away that would be mistaken for this run's: where that fails, the run must not begin."""
    try:
        path.unlink()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        raise OutputError(f"{path}: cannot be taken away ({_files.explain(error)})") from None
