"""Rows of journals by label; if there are many, memory holds only their places and the fields needed of all rows."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, ValuesView
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, TypeVar, overload

from daisy.errors import OutputError

if TYPE_CHECKING:
    from daisy.extraction.journal import Row

MAX_HELD = 10_000
"""Maximum number of rows held in memory. If there are more, none is held: they are read from the journals on each
access, as a row takes kilobytes and its place some hundred bytes."""
MAX_OPEN = 64
"""Maximum number of journals open at once while rows are read."""
NUMBERS = struct.Struct("=IIqqqqd")
Thing = TypeVar("Thing", Path, str)


class _Place(NamedTuple):
    """Place of a row in the journals, and its fields that are needed of all rows."""

    journal: int
    shard: int
    start: int
    """Offset of the line in the journal, in bytes."""
    channel: int
    """Channel; -1: the mean of all."""
    size: int
    changed: int
    """Size and modification time of the recording's file (`daisy.extraction.journal.stamp`)."""
    at: float
    output: str

    def pack(self) -> bytes:
        """Return the place as bytes; a tuple takes three times the memory."""
        return NUMBERS.pack(*self[:-1]) + self.output.encode(errors="surrogatepass")

    @classmethod
    def unpack(cls, packed: bytes) -> _Place:
        """Undo `pack`."""
        output = packed[NUMBERS.size :].decode(errors="surrogatepass")
        return cls._make((*NUMBERS.unpack_from(packed), output))


class StoredRows(Mapping[str, "Row"]):
    """Rows by label.

    While rows are read, journals must stay where they are, and may only grow.

    Args:
        parse: function that creates a row from a journal's line.
    """

    def __init__(self, parse: Callable[[str], Row]):
        self._parse = parse
        self._held: dict[str, Row] | None = {}
        self._places: dict[str, bytes] = {}
        self._journals: _Numbers[Path] = _Numbers()
        self._shards: _Numbers[str] = _Numbers()

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __contains__(self, label: object) -> bool:
        return label in self._places

    def __getitem__(self, label: str) -> Row:
        if label not in self._places:
            raise KeyError(label)
        return next(self.read([label]))

    def values(self) -> ValuesView[Row]:
        """Return all rows, to be read one by one."""
        return _Values(self)

    def note(self, row: Row, journal: Path, start: int) -> None:
        """Note a row, replacing any earlier row of its recording.

        Args:
            row: row to note.
            journal: file that has the row.
            start: offset of its line there, in bytes.
        """
        size, changed = row.source
        place = _Place(
            journal=self._journals[journal],
            shard=self._shards[row.shard],
            start=start,
            channel=-1 if row.channel is None else row.channel,
            size=size,
            changed=changed,
            at=row.at,
            output=row.output,
        )
        self._places[row.label] = place.pack()
        if self._held is not None:
            self._held[row.label] = row
            if len(self._held) > MAX_HELD:
                self._held = None

    def drop(self, label: str) -> None:
        """Forget a row, if it is there."""
        self._places.pop(label, None)
        if self._held is not None:
            self._held.pop(label, None)

    def absorb(self, others: StoredRows) -> None:
        """Add the rows of other journals, except those that were noted before the known row of the same label."""
        journals = [self._journals[path] for path in others._journals.things]
        shards = [self._shards[name] for name in others._shards.things]
        if others._held is None or len(self) + len(others) > MAX_HELD:
            self._held = None
        for label, packed in others._places.items():
            place = _Place.unpack(packed)
            if label in self and self.at(label) > place.at:
                continue
            moved = place._replace(journal=journals[place.journal], shard=shards[place.shard])
            self._places[label] = moved.pack()
            if self._held is not None and others._held is not None:
                self._held[label] = others._held[label]

    def at(self, label: str) -> float:
        """Return the time at which a row was noted."""
        return self._place(label).at

    def source(self, label: str) -> tuple[int, int]:
        """Return size and modification time of the recording's file (`daisy.extraction.journal.stamp`)."""
        place = self._place(label)
        return place.size, place.changed

    def output(self, label: str) -> str:
        """Return a row's output."""
        return self._place(label).output

    def file(self, label: str) -> str:
        """Return the file that holds a recording's features; empty if there is none."""
        place = self._place(label)
        return self._shards.things[place.shard] or place.output

    def shards(self) -> set[str]:
        """List the shard files that hold any of the recordings."""
        numbers = {_Place.unpack(packed).shard for packed in self._places.values()}
        return {self._shards.things[number] for number in numbers} - {""}

    def sort(self, labels: Iterable[str]) -> list[str]:
        """Sort labels as in the index: by path, then by channel."""
        return sorted(labels, key=self._sort_key)

    def select(self, labels: Sequence[str]) -> Sequence[Row]:
        """Return some rows; if there are too many for memory, they are read on each access."""
        return list(self.read(labels)) if self._held is not None else _SelectedRows(self, labels)

    def read(self, labels: Iterable[str]) -> Iterator[Row]:
        """Read rows one by one.

        Raises:
            OutputError: if a journal has changed in the meantime.
        """
        if self._held is not None:
            for label in labels:
                yield self._held[label]
            return
        with _Files() as files:
            for label in labels:
                place = self._place(label)
                path = self._journals.things[place.journal]
                yield self._read_at(files.open(path), path, place.start, label)

    def _read_at(self, stream: BinaryIO, path: Path, start: int, label: str) -> Row:
        stream.seek(start)
        line = stream.readline()
        try:
            row = self._parse(line.decode())
        except (ValueError, TypeError, KeyError, AttributeError):
            row = None
        if row is None or row.label != label:
            raise OutputError(f"{path}: was changed while it was read")
        return row

    def _place(self, label: str) -> _Place:
        return _Place.unpack(self._places[label])

    def _sort_key(self, label: str) -> tuple[str, int]:
        """Return the same as `Row.sort_key`."""
        channel = self._place(label).channel
        return (label, -1) if channel < 0 else (label.rpartition(" (channel ")[0], channel)


class _Numbers(dict[Thing, int]):
    """Numbers of things; each new thing gets the next number."""

    def __init__(self) -> None:
        super().__init__()
        self.things: list[Thing] = []

    def __missing__(self, thing: Thing) -> int:
        self[thing] = len(self.things)
        self.things.append(thing)
        return self[thing]


class _Values(ValuesView["Row"]):
    """All rows; each journal is opened once rather than for each row."""

    def __init__(self, rows: StoredRows):
        super().__init__(rows)
        self._rows = rows

    def __iter__(self) -> Iterator[Row]:
        return self._rows.read(self._rows)


class _SelectedRows(Sequence["Row"]):
    """Rows in some order, read on each access."""

    def __init__(self, rows: StoredRows, labels: Sequence[str]):
        self._rows, self._labels = rows, labels

    def __len__(self) -> int:
        return len(self._labels)

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            return list(self._rows.read(self._labels[index]))
        return self._rows[self._labels[index]]

    def __iter__(self) -> Iterator[Row]:
        return self._rows.read(self._labels)


class _Files(ExitStack):
    """Files that are read alternately, with a limit on open ones."""

    def __init__(self) -> None:
        super().__init__()
        self._streams: dict[Path, BinaryIO] = {}

    def open(self, path: Path) -> BinaryIO:
        """Open a file, unless it is open."""
        if path not in self._streams:
            if len(self._streams) >= MAX_OPEN:
                self.close()
                self._streams.clear()
            try:
                self._streams[path] = self.enter_context(path.open("rb"))
            except OSError as error:
                raise OutputError(f"{path}: cannot be read ({error.strerror})") from None
        return self._streams[path]
