"""Where an MP3's frames begin, and whether the number of them that it tells is to be believed.

The first frame may be a header instead of sound: "Xing" or "Info", four bytes of flags, then the number of frames
(flag 1) and of their bytes with this one (flag 2), four bytes each, the highest first. libsndfile reads no more than it
says.
"""

from __future__ import annotations

import os
import struct
import sys
from typing import BinaryIO

HEADERS = (b"Xing", b"Info")
HEADER_PLACES = 4, 42
"""Where in its frame a header may be: behind four bytes, a checksum of two and side information of up to 32."""
MAX_FRAME = 1441
"""Bytes of the longest frame."""
MIN_MORE = 2 * MAX_FRAME
"""Bytes behind what a header tells from which on it is not believed: some leave a frame out, their own."""


def seek_frames(source: BinaryIO) -> int:
    """Go to an MP3's frames, behind the tags with which it begins, or in the chunk "data" of a WAV file.

    libsndfile cannot skip tags above 64 kB, as covers of podcasts make them, where it cannot seek, and reads on behind
    the chunk. A header is passed over where it tells no number of frames, or where sound follows behind those that it
    tells, as where ``cat`` has joined files.

    Returns:
        Most bytes that the frames have.
    """
    place, size = _find_chunk(source) or (_skip_tags(source, 0), sys.maxsize)
    header = _measure_wrong_header(source, place)
    source.seek(place + header)
    return size - header


def _find_chunk(source: BinaryIO) -> tuple[int, int] | None:
    """First byte and size of the chunk "data" of a WAV file; None in other files."""
    if not source.read(12).startswith(b"RIFF"):
        return None
    while len(head := source.read(8)) == 8:
        size = int.from_bytes(head[4:], "little")
        if head.startswith(b"data"):
            return source.tell(), size
        source.seek(size + size % 2, os.SEEK_CUR)
    return None


def _skip_tags(source: BinaryIO, place: int) -> int:
    """Find the first byte behind the ID3v2 tags that begin at a place.

    ID3 2.4, section 3.1: ten bytes, of which the last four tell the length of what follows, in seven bits each; a
    footer has ten more.
    """
    source.seek(place)
    while len(head := source.read(10)) == 10 and head.startswith(b"ID3") and max(head[6:]) < 0x80:
        size = head[6] << 21 | head[7] << 14 | head[8] << 7 | head[9]
        place = source.seek(place + 10 + size + (10 if head[5] & 0x10 else 0))
    return place


def _measure_wrong_header(source: BinaryIO, start: int) -> int:
    """Measure the frame of a header that is not to be believed, in bytes; 0 where there is none."""
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
    """Whether frames of the version, layer and rate of ``frame`` begin at a place, or behind tags there."""
    source.seek(_skip_tags(source, place))
    more = source.read(MIN_MORE)
    differing = (
        (one ^ other) & mask for one, other, mask in zip(more[:3], frame[:3], (0xFF, 0xFE, 0x0C), strict=False)
    )
    return len(more) == MIN_MORE and not any(differing)
