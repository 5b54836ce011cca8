"""Recordings inside zip archives, as fairseq's manifests name them: ``archive.zip:offset:length``.

As fairseq 0.12.2 reads them (fairseq.data.audio.audio_utils: parse_path, read_from_stored_zip): so many bytes from a
place of the archive on are an audio file, which was stored and not compressed.
"""

from __future__ import annotations

import io
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

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

    def read(self) -> bytes:
        """Read the part.

        Raises:
            AudioError: where the archive is missing, cannot be read or ends before.
        """
        try:
            with open(self.archive, "rb") as stream:
                size = os.fstat(stream.fileno()).st_size
                if not self.length or self.offset + self.length > size:
                    raise AudioError(
                        f"{self.archive}: has {size} bytes, none or not all of {self.length} from byte {self.offset} on"
                    )
                stream.seek(self.offset)
                return stream.read(self.length)
        except OSError as error:
            raise AudioError(f"{self.archive}: cannot be read ({error.strerror or error})") from None


def find_member(path: str | Path) -> Member | None:
    """Tell which part of an archive a path means; None where it means a file."""
    match = PATTERN.fullmatch(str(path))
    return Member(archive=Path(match[1]), offset=int(match[2]), length=int(match[3])) if match else None


def find_file(path: str | Path) -> Path:
    """Find the file in which a recording is: the archive, or its own."""
    member = find_member(path)
    return member.archive if member else Path(path)


def measure(path: str | Path) -> int:
    """Measure a recording's bytes."""
    member = find_member(path)
    return member.length if member else os.path.getsize(path)


def open_bytes(path: str | Path, buffering: int = -1) -> BinaryIO:
    """Open a recording's bytes for reading; ``buffering`` is of `open`.

    Raises:
        AudioError: as `Member.read` does.
    """
    member = find_member(path)
    return io.BytesIO(member.read()) if member else open(path, "rb", buffering)


def open_source(path: str | Path) -> bytes | io.BytesIO:
    """Return what libsndfile reads a recording from: the name of its file, or its bytes out of an archive.

    Raises:
        AudioError: as `Member.read` does.
    """
    member = find_member(path)
    return io.BytesIO(member.read()) if member else os.fsencode(path)


def name_as_file(name: str) -> str:
    """Make a name that a file of results can be called after: ``a.zip:30:1000`` is ``a_30_1000.zip``, others stay."""
    match = PATTERN.fullmatch(name)
    return f"{match[1].removesuffix('.zip')}_{match[2]}_{match[3]}.zip" if match else name
