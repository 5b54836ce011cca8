"""The folder of an extraction: its locks, and the finished recordings of all its journals."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from daisy import _files, _locks
from daisy.audio import Recording
from daisy.audio.recordings import parse_label
from daisy.errors import OutputError, UsageError
from daisy.extraction.journal import GONE, Failure, Journal, Row, merge, parse_row, read_header, read_journal, stamp
from daisy.extraction.places import Folder, Place, open_place
from daisy.extraction.run_journals import (
    FOLDER_LOCK,
    INDEX_FILES,
    INDEX_LOCK,
    LOCK_SUFFIX,
    TRANSCRIPT_FILES,
    UNIT_FILES,
    list_journals,
    list_running,
    read_subtitles,
)
from daisy.extraction.shards import Shard
from daisy.extraction.stored_rows import StoredRows

if TYPE_CHECKING:
    from _typeshed import DataclassInstance as AnySettings


class RunFolder(AbstractContextManager["RunFolder"]):
    """The right to write a shard's results into a folder, for as long as the context lasts.

    Several shards of the same number may be written at once, each by one process. Recordings in the folder's other
    journals count as finished, whatever their number of shards.

    Args:
        out: the folder.
        settings: settings of the run.
        shard: share to write.
        overwrite: start over if the folder holds another run.
        row_type: type of the journals' rows.
        place: place of the recordings' files; None: the folder.

    Raises:
        OutputError: on entering, if another process is writing the same recordings, the folder cannot be written, or it
            holds a run with other settings.
    """

    def __init__(
        self,
        out: Path,
        settings: AnySettings,
        shard: Shard,
        *,
        overwrite: bool = False,
        row_type: type[Row] = Row,
        place: Place | None = None,
    ):
        self.out, self.settings, self.shard, self.overwrite = out, settings, shard, overwrite
        self.row_type, self.place = row_type, place or Folder(out)
        self.rows = StoredRows(parse_row)
        """Finished recordings of all journals, by label."""
        self.failures: dict[str, Failure] = {}
        """Failed recordings of all journals, by label."""
        self.num_changed = 0
        """Number of requested recordings that were finished but have changed since."""
        self.num_gone = 0
        """Number of recordings whose audio files are gone, and that stay finished."""
        self._journal = Journal(out / shard.journal)
        self._lock: _locks.Lock | None = None

    def __enter__(self) -> RunFolder:
        with _files.refusing(self.out):
            self.out.mkdir(parents=True, exist_ok=True)
        with _locks.hold(self.out / FOLDER_LOCK):
            running = self._refuse_conflicts()
            self._lock = self._lock_shard(self.shard)
            try:
                if self.overwrite:
                    with _locks.hold(self.out / INDEX_LOCK):
                        self._delete_earlier_run()
                self._refuse_other_settings(running)
                self._begin()
            except BaseException:
                self._lock.release()
                raise
        try:
            self._read_journals()  # takes seconds for large runs: without the lock
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock is not None:
            self._lock.release()

    @property
    def journal(self) -> Path:
        """File in which this shard's results are noted."""
        return self._journal.path

    def list_unfinished(self, recordings: Iterable[Recording]) -> list[Recording]:
        """List the recordings still to be done, and update `num_changed` and `num_gone`.

        A recording is finished if it has not changed since and its result's file exists. Missing audio counts as
        unchanged.
        """
        self.num_changed = self.num_gone = 0
        return [recording for recording in recordings if not self._has(recording)]

    def _has(self, recording: Recording) -> bool:
        label = recording.label
        if label not in self.rows:
            return False
        source = stamp(recording)
        if source not in (GONE, self.rows.source(label)):
            self.num_changed += 1
            return False
        file = self.rows.file(label)
        is_there = not file or self.place.has(file)
        self.num_gone += is_there and source == GONE
        return is_there

    def check_outputs(self, outputs: Mapping[str, str]) -> None:
        """Refuse to overwrite another recording's file of an earlier run.

        Raises:
            UsageError: if a recording's file would overwrite another recording's.
        """
        wanted = {output: label for label, output in outputs.items()} if self.rows else {}
        for label in self.rows:
            output = self.rows.output(label)
            if wanted.get(output, label) != label:
                raise UsageError(f"{self.out / output} holds {label}, not {wanted[output]}", remedy="other_out")

    def add(self, *rows: Row) -> None:
        """Note finished recordings."""
        rows = tuple(dataclasses.replace(row, at=self._now(row.label)) for row in rows)
        for row, place in zip(rows, self._journal.add(*rows), strict=True):
            self.rows.note(row, self._journal.path, place)
            self.failures.pop(row.label, None)

    def fail(self, reasons: Mapping[str, str]) -> None:
        """Note failed recordings by label, unless the same failure is noted already."""
        failures = [
            Failure(path=path, reason=reason, at=self._now(path))
            for path, reason in reasons.items()
            if path not in self.failures or self.failures[path].reason != reason
        ]
        if failures:
            self._journal.add(*failures)
        for failure in failures:
            self.failures[failure.path] = failure
            self.rows.drop(failure.path)

    def forget_failures(self, recordings: Iterable[Recording], others: Iterable[Recording] = ()) -> None:
        """Cancel the failures noted by earlier runs, except those of some recordings.

        Args:
            recordings: recordings whose failures stay.
            others: recordings whose failures stay, with those of all channels of their files.
        """
        if not self.failures:
            return  # with very many recordings even the sets are large
        wanted = {recording.label for recording in recordings}
        files = {str(recording.path) for recording in others}
        gone = [path for path in self.failures if path not in wanted and parse_label(path) not in files]
        if gone:
            self._journal.add(*(Failure(path=path, reason=None, at=self._now(path)) for path in gone))
        for path in gone:
            del self.failures[path]

    def _now(self, path: str) -> float:
        """Return the time, but after the last note on a recording even if that is from a host whose clock is ahead."""
        if path in self.rows:
            known = self.rows.at(path)
        elif path in self.failures:
            known = self.failures[path].at
        else:
            return time.time()
        return max(time.time(), math.nextafter(known, math.inf))

    def _refuse_conflicts(self) -> set[Shard]:
        """List the shards that other processes are writing.

        Raises:
            OutputError: if they have recordings in common with this one.
        """
        live = list_running(self.out)
        for shard in sorted(live, key=lambda shard: shard != self.shard):
            if shard == self.shard or shard.count != self.shard.count:
                holder = _locks.describe_holder(self.out / (shard.journal + LOCK_SUFFIX))
                what = "" if shard.count == 1 else f" {shard}"
                raise OutputError(f"{self.out}:{what} is being written by {holder}", remedy="busy")
        return live

    def _lock_shard(self, shard: Shard) -> _locks.Lock:
        lock = _locks.acquire(self.out / (shard.journal + LOCK_SUFFIX))
        assert lock is not None  # locks are taken only under the folder's lock
        return lock

    def _refuse_other_settings(self, running: set[Shard]) -> None:
        """Refuse to resume a run with other settings if it has finished anything or is running.

        Journals are read only if their first line has other settings.
        """
        for shard in list_journals(self.out):
            path = self.out / shard.journal
            different = self._compare_header(path)
            if different and (shard in running or read_journal(path).rows):
                raise OutputError(f"{self.out}: holds a run with another {', '.join(different)}", remedy="overwrite")

    def _begin(self) -> None:
        """Write the first line of this shard's journal, unless it is there, for processes that begin later."""
        path = self._journal.path
        _files.remove_leftovers([path])
        if read_header(path) is None or self._compare_header(path):
            self._journal.begin(self.settings)

    def _compare_header(self, path: Path) -> list[str]:
        """List the settings that differ in a journal's first line; empty if it has none yet."""
        header = read_header(path)
        return [] if header is None else Journal(path, header=header).find_differences(self.settings)

    def _read_journals(self) -> None:
        """Read what is finished.

        Only this shard's journal is repaired: on file systems without locks, another may be in use without any sign.
        """
        journals = []
        for shard in list_journals(self.out):
            journal = read_journal(self.out / shard.journal, repair=shard == self.shard, row_type=self.row_type)
            different = journal.find_differences(self.settings)
            if different and journal.rows:
                raise OutputError(f"{self.out}: holds a run with another {', '.join(different)}", remedy="overwrite")
            if shard == self.shard:
                self._journal = journal
            if not different:  # otherwise nothing was finished, and failures do not apply
                journals.append(journal)
        self.rows, self.failures = merge(journals)

    def _delete_earlier_run(self) -> None:
        """Delete what earlier runs left, so that none of it is mistaken for this run's."""
        here = Folder(self.out)
        for shard in list_journals(self.out):
            path = self.out / shard.journal
            try:
                journal = read_journal(path)
            except OutputError as error:
                if error.remedy != "overwrite":
                    raise
                journal = Journal(path)
            place = open_place(self.out, journal.header.get("store", ""))
            for file in dict.fromkeys(map(journal.rows.file, journal.rows)):
                if file:
                    place.remove(file)
            here.remove(shard.journal)
        of_all_commands = (*read_subtitles(self.out), *INDEX_FILES, *TRANSCRIPT_FILES, *UNIT_FILES)
        for name in of_all_commands:
            here.remove(name)
