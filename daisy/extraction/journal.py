"""The journals of an extraction: its settings, what is finished, what failed; one flushed line per recording."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable
from dataclasses import MISSING, asdict, dataclass, field, fields
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from daisy import _files
from daisy.audio import Channel, Recording
from daisy.audio.archives import find_file
from daisy.audio.recordings import format_label
from daisy.errors import OutputError, UsageError
from daisy.extraction.stored_rows import StoredRows

if TYPE_CHECKING:
    from _typeshed import DataclassInstance as AnySettings

FORMATS = ("safetensors", "npy")
STORED_DTYPES = {"float32": torch.float32, "float16": torch.float16}
FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings that decide the content of the files: a run may only resume in a folder that was begun with the same."""

    checkpoint: str
    """SHA-256 of the checkpoint's file."""
    policy: dict[str, Any]
    """Configuration of the policy (`Policy.to_config`)."""
    layers: str
    """"last": the exit layer's states, (T, D); "all": layers 0 to the exit layer, (layers, T, D)."""
    scores: list[str]
    """Scores in the index."""
    score_stride: int
    """A score uses every ``score_stride``-th frame."""
    format: str
    dtype: str
    window_sec: float | None = None
    """Longer recordings run in windows of this many seconds (`daisy.extraction.windows`); None: in one run."""
    context_sec: float = 2.0
    """Seconds of context on either side of each window, computed and dropped."""
    precision: str = "float32"
    """Precision in which the encoder computes."""
    channel: Channel = "mean"
    """Channel to use of multichannel files."""
    shards: str = ""
    """Kind of shard files (`daisy.extraction.shard_files`); empty: each recording has a file of its own."""
    store: str = ""
    """URL of the files' place, see `daisy.extraction.places`; empty: the run's folder."""

    def __post_init__(self) -> None:
        for name, choices in (("format", FORMATS), ("dtype", tuple(STORED_DTYPES))):
            if getattr(self, name) not in choices:
                raise UsageError(f"{name} must be one of {', '.join(choices)}, found {getattr(self, name)!r}")


@dataclass(frozen=True, kw_only=True)
class Row:
    """The result of one recording."""

    path: str
    output: str
    """Path relative to the run's folder; empty if the recording has no file of its own."""
    duration_sec: float
    exit_layer: int
    """Exit layer; for a recording in windows, the deepest one."""
    num_layers: int
    seconds: float
    """The recording's share of its batch's time, by length."""
    scores: dict[str, list[float | None]] = field(default_factory=dict)
    """Values of each score at layers 1 to the exit layer."""
    window_exits: list[int] = field(default_factory=list)
    """Exit layer of each window, if there are several."""
    silent: bool = False
    """All samples were zero: the exit layer means nothing."""
    source: tuple[int, int] = (0, 0)
    """Size and modification time of the recording's file: a changed one is encoded again."""
    at: float = 0.0
    """Unix time in seconds at which the recording was finished."""
    channel: int | None = None
    """Channel of the file, counted from 0; None: the mean of all."""
    shard: str = ""
    """Shard file that holds the recording, under ``output``; empty if it has a file of its own."""

    @property
    def file(self) -> str:
        """File that holds the features, relative to the run's folder or store; empty if there is none."""
        return self.shard or self.output

    @property
    def label(self) -> str:
        """Label of the recording, `Recording.label`."""
        return format_label(self.path, self.channel)

    @property
    def sort_key(self) -> tuple[str, int]:
        """Sort key of the index: path, then channel."""
        return self.path, -1 if self.channel is None else self.channel

    @property
    def predicted_loss(self) -> list[float | None]:
        """Nats at layers 1 to the exit layer: the entropy, or else the regressors' output; empty without either."""
        return self.scores.get("entropy") or self.scores.get("regressed") or []

    @property
    def mean_exit_layer(self) -> float:
        """Mean exit layer over the recording's windows."""
        return sum(self.window_exits) / len(self.window_exits) if self.window_exits else float(self.exit_layer)

    def public(self) -> dict[str, Any]:
        """Return the recording's row in the index."""
        said = {**vars(self), "predicted_loss": self.predicted_loss}  # asdict is slow: it copies every number
        del said["source"], said["at"]
        if self.channel is None:
            del said["channel"]
        if not self.shard:
            del said["shard"]
        return said


def describe_settings(settings: Settings) -> dict[str, Any]:
    """Return a run's settings as written to its files: without the place of the files."""
    said = asdict(settings)
    del said["shards"], said["store"]
    return said


Stamp = tuple[int, int]
"""Size and modification time of a file, used to recognise it."""
GONE: Stamp = (0, 0)
"""Stamp of a missing file."""


def stamp(recording: Recording) -> Stamp:
    """Read size and modification time of a recording's file; `GONE` if it is missing."""
    try:
        status = find_file(recording.path).stat()
    except OSError:
        return GONE
    return status.st_size, status.st_mtime_ns


DEFAULTS = {setting.name: setting.default for setting in fields(Settings) if setting.default is not MISSING}
"""Settings of runs from before these could be set."""


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A recording that could not be extracted."""

    path: str
    """Path, or path and channel: `Recording.label`."""
    reason: str | None
    """Reason, without the path; None: an earlier failure no longer counts, as the recording is no longer requested."""
    at: float = 0.0
    """Unix time in seconds."""

    @property
    def label(self) -> str:
        """Label of the recording, `Recording.label`."""
        return self.path


def parse_row(line: str, row_type: type[Row] = Row) -> Row:
    """Create a row from a journal's line; fields unknown to ``row_type`` are dropped."""
    return make_row(json.loads(line), row_type)


