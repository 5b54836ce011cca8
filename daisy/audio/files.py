"""Read, check, resample and write audio files."""

from __future__ import annotations

import io
from pathlib import Path

import soundfile
import soxr
import torch
from torch import Tensor
from torch.nn import functional as F

from daisy.audio import decoding
from daisy.audio.media import Block
from daisy.errors import AudioError

MAX_LEVEL = 2.0**31
"""Highest level of a sample, reached by floats on the scale of 32-bit integers. Louder ones are damage; states would
be infinite."""


def read(path: str | Path, sample_rate: int = 16000, channel: int | None = None) -> Tensor:
    """Read a whole file, and resample it if needed.

    Args:
        path: path of the file, in any format that libsndfile reads, or FFmpeg with the extra ``ffmpeg``; or
            ``archive.zip:offset:length``, as in fairseq's manifests.
        sample_rate: wanted sample rate in Hz.
        channel: channel to take, counted from 0; None: the mean of all.

    Returns:
        (N,) float32 samples of full scale 1.

    Raises:
        AudioError: where the file is missing, not audio, damaged or empty, lacks the channel, or holds NaN or infinity.
    """
    with decoding.open_file(path := Path(path)) as (header, file):
        blocks = [_take_channel(block, channel, path) for block in decoding.decode(path, header, file)]
    waveform = blocks[0] if len(blocks) == 1 else torch.cat(blocks)
    _check_values(waveform, path)
    return resample(waveform, header.sample_rate, sample_rate)


class AudioFile:
    """A file that is read in parts.

    It is decoded whole if its sample rate is not the wanted one, or if libsndfile cannot seek to every sample in it:
    MP3, ADPCM, FLAC of unknown length, several Ogg streams in one file, rare formats, and all that FFmpeg reads.

    Args:
        path: path of the file.
        sample_rate: wanted sample rate in Hz.
        channel: channel to take, counted from 0; None: the mean of all.

    Raises:
        AudioError: as in `read`.
    """

    def __init__(self, path: str | Path, sample_rate: int = 16000, channel: int | None = None):
        self.path, self.channel = Path(path), channel
        header = decoding.read_header(self.path)
        in_parts = header.seekable and header.sample_rate == sample_rate
        self.whole = None if in_parts else read(path, sample_rate, channel)
        self.num_samples = decoding.count_samples(self.path, header) if self.whole is None else len(self.whole)

    def read(self, start: int, stop: int) -> Tensor:
        """Read a part of the file.

        Args:
            start: index of the first sample, at the wanted rate.
            stop: index after the last sample.

        Returns:
            (stop - start,) float32 samples.

        Raises:
            AudioError: where the samples are damaged, missing, NaN or infinite.
        """
        if self.whole is not None:
            return self.whole[start:stop]
        waveform = _take_channel(decoding.decode_part(self.path, start, stop), self.channel, self.path)
        _check_values(waveform, self.path, start)
        return waveform


def num_samples(path: str | Path, sample_rate: int = 16000) -> int:
    """Return a file's length after resampling, for ordering files before any is read.

    Args:
        path: path of the file.
        sample_rate: wanted sample rate in Hz.

    Returns:
        The number of samples that `read` returns, from the header if it gives one, else counted by decoding. An Ogg
        file's pages are visited one by one, about 2 ms for ten minutes.

    Raises:
        AudioError: where there is no readable header, or a file that must be decoded is damaged.
    """
    header = decoding.read_header(path := Path(path))
    return _resampled_length(decoding.count_samples(path, header), header.sample_rate, sample_rate)


def resample(waveform: Tensor, rate: int, target: int) -> Tensor:
    """Resample with soxr's high-quality filter, between any two rates, with aliases 120 dB below.

    Levels change by less than 0.01 dB up to 0.91 of the lower rate's band, and fall steeply above.

    Args:
        waveform: (N,) float32 samples on the CPU.
        rate: sample rate of the waveform in Hz.
        target: wanted sample rate in Hz.

    Returns:
        (ceil(N * target / rate),) float32 samples; ``waveform`` itself if the rates are the same.
    """
    if rate == target:
        return waveform
    padded = F.pad(waveform, (0, rate // target + 1))  # soxr rounds the length down as often as up
    resampled = torch.from_numpy(soxr.resample(padded.numpy(), rate, target, quality="HQ"))
    return resampled[: _resampled_length(len(waveform), rate, target)]


def encode_wav(waveform: Tensor, sample_rate: int = 16000) -> bytes:
    """Encode samples as a WAV file of floats: mixtures may exceed full scale, and clipping would add another noise.

    Args:
        waveform: (N,) samples.
        sample_rate: sample rate in Hz.

    Returns:
        The file's content.
    """
    content = io.BytesIO()
    soundfile.write(content, waveform.numpy(), sample_rate, format="WAV", subtype="FLOAT")
    return content.getvalue()


def _take_channel(block: Block, channel: int | None, path: Path) -> Tensor:
    """Take a channel (N,) of a block (N, channels), or the mean of all."""
    if channel is None:
        samples = torch.from_numpy(block)
        return samples.mean(1) if block.shape[1] > 1 else samples[:, 0]
    if channel >= block.shape[1]:
        count = f"{block.shape[1]} channel{'s' if block.shape[1] > 1 else ''}"
        raise AudioError(f"{path}: has no channel {channel}, counted from 0: it has {count}")
    return torch.from_numpy(block[:, channel].copy())


def _check_values(waveform: Tensor, path: Path, start: int | None = None) -> None:
    """Refuse NaN, infinity and levels above `MAX_LEVEL`; ``start`` is the first sample's index where a part is read."""
    if bool((waveform.abs() <= MAX_LEVEL).all()):
        return
    if num_bad := int((~waveform.isfinite()).sum()):
        if start is not None:
            stop = start + len(waveform)
            raise AudioError(f"{path}: samples {start} to {stop} hold some that are NaN or infinite")
        raise AudioError(f"{path}: {num_bad} of {len(waveform)} samples are NaN or infinite")
    raise AudioError(f"{path}: a sample of {waveform.abs().max():.0e}, where full scale is 1: damaged")


def _resampled_length(num_samples: int, rate: int, target: int) -> int:
    return -(-num_samples * target // rate)
