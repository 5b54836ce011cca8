"""What libsndfile reads, block by block: a header's length is believed only once its samples have come."""

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
"""Samples of all channels that are decoded at once."""
MAX_SAMPLES_PER_BYTE = 64
"""More than speech coders reach, 6 kbit/s at 48 kHz: where a header promises more, the samples are counted."""
SAMPLE_RATES = (1000, 1_000_000)
"""Lowest and highest rate, in Hz, of a recording; what lies outside is a damaged header, and fills the memory."""
UNSUPPORTED = 4
"""libsndfile's code of a known container with an unknown coding (sndfile.h: SF_ERR_UNSUPPORTED_ENCODING)."""
EXACT_FORMATS = ("WAV", "WAVEX", "RF64", "W64", "AIFF", "AU", "CAF", "NIST", "FLAC", "OGG")
EXACT_CODINGS = ("PCM_S8", "PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW", "VORBIS", "OPUS")
"""In these libsndfile finds every place, and gives there what it gives when it reads on from the beginning, in damaged
files too. Of MP3 the last bits differ, of damaged ADPCM and ALAC everything."""
MPEG = "MPEG_LAYER_"
"""What libsndfile's names of the codings of MP3 and its older kin begin with; WAV files hold them too."""
MP3_FRAME = 1152
"""Samples of one channel in the longest."""
MP3_SLACK = 2 * MP3_FRAME
"""Samples that `MPEG` may lack: encoders and cutting programs count the frames at its ends differently."""


@dataclass(frozen=True, kw_only=True)
class Header:
    """What is known of a file before its samples are decoded."""

    sample_rate: int
    """Hz."""
    channels: int
    length: int | None
    """Samples of one channel; None where the header does not tell them, or what it tells cannot be."""
    format: str
    """libsndfile's name of it, or `media.FORMAT`."""
    coding: str
    """libsndfile's name of it, or `media.FORMAT`."""
    claimed_length: int | None
    """Samples that the header tells, however unlikely; None where it tells none."""
    links: tuple[tuple[int, int], ...] = ()
    """First byte of each stream of an Ogg file that holds several, one after the other, and the byte after its last."""
    can_seek: bool = False
    """Whether libsndfile finds places in it."""
    seekable: bool = False
    """Whether parts can be read, and are the same as in a whole reading."""


class _Sequential(soundfile.SoundFile):  # type: ignore[misc]
    """Reads on from where it is.

    soundfile seeks to its place after every block, which fails at the end of a FLAC file of unknown length and changes
    the last bits of MP3.
    """

    def seekable(self) -> bool:
        return False


@contextlib.contextmanager
def explain_errors(path: Path) -> Iterator[None]:
    """Turn whatever a reading library raises into an `AudioError` that names the file.

    Raises:
        AudioError: with the library's reason.
    """
    try:
        yield
    except DaisyError:
        raise
    except MemoryError:
        raise AudioError(f"{path}: needs more memory than there is") from None
    except Exception as error:  # damage raises nearly any kind, AssertionError and TypeError among them
        raise AudioError(f"{path}: not readable as audio ({_reason(error)})") from None


def read_header(path: Path) -> Header:
    """Read what a file's header says.

    Raises:
        AudioError: where there is no readable header, or no rate of speech in it.
    """
    with open_file(path) as (header, _):
        return header


@contextlib.contextmanager
def open_file(path: Path) -> Iterator[tuple[Header, soundfile.SoundFile | None]]:
    """Open a file and read what its header says.

    Yields:
        The header, and what `decode` takes so that the file need not be opened again: of Ogg that takes as long as
        decoding a second. None where FFmpeg reads it.

    Raises:
        AudioError: as `read_header` does.
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
        path: of the file.
        header: of the file.
        file: of `open_file`, from which nothing was read yet.

    Yields:
        Blocks (samples, channels), float32 of full scale 1.

    Raises:
        AudioError: where it is damaged, or ends before its header says.
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
    """Decode samples ``start`` to ``stop``, (stop - start, channels), of a file whose header says that it is seekable.

    Raises:
        AudioError: where they are damaged or missing.
    """
    with explain_errors(path):
        samples, _ = soundfile.read(open_source(path), stop - start, start, dtype="float32", always_2d=True)
        if len(samples) < stop - start:
            raise AudioError(f"{path}: ends {stop - start - len(samples)} samples before its header says")
        return samples  # type: ignore[no-any-return]


def count_samples(path: Path, header: Header) -> int:
    """Count the samples of one channel, by decoding them where the header does not tell.

    Raises:
        AudioError: as `decode` does.
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
    """Describe what FFmpeg reads and libsndfile does not: by the ending, as FFmpeg makes something of nearly any file.

    Raises:
        AudioError, LibsndfileError: where neither does.
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
                file.seek(0)  # libsndfile skips what Opus puts before the first sample only after a seek
            yield from _read_blocks(file)


def _decode_link(path: Path, header: Header, start: int, stop: int) -> Iterator[Block]:
    """Decode one of the streams that follow one another in a file."""
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
    """Decode an MP3 that does not tell its length, frame by frame: the last may be cut off, as recorded streams are."""
    with as_pipe(path) as pipe, _Sequential(pipe, closefd=False) as file:
        try:
            yield from _read_blocks(file, MP3_FRAME)
        except soundfile.LibsndfileError:
            if not is_drained(pipe):
                raise


def _read_blocks(file: soundfile.SoundFile, size: int | None = None) -> Iterator[Block]:
    size = size or max(1, BLOCK_VALUES // file.channels)
    remaining = file.frames  # what follows may be no audio
    while remaining > 0 and len(block := file.read(min(size, remaining), dtype="float32", always_2d=True)):
        remaining -= len(block)
        yield block


def _is_guessed(path: Path) -> bool:
    """Whether an MP3's length is guessed from its size and its first frame's bit rate, as no Xing header tells it."""
    with as_pipe(path) as pipe:
        try:
            with _Sequential(pipe, closefd=False) as file:
                return bool(file.frames > 2**62)
        except soundfile.LibsndfileError:
            return False


def _explain_emptiness(path: Path) -> str:
    """A recording that was never closed has its samples behind a header that promises none."""
    size = measure(path)
    return f" by its header, though it has {size} bytes: was it never closed?" if size > 4096 else ""


def _reason(error: Exception) -> str:
    text = getattr(error, "error_string", None) or str(error) or type(error).__name__
    return " ".join(text.split()).rstrip(".")
