"""The results of an extraction, and its index files."""

from __future__ import annotations

import csv
import json
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from daisy import _files, _locks
from daisy.errors import AudioError, DaisyError, OutputError, UsageError
from daisy.extraction.journal import FORMAT_VERSION, Journal, Row, Settings, merge, read_journal
from daisy.extraction.places import open_place
from daisy.extraction.run_journals import INDEX_FILES, INDEX_LOCK, list_journals

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

AnySettings = TypeVar("AnySettings", bound="DataclassInstance")


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Statistics over all rows, gathered in one pass, for which very many rows are read from the journals."""

    audio_sec: float
    seconds: float
    mean_exit_layer: float | None
    depth: float | None
    """Executed fraction of the layers, over utterances."""
    num_layers: int
    exits: Counter[int]
    """Number of recordings, or windows if there are any, that exited at each layer."""
    has_windows: bool
    silent: list[str]
    """Labels of silent recordings."""


@dataclass(kw_only=True)
class ExtractionReport:
    """Results of a run, including those of earlier runs; for a shard, those of the shard."""

    settings: Settings
    rows: Sequence[Row]
    """Rows sorted by path. If there are very many, they are read from the journals on each access."""
    failed: Mapping[str, DaisyError]
    """Reason of each failure by path; the reason does not repeat the path."""
    num_resumed: int = 0
    """Number of rows that an earlier run had finished."""
    num_changed: int = 0
    """Number of recordings that were finished by an earlier run but have changed since, and were redone."""
    num_gone: int = 0
    """Number of rows of an earlier run whose recordings no longer exist."""

    def totals(self) -> dict[str, float | int | None]:
        """Return mean exit layer, executed share of layers (over utterances), real-time factor; None if nothing ran."""
        summary = self.summary
        return {
            "num_recordings": len(self.rows),
            "num_failed": len(self.failed),
            "audio_sec": round(summary.audio_sec, 3),
            "mean_exit_layer": summary.mean_exit_layer,
            "depth": summary.depth,
            "seconds": round(summary.seconds, 3),
            "real_time_factor": summary.seconds / summary.audio_sec if summary.audio_sec else None,
        }

    @cached_property
    def summary(self) -> Summary:
        """Statistics over all rows, as they were at the first access."""
        durations, times, exits, depths = array("d"), array("d"), array("d"), array("d")
        histogram: Counter[int] = Counter()
        silent: list[str] = []
        num_layers, has_windows = 0, False
        for row in self.rows:
            durations.append(row.duration_sec)
            times.append(row.seconds)
            exits.append(row.mean_exit_layer)
            depths.append(row.mean_exit_layer / row.num_layers)
            histogram.update(row.window_exits or [row.exit_layer])
            num_layers, has_windows = max(num_layers, row.num_layers), has_windows or bool(row.window_exits)
            if row.silent:
                silent.append(row.label)
        return Summary(
            audio_sec=sum(durations),
            seconds=sum(times),
            mean_exit_layer=sum(exits) / len(exits) if exits else None,
            depth=sum(depths) / len(depths) if depths else None,
            num_layers=num_layers,
            exits=histogram,
            has_windows=has_windows,
            silent=silent,
        )


def rebuild_index(out: str | Path) -> ExtractionReport:
    """Rewrite ``index.json`` and ``index.csv`` from the journals of all shards in a folder.

    If the run has a store, the files are put there too.

    Extractions may still be writing there: the index then has what they have finished so far.

    Args:
        out: folder of an extraction.

    Returns:
        The content of the index: every finished and every failed recording, by path.

    Raises:
        UsageError: if the folder holds no extraction, or its store cannot be reached from here.
        OutputError: if a journal is damaged or has other settings than the others, or the index cannot be written.
    """
    out = Path(out)
    if not out.is_dir() or not list_journals(out):
        raise UsageError(f"{out}: holds no extraction's journal (journal.jsonl), of which an index could be made")
    with _locks.hold(out / INDEX_LOCK):  # if two shards end together, the later reads both
        journals = [read_journal(out / shard.journal) for shard in list_journals(out)]
        settings, journals = settle_on_settings(journals, Settings)
        rows, failures = merge(journals)
        report = ExtractionReport(
            settings=settings,
            rows=rows.select(rows.sort(rows)),
            failed={path: AudioError(failures[path].reason or "") for path in sorted(failures)},
        )
        _files.remove_leftovers([out / name for name in INDEX_FILES])
        _write_json(report, out / "index.json")
        _write_csv(report, out / "index.csv")
        if settings.store:
            place = open_place(out, settings.store)
            for name in INDEX_FILES:
                place.take(out / name, name)
    return report


def settle_on_settings(
    journals: Sequence[Journal], settings_type: type[AnySettings]
) -> tuple[AnySettings, list[Journal]]:
    """Return the settings shared by all journals with finished recordings, and the journals with these settings.

    Other journals, of runs that finished nothing, are ignored, including the failures that they note.

    Raises:
        OutputError: if a journal's first line does not have such settings, or journals with finished recordings differ.
    """
    finished = [journal for journal in journals if journal.rows]
    begun = finished or [journal for journal in journals if journal.header] or journals
    first = finished[0] if finished else max(begun, key=lambda journal: journal.path.stat().st_mtime)
    names = {setting.name for setting in fields(settings_type)}
    try:
        settings = settings_type(**{name: value for name, value in first.header.items() if name in names})
    except TypeError as error:
        raise OutputError(f"{first.path}: damaged ({error})", remedy="overwrite") from None
    for journal in finished:
        if different := journal.find_differences(settings):
            raise OutputError(f"{journal.path}: of a run with another {', '.join(different)} than {first.path}")
    return settings, [journal for journal in journals if not journal.find_differences(settings)]


def _write_json(report: ExtractionReport, path: Path) -> None:
    """Write settings, totals, recordings and failures, one line each; indented JSON would take longer."""
    content = {
        "format_version": FORMAT_VERSION,
        "settings": asdict(report.settings),
        "totals": report.totals(),
        "recordings": (row.public() for row in report.rows),
        "failed": [{"path": path, "reason": error.message} for path, error in report.failed.items()],
    }
    write_members(path, content)


def write_members(path: Path, content: Mapping[str, object]) -> None:
    """Write a JSON object atomically, one line per member or member of a list; iterators become lists."""

    def write(stream: BinaryIO) -> None:
        for number, (name, value) in enumerate(content.items()):
            stream.write(b",\n" if number else b"{\n")
            stream.write(f" {json.dumps(name)}: ".encode())
            if isinstance(value, Iterator):
                _write_list(stream, value)
            else:
                stream.write(format_value(value).encode())
        stream.write(b"\n}\n")

    _files.write(path, write)


def _write_list(stream: BinaryIO, members: Iterable[object]) -> None:
    """Write a list as `format_value` formats it."""
    end = b"[]"
    for number, member in enumerate(members):
        stream.write((",\n  " if number else "[\n  ").encode() + json.dumps(member).encode())
        end = b"\n ]"
    stream.write(end)


def format_value(value: object) -> str:
    """Format JSON in one line, or with one line per member of a list."""
    if not isinstance(value, list) or not value:
        return json.dumps(value)
    return "[\n" + ",\n".join(f"  {json.dumps(member)}" for member in value) + "\n ]"


def _write_csv(report: ExtractionReport, path: Path) -> None:
    """Write one line per recording."""
    num_layers = report.summary.num_layers
    losses = [f"predicted_loss_{layer}" for layer in range(1, num_layers + 1)]
    channel = [] if report.settings.channel == "mean" else ["channel"]
    shard = ["shard"] if report.settings.shards else []
    columns = [
        "path",
        *channel,
        "output",
        *shard,
        "duration_sec",
        "exit_layer",
        "num_layers",
        "seconds",
        "window_exits",
    ]

    def write(stream: BinaryIO) -> None:
        encoded: Any = SimpleNamespace(write=lambda text: stream.write(text.encode(errors="surrogateescape")))
        writer = csv.writer(encoded)
        writer.writerow([*columns, *losses])
        for row in report.rows:
            cells = ["" if value is None else f"{value:.4f}" for value in row.predicted_loss]
            writer.writerow(
                [
                    row.path,
                    *([row.channel] if channel else []),
                    row.output,
                    *([row.shard] if shard else []),
                    f"{row.duration_sec:.4f}",
                    row.exit_layer,
                    row.num_layers,
                    f"{row.seconds:.4f}",
                    " ".join(map(str, row.window_exits)),
                    *cells,
                    *[""] * (num_layers - len(cells)),
                ]
            )

    _files.write(path, write)
