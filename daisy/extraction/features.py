"""What is clustered into units: frames of recordings, computed from their waveforms by MFCC, a HuBERT or a teacher.

MFCC are those of HuBERT's first iteration (arXiv:2106.07447, section IV-B; settings as in fairseq 0.12.2,
examples/hubert/simple_kmeans: 13 coefficients with deltas and double deltas, 100 a second).
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
"""Hz at which MFCC are computed, whatever a recording has: 25 ms are 400 samples, as fairseq's recipe has it."""

Fail = Callable[[Recording, AudioError], None]
"""Is told of a recording that cannot be used; raises where the work must not go on without it."""

Group = list[tuple[Recording, Tensor]]
"""Recordings whose features were computed together, and their features, (T, F) each."""


@dataclass(frozen=True, kw_only=True)
class Features(ABC):
    """Frames of recordings, and at which rate they come."""

    sample_rate: int | None
    """Hz of the audio that a network of their units is trained on; None where nobody can tell, of stored ones."""
    per_sec: float
    """Frames, and so units, a second."""
    width: int
    """F."""
    centred: bool = False
    """Whether each recording's mean is taken off."""

    @abstractmethod
    def make_groups(self, recordings: Iterable[Recording], fail: Fail) -> Iterator[Group]:
        """Yield features as they are made, not yet checked."""

    def read_groups(self, recordings: Iterable[Recording], fail: Fail) -> Iterator[Group]:
        """Read the features of recordings.

        Args:
            recordings: in the order in which they are wanted.
            fail: is told of each that cannot be read, is too short for one frame, or has features that are no numbers.

        Yields:
            Recordings that were computed together, and the features of each, (T, F) float32 on the CPU; in order,
            without those that failed.
        """
        for group in self.make_groups(recordings, fail):
            whole: Group = []
            for recording, frames in group:
                if not frames.isfinite().all():  # the first centre would be called the nearest to all of them
                    message = f"{recording.path}: its features are NaN or infinite: no unit is the nearest to them"
                    fail(recording, AudioError(message))
                    continue
                whole.append((recording, frames - frames.mean(0) if self.centred else frames))
            yield whole

    def read(self, recording: Recording) -> Tensor:
        """Read the features of one recording, (T, F).

        Raises:
            AudioError: where it cannot be used.
        """
        ((_, frames),) = next(self.read_groups([recording], _raise))
        return frames


def _raise(_: Recording, error: AudioError) -> None:
    raise error


@dataclass(frozen=True, kw_only=True)
class ComputedFeatures(Features):
    """Features that are computed from waveforms."""

    sample_rate: int
    """Hz of the waveforms, and of the audio that a network of their units is trained on."""
    compute: Callable[[Sequence[Tensor]], list[Tensor]]
    """(N_b,) waveforms that go together to their (T_b, F) features on the CPU."""
    min_samples: int
    """Samples of one frame: the shortest usable recording."""
    fit_together: Callable[[Sequence[int]], bool] = lambda num_samples: len(num_samples) == 1
    """Whether recordings of so many samples, one after the other, are computed together."""

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
                yield self._compute_group(waiting, fail)  # without reading what comes next: it may not be wanted
                waiting = []
        if waiting:
            yield self._compute_group(waiting, fail)

    def _compute_group(self, waiting: Group, fail: Fail) -> Group:
        """Compute a group's features; where they are no numbers, recording by recording, as one may spoil others."""
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
    """Make the function that computes MFCC features, (T, 39).

    Args:
        label_rate: 100 a second, or every second of them at 50.

    Raises:
        UsageError: on another rate, or where kaldi-native-fbank is missing.
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
    """Compute the slopes of features over five frames, (T, F) to (T, F), by least squares; ends are repeated."""
    padded = F.pad(features.T[None], (2, 2), mode="replicate")[0].T
    return (2 * (padded[4:] - padded[:-4]) + padded[3:-1] - padded[1:-3]) / 10


def make_layer_states(backbone: Backbone, layer: int, precision: Precision = "float32") -> ComputedFeatures:
    """Make the function that computes the hidden states of one layer of a HuBERT.

    Args:
        backbone: to run, on any device.
        layer: 1 to L.
        precision: to compute in.

    Returns:
        To (T, D), at the rates of the backbone: as many samples and frames a second as it was trained on.

    Raises:
        UsageError: on a layer that the backbone does not have.
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
    """Make the function that computes a teacher's states at HuBERT's frames, (T, D), 50 a second."""
    return ComputedFeatures(
        compute=teacher,
        sample_rate=SAMPLE_RATE,
        min_samples=teacher.min_samples,
        per_sec=SAMPLE_RATE / HUBERT_TIMES.hop,
        width=teacher.width,
        fit_together=teacher.fit_together,
    )


def centre_features(features: Features) -> Features:
    """Subtract the mean over the recording: what stays the same all through it, voice and channel, goes."""
    return replace(features, centred=True)
