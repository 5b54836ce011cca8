"""Audio files: read, check, resample, write."""

from __future__ import annotations

import io
from pathlib import Path

import soundfile
import soxr
import torch
from torch import Tensor
from torch.nn import functional as F

from daisy.audio.archives import find_member, open_source
from daisy.errors import AudioError

SUFFIXES = {f".{name.lower()}" for name in soundfile.available_formats()} - {".raw"} | {".mp3", ".opus", ".oga", ".aif"}
"""File name endings that a folder is searched for; raw samples do not tell their rate."""


def read(path: str | Path, sample_rate: int = 16000) -> Tensor:
    """Read a whole file: channels averaged, resampled where needed.

    Args:
        path: of the file, in any format that libsndfile reads; or ``archive.zip:offset:length``, as fairseq has it.
        sample_rate: wanted, in Hz.

    Returns:
        (N,) float32 samples of full scale 1.

    Raises:
        AudioError: where it is missing, no audio, damaged, empty, or holds values that are no numbers.
    """
    _check_file(path := Path(path))
    try:
        samples, rate = soundfile.read(open_source(path), dtype="float32", always_2d=True)
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
        sample_rate: wanted, in Hz.

    Raises:
        AudioError: as `read` does.
    """

    def __init__(self, path: str | Path, sample_rate: int = 16000):
        self.path, self.info = Path(path), read_header(path)
        self.whole = None if self.info.samplerate == sample_rate else read(path, sample_rate)
        self.num_samples = self.info.frames if self.whole is None else len(self.whole)

    def read(self, start: int, stop: int) -> Tensor:
        """Read a part of the file.

        Args:
            start: first sample, counted at the wanted rate.
            stop: the one after the last.

        Returns:
            (stop - start,) float32.

        Raises:
            AudioError: where they are damaged, missing, or no numbers.
        """
        if self.whole is not None:
            return self.whole[start:stop]
        try:
            samples, _ = soundfile.read(open_source(self.path), stop - start, start, dtype="float32", always_2d=True)
        except (soundfile.LibsndfileError, RuntimeError, OSError, TypeError) as error:
            raise AudioError(f"{self.path}: not readable as audio ({_reason(error)})") from None
        if len(samples) < stop - start:
            raise AudioError(f"{self.path}: ends {stop - start - len(samples)} samples before its header says")
        waveform = torch.from_numpy(samples).mean(1)
        if not waveform.isfinite().all():
            raise AudioError(f"{self.path}: samples {start} to {stop} hold some that are NaN or infinite")
        return waveform


def num_samples(path: str | Path, sample_rate: int = 16000) -> int:
    """Tell a file's length after resampling by its header: for ordering before anything is read.

    Args:
        path: of the file.
        sample_rate: wanted, in Hz.

    Returns:
        The number of samples that `read` returns, where the header is right.

    Raises:
        AudioError: where there is no readable header.
    """
    info = read_header(path)
    return _resampled_length(info.frames, info.samplerate, sample_rate)


def resample(waveform: Tensor, rate: int, target: int) -> Tensor:
    """Resample with soxr's filter of high quality: any two rates, aliases 120 dB below.

    Up to 0.91 of the lower rate's band, levels change by less than 0.01 dB; above it they fall steeply.

    Args:
        waveform: (N,) float32 on the CPU.
        rate: its rate, in Hz.
        target: the rate wanted, in Hz.

    Returns:
        (ceil(N * target / rate),) float32; ``waveform`` itself where the rates are the same.
    """
    if rate == target:
        return waveform
    padded = F.pad(waveform, (0, rate // target + 1))  # soxr rounds the length down as often as up
    resampled = torch.from_numpy(soxr.resample(padded.numpy(), rate, target, quality="HQ"))
    return resampled[: _resampled_length(len(waveform), rate, target)]


def encode_wav(waveform: Tensor, sample_rate: int = 16000) -> bytes:
    """Encode samples as a WAV file of floats: mixtures may pass full scale, and clipping would be another noise.

    Args:
        waveform: (N,).
        sample_rate: its rate, in Hz.

    Returns:
        The file's content.
    """
    content = io.BytesIO()
    soundfile.write(content, waveform.numpy(), sample_rate, format="WAV", subtype="FLOAT")
    return content.getvalue()


def _check_file(path: Path) -> None:
    if member := find_member(path):
        path = member.archive
    if path.is_dir():
        raise AudioError(f"{path}: is a folder")
    if not path.is_file():
        raise AudioError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise AudioError(f"{path}: empty file (0 bytes)")


def read_header(path: str | Path) -> soundfile._SoundFileInfo:
    """Read what a file's header says: rate, channels, number of samples.

    Args:
        path: of the file.

    Returns:
        An object with ``samplerate`` (Hz), ``channels`` and ``frames`` (samples of one channel).

    Raises:
        AudioError: where there is no readable header.
    """
    _check_file(path := Path(path))
    try:
        return soundfile.info(open_source(path))
    except (soundfile.LibsndfileError, RuntimeError, OSError, TypeError) as error:
        raise AudioError(f"{path}: not readable as audio ({_reason(error)})") from None


def _resampled_length(num_samples: int, rate: int, target: int) -> int:
    return -(-num_samples * target // rate)


def _reason(error: Exception) -> str:
    text = getattr(error, "error_string", None) or str(error) or type(error).__name__
    return text.strip().rstrip(".")
