"""Speech plus noise at a signal-to-noise ratio.

The ratio is that of the mean powers (RMS) over the whole utterance, pauses included; no peak is limited.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torchaudio
from torch import Tensor

from daisy import audio
from daisy.errors import UsageError


def mix(speech: Tensor, noise: Tensor, snr_db: float) -> Tensor:
    """(N,) speech plus (N,) noise scaled to ``snr_db`` below it; unchanged where either is silent."""
    if not speech.any() or not noise.any():
        return speech
    return torchaudio.functional.add_noise(speech, noise, torch.tensor(float(snr_db), device=speech.device))


def excerpt(noise: Tensor, num_samples: int, generator: torch.Generator | None = None) -> Tensor:
    """(num_samples,) of a noise recording from a random place on, repeated from its start where it is too short."""
    start = int(torch.randint(len(noise), (1,), generator=generator))
    repeats = -(-(start + num_samples) // len(noise))
    return noise.repeat(repeats)[start : start + num_samples]


class NoiseBank:
    """Noise recordings in memory, to draw excerpts from.

    Args:
        recordings: (N,) float32 tensors at the backbone's rate.

    Raises:
        UsageError: where there are none.
    """

    def __init__(self, recordings: Sequence[Tensor]):
        self.recordings = [recording for recording in recordings if recording.any()]
        if not self.recordings:
            raise UsageError("no noise recording with any sound in it")

    @classmethod
    def from_manifest(cls, path: str | Path, sample_rate: int = 16000) -> NoiseBank:
        """All recordings of a fairseq manifest.

        Raises:
            UsageError, AudioError: where the manifest or a recording cannot be read.
        """
        return cls([audio.read(recording.path, sample_rate) for recording in audio.read_manifest(Path(path))])

    def draw(self, num_samples: int, generator: torch.Generator | None = None) -> Tensor:
        """A random excerpt of a random recording, (num_samples,)."""
        index = int(torch.randint(len(self.recordings), (1,), generator=generator))
        return excerpt(self.recordings[index], num_samples, generator)
