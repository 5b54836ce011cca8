"""Audio files: read, check, resample, write."""

from __future__ import annotations

import io
import math
import os
from fractions import Fraction
from pathlib import Path

import soundfile
import torch
import torchaudio
from torch import Tensor

from daisy.errors import AudioError

SUFFIXES = {f".{name.lower()}" for name in soundfile.available_formats()} - {".raw"} | {".mp3", ".opus", ".oga", ".aif"}
"""File name endings that a folder is searched for; raw samples do not tell their rate."""


LARGEST_FILTER = 8_000_000


def read(path: Path, sample_rate: int = 16000) -> Tensor:
    """A whole file as (N,) float32 at ``sample_rate``: channels averaged, resampled where needed.

    Raises:
        AudioError: where it is missing, no audio, damaged, empty, or holds values that are no numbers.
    """
    _check_file(path)
    try:
        samples, rate = soundfile.read(os.fsencode(path), dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, RuntimeError, OSError, TypeError) as error:
        raise AudioError(f"{path}: not readable as audio ({_reason(error)})") from None
    waveform = torch.from_numpy(samples).mean(1) if samples.shape[1] > 1 else torch.from_numpy(samples[:, 0])
    if not len(waveform):
        raise AudioError(f"{path}: holds no samples")
    if num_bad := int((~waveform.isfinite()).sum()):
        raise AudioError(f"{path}: {num_bad} of {len(waveform)} samples are NaN or infinite")
    return resample(waveform, rate, sample_rate)


class AudioFile:
    """A file of which parts are read; of another rate than asked for, it is read and resampled whole.

    Args:
        path: of the file.
        sample_rate: wanted.

    Raises:
        AudioError: as `read` does.
    """

    def __init__(self, path: Path, sample_rate: int = 16000):
        self.path, self.info = path, read_header(path)
        self.whole = None if self.info.samplerate == sample_rate else read(path, sample_rate)
        self.num_samples = self.info.frames if self.whole is None else len(self.whole)

    def read(self, start: int, stop: int) -> Tensor:
        """Samples ``start`` to ``stop``, (stop - start,) float32.

        Raises:
            AudioError: where they are damaged, missing, or no numbers.
        """
        if self.whole is not None:
            return self.whole[start:stop]
        try:
            samples, _ = soundfile.read(os.fsencode(self.path), stop - start, start, dtype="float32", always_2d=True)
        except (soundfile.LibsndfileError, RuntimeError, OSError, TypeError) as error:
            raise AudioError(f"{self.path}: not readable as audio ({_reason(error)})") from None
        if len(samples) < stop - start:
            raise AudioError(f"{self.path}: ends {stop - start - len(samples)} samples before its header says")
        waveform = torch.from_numpy(samples).mean(1)
        if not waveform.isfinite().all():
            raise AudioError(f"{self.path}: samples {start} to {stop} hold some that are NaN or infinite")
        return waveform


def num_samples(path: Path, sample_rate: int = 16000) -> int:
    """Length after resampling, by the file's header: for ordering before anything is read.

    Raises:
        AudioError: where there is no readable header.
    """
    info = read_header(path)
    return -(-info.frames * sample_rate // info.samplerate)


def resample(waveform: Tensor, rate: int, target: int) -> Tensor:
    """(N,) at ``rate`` to (N',) at ``target`` Hz, with a Kaiser window as wide as resampy's ``kaiser_best``.

    The filter's size is the product of the ratio's two numbers: odd rates are taken at the nearest ratio whose product
    stays small, about 1e-5 off at most; all usual ones are exact.
    """
    if rate == target:
        return waveform
    ratio = Fraction(rate, target).limit_denominator(math.isqrt(LARGEST_FILTER * target // rate))
    return torchaudio.functional.resample(
        waveform,
        ratio.numerator,
        ratio.denominator,
        lowpass_filter_width=64,
        rolloff=0.9475937167399596,
        resampling_method="sinc_interp_kaiser",
        beta=14.769656459379492,
    )


def encode_wav(waveform: Tensor, sample_rate: int = 16000) -> bytes:
    """(N,) as a WAV file of floats: mixtures may pass full scale, and clipping would be another kind of noise."""
    content = io.BytesIO()
    soundfile.write(content, waveform.numpy(), sample_rate, format="WAV", subtype="FLOAT")
    return content.getvalue()


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise AudioError(f"{path}: is a folder")
    if not path.is_file():
        raise AudioError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise AudioError(f"{path}: empty file (0 bytes)")


def read_header(path: Path) -> soundfile._SoundFileInfo:
    """Read what a file's header says: rate, channels, number of samples.

    Raises:
        AudioError: where there is no readable header.
    """
    _check_file(path)
    try:
        return soundfile.info(os.fsencode(path))
    except (soundfile.LibsndfileError, RuntimeError, OSError, TypeError) as error:
        raise AudioError(f"{path}: not readable as audio ({_reason(error)})") from None


def _reason(error: Exception) -> str:
    text = getattr(error, "error_string", None) or str(error) or type(error).__name__
    return text.strip().rstrip(".")
