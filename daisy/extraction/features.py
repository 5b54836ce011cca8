"""Features to be clustered into units: MFCC, a HuBERT's states or a teacher's, computed from waveforms.

MFCC are those of HuBERT's first iteration (arXiv:2106.07447, section IV-B; settings as in fairseq 0.12.2,
examples/hubert/simple_kmeans: 13 coefficients with deltas and double deltas, 100 per second).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy
import torch
from torch import Tensor
from torch.nn import functional as F

from daisy import audio
from daisy.audio import Recording
from daisy.encoder import EarlyExitEncoder
from daisy.errors import AudioError, UsageError
from daisy.extraction.teachers import HUBERT_TIMES, SAMPLE_RATE, Teacher, check_layer
from daisy.models import Backbone
from daisy.policies import Fixed
from daisy.runtime.dtypes import Precision

MFCC_RATE = 16000
"""Sample rate in Hz at which MFCC are computed for all recordings: 25 ms are 400 samples, as in fairseq's recipe."""

Fail = Callable[[Recording, AudioError], None]
"""Called with each recording that cannot be used; raises if the work must not continue without it."""

Group = list[tuple[Recording, Tensor]]
"""Recordings whose features were computed together, and their features, (T, F) each."""


@dataclass(frozen=True, kw_only=True)
class Features(ABC):
    """Frame-level features of recordings, and their frame rate."""

    sample_rate: int | None
    """Sample rate in Hz of the audio on which a network is trained with their units; None if unknown, as for stored
    ones."""
    per_sec: float
    """Frames, and so units, per second."""
    width: int
    """Number of features, F."""
    centred: bool = False
    """Whether each recording's mean is subtracted."""

    @abstractmethod
    def make_groups(self, recordings: Iterable[Recording], fail: Fail) -> Iterator[Group]:
        """Yield features as they are computed, unchecked."""

    def read_groups(self, recordings: Iterable[Recording], fail: Fail) -> Iterator[Group]:
        """Read the features of recordings.

        Args:
            recordings: recordings in the order of the output.
            fail: called with each recording that cannot be read, is too short for one frame, or has NaN or infinite
                features.

        Yields:
            Recordings that were computed together, and the features of each, (T, F) float32 on the CPU; in order,
                without those that failed.
        """
        for group in self.make_groups(recordings, fail):
            whole: Group = []
            for recording, frames in group:
                if not frames.isfinite().all():  # else all would get the first centre
                    message = f"{recording.path}: its features are NaN or infinite: no unit is the nearest to them"
                    fail(recording, AudioError(message))
                    continue
                whole.append((recording, frames - frames.mean(0) if self.centred else frames))
            yield whole

    def read(self, recording: Recording) -> Tensor:
        """Read the features of one recording, (T, F).

        Raises:
            AudioError: if it cannot be used.
        """
        ((_, frames),) = next(self.read_groups([recording], _raise))
        return frames


def _raise(_: Recording, error: AudioError) -> None:
    raise error


@dataclass(frozen=True, kw_only=True)
class ComputedFeatures(Features):
    """Features computed from waveforms."""

    sample_rate: int
    """Sample rate in Hz of the waveforms, and of the audio on which a network is trained with their units."""
    compute: Callable[[Sequence[Tensor]], list[Tensor]]
    """Function from waveforms (N_b,) of a group to their features (T_b, F) on the CPU."""
    min_samples: int
    """Samples of one frame: the shortest usable recording."""
    fit_together: Callable[[Sequence[int]], bool] = lambda num_samples: len(num_samples) == 1
    """Whether consecutive recordings with these numbers of samples are computed together."""

    def __call__(self, waveform: Tensor) -> Tensor:
        """Compute the features of one waveform, (N,) to (T, F)."""
        (frames,) = self.compute([waveform])
        return frames - frames.mean(0) if self.centred else frames

    def make_groups(self, recordings: Iterable[Recording], fail: Fail) -> Iterator[Group]:
        """Yield the features of recordings that are computed together."""
        waiting: Group = []
        for recording in recordings:
            try:
                waveform = audio.read_recording(recording, self.sample_rate, min_samples=self.min_samples)
            except AudioError as error:
                fail(recording, error)
                continue
            lengths = [len(samples) for _, samples in waiting] + [len(waveform)]
            if waiting and not self.fit_together(lengths):
                yield self._compute_group(waiting, fail)
                waiting = []
            waiting.append((recording, waveform))
            if not self.fit_together([*(len(samples) for _, samples in waiting), self.min_samples]):
                yield self._compute_group(waiting, fail)  # before reading on: the next may not be wanted
                waiting = []
        if waiting:
            yield self._compute_group(waiting, fail)

    def _compute_group(self, waiting: Group, fail: Fail) -> Group:
        """Compute a group's features; if some are NaN or infinite, one by one, as a recording may spoil others."""
        recordings = [recording for recording, _ in waiting]
        try:
            features = self.compute([waveform for _, waveform in waiting])
            if len(waiting) == 1 or all(bool(frames.isfinite().all()) for frames in features):
                return list(zip(recordings, features, strict=True))
        except AudioError as error:
            if len(waiting) == 1:
                fail(recordings[0], error)
                return []
        return [pair for single in waiting for pair in self._compute_group([single], fail)]


