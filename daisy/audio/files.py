"""Audio files: read, check, resample, write."""

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
"""Of a sample: floats on the scale of 32-bit integers reach it. What is louder is damage; states would be infinite."""


def read(path: str | Path, sample_rate: int = 16000, channel: int | None = None) -> Tensor:
    """Read a whole file, resampled where needed.

    Args:
        path: of the file, in any format that libsndfile reads, or FFmpeg with the extra ``ffmpeg``; or
            ``archive.zip:offset:length``, as fairseq has it.
        sample_rate: wanted, in Hz.
        channel: which to take, counted from 0; None: their mean.

    Returns:
        (N,) float32 samples of full scale 1.

    Raises:
        AudioError: where it is missing, no audio, damaged, empty, lacks the channel, or holds values that are no
            numbers.
    """
    with decoding.open_file(path := Path(path)) as (header, file):
        blocks = [_take_channel(block, channel, path) for block in decoding.decode(path, header, file)]
    waveform = blocks[0] if len(blocks) == 1 else torch.cat(blocks)
    _check_values(waveform, path)
    return resample(waveform, header.sample_rate, sample_rate)


class AudioFile:
    """A file of which parts are read.

    It is decoded whole where its rate is not the one asked for, and where libsndfile does not find every place in it:
    MP3, ADPCM, FLAC of unknown length, several Ogg streams in one file, rare formats, and what FFmpeg reads.

    Args:
        path: of the file.
        sample_rate: wanted, in Hz.
        channel: which to take, counted from 0; None: their mean.

    Raises:
        AudioError: as `read` does.
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
            start: first sample, counted at the wanted rate.
            stop: the one after the last.

        Returns:
            (stop - start,) float32.

        Raises:
            AudioError: where they are damaged, missing, or no numbers.
        """
        if self.whole is not None:
            return self.whole[start:stop]
        waveform = _take_channel(decoding.decode_part(self.path, start, stop), self.channel, self.path)
        _check_values(waveform, self.path, start)
        return waveform


def num_samples(path: str | Path, sample_rate: int = 16000) -> int:
    """Tell a file's length after resampling: for ordering before anything is read.

    Args:
        path: of the file.
        sample_rate: wanted, in Hz.

    Returns:
        The number of samples that `read` returns. By the header where that tells it, else counted by decoding. An
        Ogg file's pages are looked at one by one, about 2 ms for ten minutes.

    Raises:
        AudioError: where there is no readable header, or what must be decoded is damaged.
    """
    header = decoding.read_header(path := Path(path))
    return _resampled_length(decoding.count_samples(path, header), header.sample_rate, sample_rate)


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


def _take_channel(block: Block, channel: int | None, path: Path) -> Tensor:
    """(N,) of a block (N, channels)."""
    if channel is None:
        samples = torch.from_numpy(block)
        return samples.mean(1) if block.shape[1] > 1 else samples[:, 0]
    if channel >= block.shape[1]:
        count = f"{block.shape[1]} channel{'s' if block.shape[1] > 1 else ''}"
        raise AudioError(f"{path}: has no channel {channel}, counted from 0: it has {count}")
    return torch.from_numpy(block[:, channel].copy())


def _check_values(waveform: Tensor, path: Path, start: int | None = None) -> None:
    """Refuse what are no numbers, and what no scale has; ``start`` is where a part begins."""
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