def make_row(content: dict[str, Any], row_type: type[Row]) -> Row:
    """Create a row from the content of a journal's line."""
    known = _list_columns(cast("Any", row_type))
    said = {name: value for name, value in content.items() if name in known}
    return row_type(**{**said, "source": tuple(content["source"])})


@cache
def _list_columns(row_type: Any) -> frozenset[str]:  # a type, of which `cache` wants to know that it has a hash
    return frozenset(column.name for column in fields(row_type))


@dataclass
class Journal:
    """The notes of a run: a line of settings, then a JSON line per recording, each flushed to disk.

    Args:
        path: path of the file.
        header: line of settings; empty if there is none.
        rows: finished recordings by label, as read from the file; rows added later are kept by the caller.
        failures: failed recordings by label, likewise.
    """

    path: Path
    header: dict[str, Any] = field(default_factory=dict)
    rows: StoredRows = field(default_factory=lambda: StoredRows(parse_row))
    failures: dict[str, Failure] = field(default_factory=dict)

    def find_differences(self, settings: AnySettings) -> list[str]:
        """List the names of the settings that differ here."""
        wanted = make_header(settings)
        header = {**DEFAULTS, **self.header}
        return sorted(key for key in wanted if header.get(key) != wanted[key])

    def begin(self, settings: AnySettings) -> None:
        """Write the line of settings and nothing else."""
        self.header, self.rows, self.failures = make_header(settings), StoredRows(parse_row), {}
        _files.write(self.path, (json.dumps(self.header) + "\n").encode())

    def add(self, *events: Row | Failure) -> list[int]:
        """Note that recordings are finished or have failed, all with one flush to disk.

        Returns:
            Offset in bytes of each one's line.
        """
        lines = [json.dumps(_describe(event)) + "\n" for event in events]
        place = _files.append(self.path, "".join(lines), flush=True)
        places = []
        for line in lines:
            places.append(place)
            place += len(line)  # ASCII
        return places


def _describe(event: Row | Failure) -> dict[str, Any]:
    if isinstance(event, Row):
        return asdict(event)
    return {"path": event.path, "failed": event.reason, "at": event.at}


def make_header(settings: AnySettings) -> dict[str, Any]:
    """Create the first line of a journal, in the form in which JSON returns it."""
    header: dict[str, Any] = json.loads(json.dumps({"format_version": FORMAT_VERSION, **asdict(settings)}))
    return header  # with tuples as lists


def read_header(path: Path) -> dict[str, Any] | None:
    """Read only a journal's line of settings; return None if there is no complete line.

    Raises:
        OutputError: if it cannot be read or is damaged.
    """
    try:
        with open(path, "rb") as stream:
            line = stream.readline()
        return dict(json.loads(line)) if line.endswith(b"\n") else None
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise OutputError(f"{path}: cannot be read ({_files.explain(error)})") from None
    except (ValueError, TypeError) as error:
        raise OutputError(f"{path}: damaged ({error})", remedy="overwrite") from None


def read_journal(path: Path, *, repair: bool = False, row_type: type[Row] = Row) -> Journal:
    """Read a journal; return an empty one if the file is missing.

    Args:
        path: path of the file.
        repair: cut off from the file what a crash left unfinished. Nobody may be writing it then.
        row_type: type of a finished recording's row; fields unknown to it are dropped.

    Raises:
        OutputError: if it cannot be read or is damaged.
    """
    journal = Journal(path, rows=StoredRows(partial(parse_row, row_type=row_type)))
    try:
        for place, text in _files.read_lines(path, repair=repair):
            line = json.loads(text)
            if not place:
                journal.header = dict(line)
            elif "failed" in line:
                failure = Failure(path=line["path"], reason=line["failed"], at=line["at"])
                journal.failures[failure.path] = failure
            else:
                journal.rows.note(make_row(line, row_type), path, place)
    except (ValueError, TypeError, KeyError, AttributeError, struct.error) as error:
        raise OutputError(f"{path}: damaged ({error})", remedy="overwrite") from None
    return journal


def merge(journals: Iterable[Journal]) -> tuple[StoredRows, dict[str, Failure]]:
    """Merge journals; the latest note on each recording counts.

    Returns:
        Finished and failed recordings by label; none is in both. The first journal's rows object is extended in place.
    """
    rows: StoredRows | None = None
    failures: dict[str, Failure] = {}
    for journal in journals:
        known = StoredRows(parse_row) if rows is None else rows
        for label, failure in journal.failures.items():
            before = known.at(label) if label in known else failures[label].at if label in failures else -math.inf
            if failure.at >= before:
                failures[label] = failure
                known.drop(label)
        for label in [label for label in failures if label in journal.rows]:
            if journal.rows.at(label) >= failures[label].at:
                del failures[label]
            else:
                journal.rows.drop(label)
        if rows is None:
            rows = journal.rows
        else:
            rows.absorb(journal.rows)
    if rows is None:
        rows = StoredRows(parse_row)
    return rows, {label: failure for label, failure in failures.items() if failure.reason is not None}
