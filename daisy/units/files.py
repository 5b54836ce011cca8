"""Units in the forms that other tools read: made of the journals in a run's folder, those of all shards."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from daisy import _files, _locks
from daisy.audio import Channel, Recording, format_manifest_root
from daisy.audio.manifests import format_manifest_name
from daisy.errors import AudioError, UsageError, unknown_name
from daisy.extraction.index import ExtractionReport, settle_on_settings, write_members
from daisy.extraction.journal import FORMAT_VERSION, merge, read_journal
from daisy.extraction.run_journals import INDEX_LOCK, UNIT_FILES, holds_kind, list_journals
from daisy.extraction.unit_files import write_dictionary
from daisy.units.rows import KIND, UnitRow, UnitSettings
from daisy.units.sequences import deduplicate

SUMMARY, DURATIONS = "units.json", "units.durations"
Writer = Callable[["Sequences", UnitSettings, Path], None]


class Sequences:
    """The recordings of a run and their units, as they are to be written.

    Args:
        rows: of the recordings.
        deduplicated: whether each run of one unit is written once.
    """

    def __init__(self, rows: Sequence[UnitRow], deduplicated: bool):
        self.rows, self.deduplicated = rows, deduplicated

    def __iter__(self) -> Iterator[tuple[UnitRow, list[int], list[int] | None]]:
        """Give each recording, its units, and how many frames each lasts; None where each lasts one."""
        for row in self.rows:
            units = row.list_units()
            yield (row, *deduplicate(units)) if self.deduplicated else (row, units, None)

    def lines(self) -> Iterator[tuple[UnitRow, str]]:
        """Give each recording, and its units with a space between."""
        for row, units, durations in self:
            yield row, row.units if durations is None else " ".join(map(str, units))


def write_jsonl(sequences: Sequences, settings: UnitSettings, out: Path) -> None:
    """Write ``units.jsonl``: an object with file, units, durations (where deduplicated) and exit_layer a line."""

    def lines() -> Iterator[str]:
        for row, units, durations in sequences:
            named = {"file": row.path} if row.channel is None else {"file": row.path, "channel": row.channel}
            timed = {} if durations is None else {"durations": durations}
            yield json.dumps({**named, "units": units, **timed, "exit_layer": row.exit_layer})

    _write_lines(out / "units.jsonl", lines())


def write_km(sequences: Sequences, settings: UnitSettings, out: Path) -> None:
    """Write ``units.km`` and its manifest ``units.tsv``, line by line the same recordings, and ``dict.km.txt``."""
    rows = sequences.rows
    root = Path(os.path.commonpath({str(Path(row.path).parent) for row in rows})) if rows else out.absolute()

    def lines() -> Iterator[str]:
        yield format_manifest_root(root)
        for row in rows:
            recording = Recording(path=Path(row.path), name=row.path)
            name = format_manifest_name(recording, str(recording.path.relative_to(root)))
            yield f"{name}\t{round(row.duration_sec * settings.sample_rate)}"

    _write_lines(out / "units.tsv", lines())
    _write_lines(out / "units.km", (line for _, line in sequences.lines()))
    write_dictionary(settings.num_units, out)


def write_text(sequences: Sequences, settings: UnitSettings, out: Path) -> None:
    """Write ``units.txt``: lines ``FILE|5 5 12``, the layout of fairseq's quantize_with_kmeans.py of textless NLP.

    FILE is the path, with ``(channel 1)`` after it where channels are recordings. That script writes the file's name
    without folder and suffix, which two recordings may share.

    Raises:
        AudioError: where a path cannot stand in such a line.
    """
    _write_lines(out / "units.txt", (f"{format_text_name(row.label)}|{line}" for row, line in sequences.lines()))


def format_text_name(label: str) -> str:
    """Check that a recording's label can stand before the units of a line.

    Args:
        label: the path, and the channel where it is one.

    Returns:
        The label as it is.

    Raises:
        AudioError: where it has what ends the name or the line.
    """
    for character, name in {"|": "|", "\n": "a line feed", "\r": "a carriage return"}.items():
        if character in label:
            raise AudioError(f"{label}: {name} in the name: a line of units.txt cannot hold it; rename it")
    return label


def write_parquet(sequences: Sequences, settings: UnitSettings, out: Path) -> None:
    """Write ``units.parquet``: columns file, channel, units, durations, exit_layer, num_layers and duration_sec.

    Raises:
        UsageError: where pyarrow is missing.
    """
    pyarrow, parquet = _import_pyarrow()
    kinds = {"file": pyarrow.string(), "channel": pyarrow.int32(), "units": pyarrow.list_(pyarrow.int32())}
    kinds |= {"durations": pyarrow.list_(pyarrow.int32())} if sequences.deduplicated else {}
    kinds |= {"exit_layer": pyarrow.int32(), "num_layers": pyarrow.int32(), "duration_sec": pyarrow.float64()}
    schema = pyarrow.schema(list(kinds.items()), metadata={"daisy": json.dumps(asdict(settings))})

    def write(stream: Any) -> None:
        with parquet.ParquetWriter(stream, schema) as writer:
            for group in _group(sequences, 4096):
                columns: dict[str, list[Any]] = {name: [] for name in kinds}
                for row, units, durations in group:
                    file = os.fsencode(row.path).decode(errors="replace")  # Parquet's text is UTF-8
                    values = {**vars(row), "file": file, "units": units, "durations": durations}
                    for name, column in columns.items():
                        column.append(values[name])
                writer.write_table(pyarrow.table(columns, schema=schema))

    _files.write(out / "units.parquet", write)


FORMS: dict[str, Writer] = {"jsonl": write_jsonl, "km": write_km, "text": write_text, "parquet": write_parquet}
"""By name; each writes its files."""


def check_forms(forms: Sequence[str], channel: Channel = "mean") -> None:
    """Refuse forms that cannot be written, before the long run.

    Raises:
        UsageError: on an unknown form, none, fairseq's where channels are recordings, or Parquet without pyarrow.
    """
    if not forms:
        raise UsageError(f"no form is asked for: {', '.join(FORMS)}")
    for form in forms:
        if form not in FORMS:
            raise UsageError(unknown_name("form", form, FORMS))
    if "km" in forms and channel != "mean":
        raise UsageError("fairseq's manifests do not tell channels: another form than km tells them")
    if "parquet" in forms:
        _import_pyarrow()


def rebuild_units(
    out: str | Path, forms: Sequence[str] | None = None, *, deduplicated: bool | None = None
) -> ExtractionReport:
    """Write the units in a folder's journals in some forms, and ``units.json``, which sums up.

    With ``deduplicated`` the forms km and text, which have no place for them, get ``units.durations`` beside them.

    Args:
        out: the folder.
        forms: of `FORMS`; None: those that were written there last.
        deduplicated: write each run of one unit once, and how many frames it lasts; None: as was written there last.

    Returns:
        The recordings, by path, and what failed.

    Raises:
        UsageError: where the folder holds no units, or on forms that cannot be written.
        OutputError: where a journal is damaged, or of other settings than the others, or a file cannot be written.
        AudioError: where a recording's name cannot stand in a manifest of fairseq, or in a line of the form text.
    """
    out = Path(out)
    if not holds_kind(out, KIND):
        raise UsageError(f"{out}: holds no journal of units (journal.jsonl)")
    with _locks.hold(out / INDEX_LOCK):  # of two shards that end at once the later reads what both have done
        forms, deduplicated = _complete(out, forms, deduplicated)
        journals = [read_journal(out / shard.journal, row_type=UnitRow) for shard in list_journals(out)]
        settings, journals = settle_on_settings(journals, UnitSettings)
        check_forms(forms, settings.channel)
        finished, failures = merge(journals)
        rows = cast(Sequence[UnitRow], finished.select(finished.sort(finished)))
        failed = {path: AudioError(failures[path].reason or "") for path in sorted(failures)}
        report = ExtractionReport(settings=settings, rows=rows, failed=failed)
        _files.remove_leftovers([out / name for name in UNIT_FILES])
        sequences = Sequences(rows, deduplicated)
        for form in forms:
            FORMS[form](sequences, settings, out)
        _write_durations(sequences, out, wanted=deduplicated and bool({"km", "text"} & set(forms)))
        _write_summary(report, forms, deduplicated, out / SUMMARY)
    return report


def _complete(out: Path, forms: Sequence[str] | None, deduplicated: bool | None) -> tuple[Sequence[str], bool]:
    """What is to be written where that is not said: as the last time."""
    last: Mapping[str, Any] = {}
    if forms is None or deduplicated is None:
        with contextlib.suppress(OSError, ValueError):
            last = json.loads((out / SUMMARY).read_text(encoding="utf-8"))
    return (
        last.get("forms", ["jsonl"]) if forms is None else forms,
        bool(last.get("deduplicated", False)) if deduplicated is None else deduplicated,
    )


def _write_durations(sequences: Sequences, out: Path, wanted: bool) -> None:
    """Write a line of durations for each recording, or take those of another run away."""
    if wanted:
        _write_lines(out / DURATIONS, (" ".join(map(str, durations or ())) for _, _, durations in sequences))
    else:
        _files.remove(out / DURATIONS)


def _write_summary(report: ExtractionReport, forms: Sequence[str], deduplicated: bool, path: Path) -> None:
    content = {
        "format_version": FORMAT_VERSION,
        "forms": list(forms),
        "deduplicated": deduplicated,
        "settings": asdict(report.settings),
        "totals": report.totals(),
        "recordings": (row.public() for row in report.rows),
        "failed": [{"path": label, "reason": error.message} for label, error in report.failed.items()],
    }
    write_members(path, content)


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write lines atomically, one after the other."""

    def write(stream: Any) -> None:
        for line in lines:
            stream.write(line.encode(errors="surrogateescape") + b"\n")

    _files.write(path, write)


def _group(sequences: Iterable[Any], size: int) -> Iterator[list[Any]]:
    """Give items in lists of some size, the last of which may be shorter."""
    group: list[Any] = []
    for item in sequences:
        group.append(item)
        if len(group) == size:
            yield group
            group = []
    yield group


def _import_pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError:
        raise UsageError("Parquet needs pyarrow: pip install 'daisy-speech[parquet]'") from None
    return pyarrow, parquet
