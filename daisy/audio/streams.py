"""Files that libsndfile reads to their end only when they are handed over in another way: chained Ogg, endless MP3."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from daisy.audio.archives import measure, open_bytes
from daisy.errors import AudioError


def find_ogg_streams(path: Path) -> list[tuple[int, int]]:
    """Find the streams that follow one another in an Ogg file, as radio stations and ``cat`` make them.

    libsndfile reads the first one only. A stream begins with a page, or several that are interleaved, marked as
    beginning (RFC 3533, section 6: the second bit of the header type).

    Returns:
        First byte of each, and the byte after its last.
    """
    starts: list[int] = []
    was_beginning = False
    place, size = 0, measure(path)
    with open_bytes(path, buffering=0) as stream:  # a buffer would read thirty times as much
        while len(page := stream.read(27 + 255)) >= 27 and page[:4] == b"OggS":
            is_beginning = bool(page[5] & 2)
            if is_beginning and not was_beginning:
                starts.append(place)
            was_beginning = is_beginning
            place += 27 + page[26] + sum(page[27 : 27 + page[26]])
            stream.seek(place)
    return list(zip(starts, [*starts[1:], size], strict=True))


@contextlib.contextmanager
def as_pipe(path: Path) -> Iterator[int]:
    """Feed a file through a pipe, which has no size to guess a length from: libsndfile then decodes up to its end."""
    receiver, sender = os.pipe()
    feeder = threading.Thread(target=_feed, args=(path, sender), daemon=True)
    feeder.start()
    try:
        yield receiver
    finally:
        os.close(receiver)
        feeder.join(timeout=5)  # it ends as nobody listens, unless a process forked meanwhile holds the pipe open


def is_drained(pipe: int) -> bool:
    """Whether everything was read that will ever come through a pipe."""
    return not os.read(pipe, 1)


def _feed(path: Path, sender: int) -> None:
    with (
        contextlib.suppress(OSError, AudioError),
        open(sender, "wb") as target,
        open_bytes(path) as source,
    ):
        remaining = _seek_frames(source)
        while remaining > 0 and (content := source.read(min(2**16, remaining))):
            remaining -= target.write(content)


def _seek_frames(source: BinaryIO) -> int:
    """Go to an MP3's frames, behind the tags with which it begins, or in the chunk "data" of a WAV file.

    libsndfile cannot skip tags above 64 kB, as covers of podcasts make them, where it cannot seek, and reads on behind
    the chunk. (ID3 2.4, section 3.1: ten bytes, of which the last four tell the length of what follows, in seven bits
    each; a footer has ten more.)

    Returns:
        Most bytes that they have.
    """
    place = 0
    while len(head := source.read(10)) == 10 and head.startswith(b"ID3") and max(head[6:]) < 0x80:
        size = head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9]
        place = source.seek(place + 10 + size + (10 if head[5] & 0x10 else 0))
    if head.startswith(b"RIFF"):
        source.seek(place + 12)
        while len(head := source.read(8)) == 8:
            size = int.from_bytes(head[4:], "little")
            if head.startswith(b"data"):
                return size
            source.seek(size + size % 2, os.SEEK_CUR)
    source.seek(place)
    return sys.maxsize
