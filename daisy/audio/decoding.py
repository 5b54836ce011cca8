"""Decode files with libsndfile, block by block: a header's length is believed only once its samples have come."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy
import soundfile
from numpy.typing import NDArray

from daisy.audio import media
from daisy.audio.archives import find_file, measure, open_bytes, open_source
from daisy.audio.media import Block
from daisy.audio.streams import as_pipe, find_ogg_streams, is_drained
from daisy.errors import AudioError, DaisyError

BLOCK_VALUES = 2**20
"""Samples, counted over all channels, that are decoded at once."""
MAX_SAMPLES_PER_BYTE = 64
"""More than speech coders reach (6 kbit/s at 48 kHz). Where a header promises more, the samples are counted."""
SAMPLE_RATES = (1000, 1_000_000)
"""Lowest and highest rate of a recording, in Hz; others come from damaged headers, and would fill the memory."""
UNSUPPORTED = 4
"""libsndfile's error code for a known container with an unknown coding (sndfile.h: SF_ERR_UNSUPPORTED_ENCODING)."""
EXACT_FORMATS = ("WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "CAF", "NIST", "FLAC", "OGG")
EXACT_CODINGS = ("PCM_S8", "PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW", "VORBIS", "OPUS")
"""In these libsndfile can seek to any sample and decodes the same values as when it reads from the beginning, in
damaged files too. With MP3 the last bits differ, with damaged ADPCM and ALAC everything does."""
MPEG = "MPEG_LAYER_"
"""Beginning of libsndfile's names for the codings of MP3 and its older kin; WAV files hold them too."""
MP3_FRAME = 1152
"""Samples of one channel in the longest frame."""
MP3_SLACK = 2 * MP3_FRAME
"""Samples by which `MPEG` may fall short: encoders and editors count the frames at the ends differently."""


@dataclass(frozen=True, kw_only=True)
class Header:
    """Properties of a file that are known before its samples are decoded."""

    sample_rate: int
    """Hz."""
    channels: int
    length: int | None
    """Samples of one channel; None where the header does not give a number, or an impossible one."""
    format: str
    """libsndfile's name of the format, or `media.FORMAT`."""
    coding: str
    """libsndfile's name of the coding, or `media.FORMAT`."""
    claimed_length: int | None
    """Number of samples that the header gives, however unlikely; None where it gives none."""
    links: tuple[tuple[int, int], ...] = ()
    """First byte, and byte after the last, of each stream of an Ogg file that holds several one after the other."""
    can_seek: bool = False
    """Whether libsndfile can seek in it."""
    seekable: bool = False
    """Whether parts can be read, with the same samples as when the whole file is read."""


class _Sequential(soundfile.SoundFile):  # type: ignore[misc]
    """Reads on from where it is.

    soundfile seeks to its current position after every block. This fails at the end of a FLAC file of unknown length,
    and changes the last bits of MP3.
    """

    def seekable(self) -> bool:
        return False


@contextlib.contextmanager
def explain_errors(path: Path) -> Iterator[None]:
    """Turn any error of a reading library into an `AudioError` that names the file.

    Raises:
        AudioError: with the library's reason.
    """
    try:
        yield
    except DaisyError:
        raise
    except MemoryError:
        raise AudioError(f"{path}: needs more memory than there is") from None
    except Exception as error:  # damaged files raise nearly any kind, AssertionError and TypeError among them
        raise AudioError(f"{path}: not readable as audio ({_reason(error)})") from None


def read_header(path: Path) -> Header:
    """Read a file's header.

    Raises:
        AudioError: where there is no readable header, or its sample rate is outside of `SAMPLE_RATES`.
    """
    with open_file(path) as (header, _):
        return header


@contextlib.contextmanager
def open_file(path: Path) -> Iterator[tuple[Header, soundfile.SoundFile | None]]:
    """Open a file and read its header.

    Yields:
        The header, and a file object for `decode`, so that the file need not be opened again: with Ogg that takes as
        long as decoding a second of audio. None where FFmpeg reads the file.

    Raises:
        AudioError: as in `read_header`.
    """
    _check_file(path)
    with contextlib.ExitStack() as stack:
        file: soundfile.SoundFile | None = None
        with explain_errors(path):
            try:
                file = stack.enter_context(_Sequential(open_source(path)))
                header = _describe(path, file)
            except soundfile.LibsndfileError as error:
                header = _describe_media(path, error)
        lowest, highest = SAMPLE_RATES
        if not lowest <= header.sample_rate <= highest:
            raise AudioError(f"{path}: {header.sample_rate} Hz is no sample rate of speech, outside 1 kHz to 1 MHz")
        yield header, file


def decode(path: Path, header: Header, file: soundfile.SoundFile | None = None) -> Iterator[Block]:
    """Decode a file from its beginning to its end.

    Args:
        path: path of the file.
        header: header of the file.
        file: file object from `open_file`, from which nothing was read yet.

    Yields:
        Blocks (samples, channels), float32 of full scale 1.

    Raises:
        AudioError: where the file is damaged, or ends before its header says.
    """
    count = 0
    with explain_errors(path):
        for block in _decode_streams(path, header, file):
            count += len(block)
            yield block
    missing = (header.claimed_length or 0) - count
    if missing > (MP3_SLACK if header.coding.startswith(MPEG) else 0):
        raise AudioError(f"{path}: ends {missing} samples before its header says")
    if not count:
        raise AudioError(f"{path}: holds no samples{_explain_emptiness(path)}")


def decode_part(path: Path, start: int, stop: int) -> NDArray[numpy.float32]:
    """Decode samples ``start`` to ``stop``, (stop - start, channels), of a file whose header is ``seekable``.

    Raises:
        AudioError: where these samples are damaged or missing.
    """
    with explain_errors(path):
        samples, _ = soundfile.read(open_source(path), stop - start, start, dtype="float32", always_2d=True)
        if len(samples) < stop - start:
            raise AudioError(f"{path}: ends {stop - start - len(samples)} samples before its header says")
        return samples  # type: ignore[no-any-return]


def count_samples(path: Path, header: Header) -> int:
    """Count the samples of one channel, by decoding them where the header does not give their number.

    Raises:
        AudioError: as in `decode`.
    """
    if header.length is not None:
        return header.length
    return sum(len(block) for block in decode(path, header))


def _check_file(path: Path) -> None:
    path = find_file(path)
    try:
        if path.is_dir():
            raise AudioError(f"{path}: is a folder")
        if not path.is_file():
            raise AudioError(f"{path}: no such file")
        if path.stat().st_size == 0:
            raise AudioError(f"{path}: empty file (0 bytes)")
    except OSError as error:
        raise AudioError(f"{path}: cannot be read ({error.strerror or error})") from None


def _describe(path: Path, file: soundfile.SoundFile) -> Header:
    links = find_ogg_streams(path) if file.format == "OGG" else []
    claimed_length: int | None = file.frames
    is_unknown = file.frames > 2**62 or len(links) > 1 or (file.subtype.startswith(MPEG) and _is_guessed(path))
    if is_unknown:
        claimed_length = None
    is_likely = claimed_length is not None and claimed_length <= MAX_SAMPLES_PER_BYTE * measure(path)
    can_seek = soundfile.SoundFile.seekable(file)
    return Header(
        sample_rate=file.samplerate,
        channels=file.channels,
        length=claimed_length if is_likely else None,
        format=file.format,
        coding=file.subtype,
        claimed_length=claimed_length,
        links=tuple(links) if len(links) > 1 else (),
        can_seek=can_seek,
        seekable=can_seek
        and is_likely
        and file.frames > 0
        and (file.format in EXACT_FORMATS and file.subtype in EXACT_CODINGS),
    )


def _describe_media(path: Path, error: soundfile.LibsndfileError) -> Header:
    """Describe a file that FFmpeg reads and libsndfile does not; its ending or libsndfile's error decides.

    FFmpeg alone would not do: it makes something of nearly any file.

    Raises:
        AudioError, LibsndfileError: where neither reads it.
    """
    if path.suffix.lower() not in media.SUFFIXES and not (error.code == UNSUPPORTED and media.is_available()):
        with open_bytes(path) as stream:
            start = stream.read(1024)
        if start.startswith(b"NIST_1A") and b"shorten" in start:
            raise AudioError(f"{path}: NIST SPHERE compressed with shorten: decompress it with sph2pipe")
        raise error
    sample_rate, channels = media.read_header(path)
    return Header(
        sample_rate=sample_rate,
        channels=channels,
        length=None,
        format=media.FORMAT,
        coding=media.FORMAT,
        claimed_length=None,
    )


def _decode_streams(path: Path, header: Header, opened: soundfile.SoundFile | None) -> Iterator[Block]:
    if header.format == media.FORMAT:
        yield from media.decode(path)
    elif header.links:
        for start, stop in header.links:
            yield from _decode_link(path, header, start, stop)
    elif header.coding.startswith(MPEG) and header.claimed_length is None:
        yield from _decode_to_the_end(path)
    else:
        with contextlib.nullcontext(opened) if opened is not None else _Sequential(open_source(path)) as file:
            if header.claimed_length is not None and header.can_seek:
                file.seek(0)  # libsndfile skips what Opus has before the first sample only after a seek
            yield from _read_blocks(file)


def _decode_link(path: Path, header: Header, start: int, stop: int) -> Iterator[Block]:
    """Decode one of the streams that follow one another in an Ogg file."""
    with open_bytes(path) as stream:
        stream.seek(start)
        content = io.BytesIO(stream.read(stop - start))
    with _Sequential(content) as file:
        if (file.samplerate, file.channels) != (header.sample_rate, header.channels):
            raise AudioError(
                f"{path}: from byte {start} on {file.samplerate} Hz and {file.channels} channels, before that "
                f"{header.sample_rate} Hz and {header.channels}: split it"
            )
        file.seek(0)
        yield from _read_blocks(file)


def _decode_to_the_end(path: Path) -> Iterator[Block]:
    """Decode an MP3 without a stated length, frame by frame: the last frame may be cut off, as in recorded streams."""
    with as_pipe(path) as pipe, _Sequential(pipe, closefd=False) as file:
        try:
            yield from _read_blocks(file, MP3_FRAME)
        except soundfile.LibsndfileError:
            if not is_drained(pipe):
                raise


def _read_blocks(file: soundfile.SoundFile, size: int | None = None) -> Iterator[Block]:
    size = size or max(1, BLOCK_VALUES // file.channels)
    remaining = file.frames  # what follows may not be audio
    while remaining > 0 and len(block := file.read(min(size, remaining), dtype="float32", always_2d=True)):
        remaining -= len(block)
        yield block


def _is_guessed(path: Path) -> bool:
    """Whether an MP3's length is guessed from its size and its first frame's bit rate, for lack of a Xing header."""
    with as_pipe(path) as pipe:
        try:
            with _Sequential(pipe, closefd=False) as file:
                return bool(file.frames > 2**62)
        except soundfile.LibsndfileError:
            return False


def _explain_emptiness(path: Path) -> str:
    """Explain a recording without samples: if it was never closed, its header promises none though samples follow."""
    size = measure(path)
    return f" by its header, though it has {size} bytes: was it never closed?" if size > 4096 else ""


def _reason(error: Exception) -> str:
    text = getattr(error, "error_string", None) or str(error) or type(error).__name__
    return " ".join(text.split()).rstrip(".")
