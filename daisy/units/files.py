"""Write units in the forms that other tools read, from the journals of all shards in a run's folder."""

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
    """Recordings of a run and their units, as they are to be written.

    Args:
        rows: rows of the recordings.
        deduplicated: whether each run of one unit is written once.
    """

    def __init__(self, rows: Sequence[UnitRow], deduplicated: bool):
        self.rows, self.deduplicated = rows, deduplicated

    def __iter__(self) -> Iterator[tuple[UnitRow, list[int], list[int] | None]]:
        """Yield each recording, its units, and how many frames each lasts; None if each lasts one."""
        for row in self.rows:
            units = row.list_units()
            yield (row, *deduplicate(units)) if self.deduplicated else (row, units, None)

    def lines(self) -> Iterator[tuple[UnitRow, str]]:
        """Yield each recording, and its units separated by spaces."""
        for row, units, durations in self:
            yield row, row.units if durations is None else " ".join(map(str, units))


def write_jsonl(sequences: Sequences, settings: UnitSettings, out: Path) -> None:
    """Write ``units.jsonl``: each line an object with file, units, durations (if deduplicated) and exit_layer."""

    def lines() -> Iterator[str]:
        for row, units, durations in sequences:
            named = {"file": row.path} if row.channel is None else {"file": row.path, "channel": row.channel}
            timed = {} if durations is None else {"durations": durations}
            yield json.dumps({**named, "units": units, **timed, "exit_layer": row.exit_layer})

    _write_lines(out / "units.jsonl", lines())


def write_km(sequences: Sequences, settings: UnitSettings, out: Path) -> None:
    """Write ``units.km`` and its manifest ``units.tsv``, with the same recording in each line, and ``dict.km.txt``."""
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
    """Write ``units.txt``: lines ``FILE|5 5 12``, the format of quantize_with_kmeans.py in fairseq's textless NLP.

    FILE is the path, followed by ``(channel 1)`` if channels are recordings. fairseq's script writes the file's name
    without folder and suffix, which two recordings may share.

    Raises:
        AudioError: where a path cannot be written in such a line.
    """
    _write_lines(out / "units.txt", (f"{format_text_name(row.label)}|{line}" for row, line in sequences.lines()))


def format_text_name(label: str) -> str:
    """Check that a recording's label can be written before the units in a line.

    Args:
        label: path, and the channel if it is one.

    Returns:
        The unchanged label.

    Raises:
        AudioError: where it holds a character that ends the name or the line.
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
"""Functions that write the files of a form, by name."""


def check_forms(forms: Sequence[str], channel: Channel = "mean") -> None:
    """Refuse forms that cannot be written, before a long run.

    Raises:
        UsageError: on an unknown form, none, fairseq's if channels are recordings, or Parquet without pyarrow.
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
    """Write the units in a folder's journals in some forms, and a summary ``units.json``.

    With ``deduplicated``, ``units.durations`` is written beside the forms km and text, which cannot hold durations.

    Args:
        out: output folder of the run.
        forms: some of `FORMS`; None: those last written there.
        deduplicated: write each run of one unit once, and how many frames it lasts; None: as last written there.

    Returns:
        The recordings, by path, and failures.

    Raises:
        UsageError: where the folder holds no units, or on forms that cannot be written.
        OutputError: where a journal is damaged, or has settings other than the rest, or a file cannot be written.
        AudioError: where a recording's name cannot be written in a fairseq manifest, or in a line of the form text.
    """
    out = Path(out)
    if not holds_kind(out, KIND):
        raise UsageError(f"{out}: holds no journal of units (journal.jsonl)")
    with _locks.hold(out / INDEX_LOCK):  # if two shards end at once, the later reads what both have done
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
    """Complete unspecified arguments with those of the last time."""
    last: Mapping[str, Any] = {}
    if forms is None or deduplicated is None:
        with contextlib.suppress(OSError, ValueError):
            last = json.loads((out / SUMMARY).read_text(encoding="utf-8"))
    return (
        last.get("forms", ["jsonl"]) if forms is None else forms,
        bool(last.get("deduplicated", False)) if deduplicated is None else deduplicated,
    )


def _write_durations(sequences: Sequences, out: Path, wanted: bool) -> None:
    """Write a line of durations for each recording, or remove the durations of an earlier run."""
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
    """Yield lists of ``size`` items, the last of which may be shorter."""
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
