"""Recordings in many formats, and ways to damage files."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy
import soundfile

FORMATS = (
    ("wav", "WAV", "PCM_16"),
    ("wav", "WAV", "FLOAT"),
    ("wav", "WAV", "DOUBLE"),
    ("wav", "WAV", "ULAW"),
    ("wav", "WAV", "IMA_ADPCM"),
    ("wav", "WAV", "GSM610"),
    ("wav", "WAVEX", "PCM_24"),
    ("flac", "FLAC", "PCM_16"),
    ("flac", "FLAC", "PCM_24"),
    ("ogg", "OGG", "VORBIS"),
    ("opus", "OGG", "OPUS"),
    ("mp3", "MP3", "MPEG_LAYER_III"),
    ("aiff", "AIFF", "PCM_16"),
    ("aifc", "AIFF", "FLOAT"),
    ("w64", "W64", "PCM_16"),
    ("rf64", "RF64", "PCM_16"),
    ("caf", "CAF", "ALAC_16"),
    ("caf", "CAF", "FLOAT"),
    ("au", "AU", "PCM_16"),
    ("snd", "AU", "G723_24"),
    ("sph", "NIST", "PCM_16"),
    ("voc", "VOC", "PCM_16"),
    ("mat5", "MAT5", "DOUBLE"),
    ("paf", "PAF", "PCM_24"),
    ("sds", "SDS", "PCM_16"),
    ("ircam", "IRCAM", "FLOAT"),
)
"""File ending, and libsndfile's format and coding."""
HEADER_BYTES = 120
"""Number of first bytes, where most formats have their sizes, rates and numbers of channels."""
EXTREMES = (0, 1, 2, 0x7F, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFF0, 0xFFFFFFFF)
"""Values for damaged fields of four bytes."""


def write_original(path: Path, format: str, subtype: str, generator: numpy.random.Generator) -> None:
    """Write noise of 0.3 to 1 s, loud and soft in turn, mono or stereo, at one of four rates."""
    rate = int(generator.choice([8000, 16000, 16000, 44100]))
    length, channels = int(rate * generator.uniform(0.3, 1.0)), int(generator.integers(1, 3))
    loudness = 1 + numpy.sin(numpy.arange(length) / generator.uniform(200, 2000))[:, None]
    samples = 0.1 * loudness * generator.standard_normal((length, channels))
    options = {"bitrate_mode": "VARIABLE", "compression_level": 0.5} if format == "MP3" else {}
    try:
        soundfile.write(path, samples, rate, format=format, subtype=subtype, **options)
    except soundfile.LibsndfileError:  # not every coding supports every rate and number of channels
        soundfile.write(path, samples[:, 0], 16000, format=format, subtype=subtype)
    content = bytearray(path.read_bytes())
    peak = content.find(b"PEAK", 0, HEADER_BYTES)
    if peak >= 0:
        content[peak + 12 : peak + 16] = bytes(4)  # the time of writing, which does not depend on the seed
        path.write_bytes(content)


def mutate(content: bytes, generator: numpy.random.Generator) -> bytes:
    """Damage a file in one to three ways."""
    data = bytearray(content)
    for _ in range(int(generator.integers(1, 4))):
        if len(data) < 8:
            break
        DAMAGES[int(generator.integers(len(DAMAGES)))](data, generator)
    return bytes(data)


def flip_anywhere(data: bytearray, generator: numpy.random.Generator) -> None:
    """Change 1 to 50 bytes anywhere."""
    for place in generator.integers(0, len(data), int(generator.integers(1, 51))):
        data[int(place)] ^= int(generator.integers(1, 256))


def flip_header(data: bytearray, generator: numpy.random.Generator) -> None:
    """Change 1 to 4 bytes of the header."""
    for place in generator.integers(0, min(HEADER_BYTES, len(data)), int(generator.integers(1, 5))):
        data[int(place)] ^= int(generator.integers(1, 256))


def set_field(data: bytearray, generator: numpy.random.Generator) -> None:
    """Set four bytes near the beginning to an extreme number, in either byte order: sizes, rates, channels."""
    place = int(generator.integers(0, min(HEADER_BYTES, len(data)) - 4))
    order = "<I" if generator.random() < 0.5 else ">I"
    data[place : place + 4] = struct.pack(order, int(generator.choice(EXTREMES)))


def cut_end(data: bytearray, generator: numpy.random.Generator) -> None:
    """Cut the file off at a random position."""
    del data[int(generator.integers(1, len(data))) :]


def cut_piece(data: bytearray, generator: numpy.random.Generator) -> None:
    """Remove a piece of up to a third of the file."""
    start = int(generator.integers(0, len(data)))
    del data[start : start + int(generator.integers(1, 1 + len(data) // 3))]


def zero_piece(data: bytearray, generator: numpy.random.Generator) -> None:
    """Fill up to a third of the file with zeros, as file systems do after a crash."""
    start = int(generator.integers(0, len(data)))
    stop = min(len(data), start + int(generator.integers(1, 1 + len(data) // 3)))
    data[start:stop] = bytes(stop - start)


def overwrite_piece(data: bytearray, generator: numpy.random.Generator) -> None:
    """Overwrite up to 4 kB with random bytes."""
    start = int(generator.integers(0, len(data)))
    stop = min(len(data), start + int(generator.integers(1, 4096)))
    data[start:stop] = generator.bytes(stop - start)


def repeat(data: bytearray, generator: numpy.random.Generator) -> None:
    """Append a part of the file, or all of it."""
    data += data[int(generator.integers(0, 2)) * int(generator.integers(0, len(data))) :]


HEADERS = (flip_header, set_field)
PIECES = (flip_anywhere, cut_end, cut_piece, zero_piece, overwrite_piece, repeat)
DAMAGES = (*HEADERS, *HEADERS, *PIECES)
