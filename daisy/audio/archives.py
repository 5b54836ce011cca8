"""Recordings inside zip archives, with fairseq's names: ``archive.zip:offset:length``.

They are read as fairseq 0.12.2 does (fairseq.data.audio.audio_utils: parse_path, read_from_stored_zip): ``length``
bytes of the archive from byte ``offset`` on are an audio file, which was stored without compression.
"""

from __future__ import annotations

import io
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from daisy.errors import AudioError

PATTERN = re.compile(r"(.+\.zip):(\d+):(\d+)", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Member:
    """A part of an archive."""

    archive: Path
    offset: int
    """First byte."""
    length: int
    """Bytes."""

    def open(self, buffering: int = -1) -> BinaryIO:
        """Open the part for reading; ``buffering`` as in `open`.

        Raises:
            AudioError: where the archive is missing, cannot be read, or ends before the part does.
        """
        try:
            descriptor = os.open(self.archive, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise AudioError(f"{self.archive}: cannot be read ({error.strerror or error})") from None
        stream = _Part(descriptor, self.offset, self.length)
        size = os.fstat(descriptor).st_size
        if not self.length or self.offset + self.length > size:
            stream.close()
            raise AudioError(
                f"{self.archive}: has {size} bytes, none or not all of {self.length} from byte {self.offset} on"
            )
        return cast(BinaryIO, io.BufferedReader(stream, 1 << 16) if buffering else stream)


class _Part(io.RawIOBase):
    """Part of a file that behaves as a file of its own; only the bytes asked for are read."""

    def __init__(self, descriptor: int, offset: int, length: int):
        self._descriptor, self._offset, self._length, self._place = descriptor, offset, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, place: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._length}[whence]
        self._place = max(base + place, 0)
        return self._place

    def tell(self) -> int:
        return self._place

    def readinto(self, buffer: Any) -> int:
        count = min(len(buffer), max(self._length - self._place, 0))
        content = os.pread(self._descriptor, count, self._offset + self._place)
        buffer[: len(content)] = content
        self._place += len(content)
        return len(content)

    def close(self) -> None:
        if not self.closed:
            os.close(self._descriptor)
        super().close()


def find_member(path: str | Path) -> Member | None:
    """Return the part of an archive that a path names; None if the path names a file."""
    match = PATTERN.fullmatch(str(path))
    return Member(archive=Path(match[1]), offset=int(match[2]), length=int(match[3])) if match else None


def find_file(path: str | Path) -> Path:
    """Find the file that holds a recording: the archive, or the recording's own file."""
    member = find_member(path)
    return member.archive if member else Path(path)


def measure(path: str | Path) -> int:
    """Return the size of a recording in bytes."""
    member = find_member(path)
    return member.length if member else os.path.getsize(path)


def open_bytes(path: str | Path, buffering: int = -1) -> BinaryIO:
    """Open a recording's bytes for reading; ``buffering`` as in `open`.

    Raises:
        AudioError: as in `Member.open`.
    """
    member = find_member(path)
    return member.open(buffering) if member else open(path, "rb", buffering)


def open_source(path: str | Path) -> bytes | BinaryIO:
    """Return what libsndfile reads a recording from: its file name, or a stream of the part of an archive.

    Raises:
        AudioError: as in `Member.open`.
    """
    member = find_member(path)
    return member.open() if member else os.fsencode(path)


def name_as_file(name: str) -> str:
    """Make a name that a result file can have: ``a.zip:30:1000`` becomes ``a_30_1000.zip``, other names stay."""
    match = PATTERN.fullmatch(name)
    return f"{match[1].removesuffix('.zip')}_{match[2]}_{match[3]}.zip" if match else name