def make_mfcc(label_rate: float = 100) -> ComputedFeatures:
    """Create MFCC features, (T, 39).

    Args:
        label_rate: frames per second: 100, or 50 for every second frame.

    Raises:
        UsageError: if the rate is another, or kaldi-native-fbank is missing.
    """
    if label_rate not in (50, 100):
        raise UsageError(f"MFCC units come at 50 or 100 a second, not {label_rate:g}")
    try:
        from kaldi_native_fbank import MfccOptions, OnlineMfcc
    except ModuleNotFoundError:
        raise UsageError("MFCC units need kaldi-native-fbank: pip install 'daisy-speech[analysis]'") from None
    options = MfccOptions()
    options.frame_opts.dither = 0.0
    options.use_energy = False
    step = round(100 / label_rate)

    def compute_mfcc(waveform: Tensor) -> Tensor:
        stream = OnlineMfcc(options)
        stream.accept_waveform(MFCC_RATE, waveform.tolist())
        stream.input_finished()
        frames = numpy.stack([stream.get_frame(frame) for frame in range(stream.num_frames_ready)])
        coefficients = torch.from_numpy(frames)
        deltas = compute_deltas(coefficients)
        return torch.cat([coefficients, deltas, compute_deltas(deltas)], 1)[::step]

    return ComputedFeatures(
        compute=lambda waveforms: list(map(compute_mfcc, waveforms)),
        sample_rate=MFCC_RATE,
        min_samples=MFCC_RATE // 40,
        per_sec=100 / step,
        width=3 * options.num_ceps,
    )


def compute_deltas(features: Tensor) -> Tensor:
    """Compute the slopes of features (T, F) over five frames by least squares, (T, F); the edges are repeated."""
    padded = F.pad(features.T[None], (2, 2), mode="replicate")[0].T
    return (2 * (padded[4:] - padded[:-4]) + padded[3:-1] - padded[1:-3]) / 10


def make_layer_states(backbone: Backbone, layer: int, precision: Precision = "float32") -> ComputedFeatures:
    """Create features from the hidden states of one layer of a HuBERT.

    Args:
        backbone: backbone to run, on any device.
        layer: layer, 1 to L.
        precision: precision of the computation.

    Returns:
        Features (T, D), at the backbone's sample and frame rates.

    Raises:
        UsageError: if the backbone does not have the layer.
    """
    check_layer(layer, backbone.config.num_layers, first=1)
    encoder = EarlyExitEncoder(backbone, None, Fixed(layer=layer), keep="last", dtype=precision)
    config = backbone.config
    return ComputedFeatures(
        compute=lambda waveforms: [states[-1].float().cpu() for states in encoder(list(waveforms)).states],
        sample_rate=config.sample_rate,
        min_samples=config.frame_span,
        per_sec=config.sample_rate / config.frame_hop,
        width=config.width,
    )


def make_teacher_states(teacher: Teacher) -> ComputedFeatures:
    """Create features from a teacher's states at HuBERT's frames, (T, D), 50 per second."""
    return ComputedFeatures(
        compute=teacher,
        sample_rate=SAMPLE_RATE,
        min_samples=teacher.min_samples,
        per_sec=SAMPLE_RATE / HUBERT_TIMES.hop,
        width=teacher.width,
        fit_together=teacher.fit_together,
    )


def centre_features(features: Features) -> Features:
    """Subtract each recording's mean, and with it what is constant in the recording: voice and channel."""
    return replace(features, centred=True)
