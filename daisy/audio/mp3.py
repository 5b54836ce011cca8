"""Find an MP3's frames, and check whether the number of frames that it states is credible.

The first frame may be a header instead of sound: "Xing" or "Info", four bytes of flags, then the number of frames
(flag 1) and the number of their bytes, this frame included (flag 2), four bytes each, most significant first.
libsndfile reads no more frames than the header states.
"""

from __future__ import annotations

import os
import struct
import sys
from typing import BinaryIO

HEADERS = (b"Xing", b"Info")
HEADER_PLACES = 4, 42
"""Where in its frame a header may be: after four bytes, a checksum of two and side information of up to 32."""
MAX_FRAME = 1441
"""Bytes of the longest frame."""
MIN_MORE = 2 * MAX_FRAME
"""Bytes after the stated end from which on a header is not believed: some headers leave out one frame, their own."""


def seek_frames(source: BinaryIO) -> int:
    """Seek to an MP3's frames, after the tags at its beginning, or in the chunk "data" of a WAV file.

    Where libsndfile cannot seek, it cannot skip tags above 64 kB, such as podcast covers, and reads on after the chunk.
    A header is skipped if it states no number of frames, or if sound follows after the stated frames, as in files that
    were joined with ``cat``.

    Returns:
        Upper limit of the frames' size in bytes.
    """
    place, size = _find_chunk(source) or (_skip_tags(source, 0), sys.maxsize)
    header = _measure_wrong_header(source, place)
    source.seek(place + header)
    return size - header


def _find_chunk(source: BinaryIO) -> tuple[int, int] | None:
    """Find first byte and size of the chunk "data" of a WAV file; None in other files."""
    if not source.read(12).startswith(b"RIFF"):
        return None
    while len(head := source.read(8)) == 8:
        size = int.from_bytes(head[4:], "little")
        if head.startswith(b"data"):
            return source.tell(), size
        source.seek(size + size % 2, os.SEEK_CUR)
    return None


def _skip_tags(source: BinaryIO, place: int) -> int:
    """Find the first byte after the ID3v2 tags that begin at a place.

    ID3 2.4, section 3.1: a tag begins with ten bytes, of which the last four state the length of what follows, in
    seven bits each; a footer takes ten more.
    """
    source.seek(place)
    while len(head := source.read(10)) == 10 and head.startswith(b"ID3") and max(head[6:]) < 0x80:
        size = head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9]
        place = source.seek(place + 10 + size + (10 if head[5] & 0x10 else 0))
    return place


def _measure_wrong_header(source: BinaryIO, start: int) -> int:
    """Return the size in bytes of the frame with a header that is not credible; 0 where there is no such header."""
    source.seek(start)
    frame = source.read(MAX_FRAME)
    place = max(frame.find(name, *HEADER_PLACES) for name in HEADERS)
    if place < 0 or len(frame) < place + 16:
        return 0
    flags, num_frames, size = struct.unpack(">III", frame[place + 4 : place + 16])
    is_told = flags & 1 and num_frames
    if is_told and not (flags & 2 and _goes_on(source, start + size, frame)):
        return 0
    return max(frame.find(frame[:2], place + 16), 0)


def _goes_on(source: BinaryIO, place: int, frame: bytes) -> bool:
    """Whether frames of the version, layer and rate of ``frame`` begin at a place, or after tags there."""
    source.seek(_skip_tags(source, place))
    more = source.read(MIN_MORE)
    differing = (
        (one ^ other) & mask for one, other, mask in zip(more[:3], frame[:3], (0xFF, 0xFE, 0x0C), strict=False)
    )
    return len(more) == MIN_MORE and not any(differing)
