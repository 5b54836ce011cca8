"""Find and feed streams that libsndfile reads to the end only by other means: chained Ogg, MP3 of unknown length."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

from daisy.audio.archives import measure, open_bytes
from daisy.audio.mp3 import seek_frames
from daisy.errors import AudioError


def find_ogg_streams(path: Path) -> list[tuple[int, int]]:
    """Find the streams that follow one another in an Ogg file, as radio stations and ``cat`` make them.

    libsndfile reads only the first one. A stream begins with a page, or several interleaved pages, marked as beginning
    (RFC 3533, section 6: the second bit of the header type).

    Returns:
        First byte of each stream, and the byte after its last.
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
    """Feed a file through a pipe, which has no size to guess a length from: libsndfile then decodes up to the end."""
    receiver, sender = os.pipe()
    feeder = threading.Thread(target=_feed, args=(path, sender), daemon=True)
    feeder.start()
    try:
        yield receiver
    finally:
        os.close(receiver)
        feeder.join(timeout=5)  # ends once nobody reads, unless a process forked meanwhile holds the pipe open


def is_drained(pipe: int) -> bool:
    """Whether a pipe is closed and everything in it was read."""
    return not os.read(pipe, 1)


def _feed(path: Path, sender: int) -> None:
    with (
        contextlib.suppress(OSError, AudioError),
        open(sender, "wb") as target,
        open_bytes(path) as source,
    ):
        remaining = seek_frames(source)
        while remaining > 0 and (content := source.read(min(2**16, remaining))):
            remaining -= target.write(content)
