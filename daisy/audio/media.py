"""Decode what libsndfile does not read (MP4, WebM, WMA, AMR and others) with FFmpeg (PyAV, an optional extra)."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
from numpy.typing import NDArray

from daisy.audio.archives import open_bytes
from daisy.errors import AudioError

Block = NDArray[numpy.float32]
"""Samples (samples, channels), full scale 1."""

FORMAT = "FFmpeg"
SUFFIXES = frozenset(
    {".3g2", ".3ga", ".3gp", ".aac", ".ac3", ".amr", ".ape", ".asf", ".avi", ".awb", ".dts", ".eac3", ".flv"}
    | {".m2ts", ".m4a", ".m4b", ".m4r", ".m4v", ".mka", ".mkv", ".mov", ".mp4", ".mpc", ".mpeg", ".mpg", ".ogv"}
    | {".ogx", ".qt", ".ra", ".rm", ".shn", ".spx", ".tak", ".tta", ".vob", ".weba", ".webm", ".wma", ".wmv"}
    | {".wv"}
)
"""File name endings of formats that FFmpeg reads and libsndfile does not."""
DEMUXERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,asf,aac,ac3,aiff,eac3,amr,amrnb,amrwb,ape,avi,caf,dts,dtshd,flv,mpegts,mpeg,"
    "mpc,mpc8,ogg,rm,shn,tak,tta,w64,wav,wv"
)
"""Demuxers that read only the given file; playlists could name any other, on the network too."""
INSTALL = "pip install 'daisy-speech[ffmpeg]'"
MAX_MISSING_SEC = 0.5
"""Seconds by which a stream may be shorter than its header says."""


def is_available() -> bool:
    """Tell whether PyAV is installed."""
    return importlib.util.find_spec("av") is not None


def read_header(path: Path) -> tuple[int, int]:
    """Read the sample rate in Hz and the number of channels of a file's audio.

    Raises:
        AudioError: where the file holds no audio, or PyAV is missing.
    """
    for frame in _decode_frames(path):
        return frame.sample_rate, frame.layout.nb_channels
    raise AudioError(f"{path}: holds no samples")


def decode(path: Path) -> Iterator[Block]:
    """Decode a file's audio, from the stream that FFmpeg considers best.

    Yields:
        Blocks (samples, channels).

    Raises:
        AudioError: where there is no audio, PyAV is missing, or the file ends before its header says.
    """
    converter: Any = None
    for frame in _decode_frames(path):
        if converter is None:
            converter = importlib.import_module("av").AudioResampler(
                format="fltp", layout=frame.layout, rate=frame.sample_rate
            )
        frame.pts = None  # gaps between time stamps are not filled
        for converted in converter.resample(frame):
            yield numpy.ascontiguousarray(converted.to_ndarray().T)


def _decode_frames(path: Path) -> Iterator[Any]:
    try:
        av: Any = importlib.import_module("av")
    except ModuleNotFoundError:
        raise AudioError(f"{path}: {path.suffix.lower()} files need FFmpeg: {INSTALL}") from None
    # A stream, not a name: names may look like addresses, or not be UTF-8.
    with open_bytes(path) as stream, av.open(stream, options={"format_whitelist": DEMUXERS}) as opened:
        container: Any = opened
        if not container.streams.audio:
            raise AudioError(f"{path}: holds no audio")
        audio = container.streams.best("audio")
        if audio is None or audio.codec_context is None:  # PyAV 17 would crash on decoding it
            raise AudioError(f"{path}: not readable as audio (FFmpeg does not know its coding)")
        seconds = 0.0
        for frame in container.decode(audio):
            seconds += frame.samples / frame.sample_rate
            yield frame
        # For other containers FFmpeg guesses the length, or gives that of the video.
        promised = audio.duration * audio.time_base if container.format.name.startswith("mov") and audio.duration else 0
        if seconds < promised - MAX_MISSING_SEC:
            raise AudioError(f"{path}: ends {float(promised - seconds):.1f} s before its header says")
