"""Speech plus noise at a signal-to-noise ratio, generated noise, babble, rooms and clipping.

The ratio is that of the mean powers (RMS) over the whole utterance, pauses included; no peak is limited.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy
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


def white(num_samples: int, generator: torch.Generator | None = None) -> Tensor:
    """(num_samples,) of Gaussian noise, equal power at all frequencies."""
    return torch.randn(num_samples, generator=generator)


def pink(num_samples: int, generator: torch.Generator | None = None) -> Tensor:
    """(num_samples,) of Gaussian noise whose power falls by 3 dB an octave."""
    spectrum = torch.fft.rfft(white(num_samples, generator))
    frequency = torch.arange(len(spectrum)).clamp(min=1)
    return torch.fft.irfft(spectrum / frequency.sqrt(), n=num_samples)


def clip(speech: Tensor, share: float) -> Tensor:
    """(N,) speech whose loudest ``share`` of samples is cut off at the level that the others stay below."""
    level = speech.abs().kthvalue(max(1, round((1 - share) * len(speech)))).values
    return speech.clamp(-level, level)


def babble(talkers: NoiseBank, count: int, num_samples: int, generator: torch.Generator | None = None) -> Tensor:
    """(num_samples,) of ``count`` talkers at once, equally loud."""
    voices = [talkers.draw(num_samples, generator) for _ in range(count)]
    return torch.stack([voice / voice.square().mean().sqrt().clamp(min=1e-5) for voice in voices]).sum(0)


def reverberate(speech: Tensor, response: Tensor) -> Tensor:
    """(N,) speech as heard through a room impulse response (R,): as long, as loud, and not delayed."""
    direct = int(response.abs().argmax())
    heard = torchaudio.functional.fftconvolve(speech, response)[direct : direct + len(speech)]
    power = heard.square().mean()
    return heard * (speech.square().mean() / power).sqrt() if power > 0 else speech


def room_responses(
    count: int, seed: int, sample_rate: int = 16000, reverberation_sec: tuple[float, float] = (0.2, 0.7)
) -> list[Tensor]:
    """Impulse responses of random shoebox rooms, by the image method.

    Rooms of 3 to 10 by 3 to 8 by 2.4 to 4 m, reverberation times uniform in a range, reflections up to the twelfth
    order, talker and microphone anywhere half a metre from the walls.

    Raises:
        UsageError: where pyroomacoustics is missing.
    """
    try:
        import pyroomacoustics
    except ModuleNotFoundError:
        raise UsageError("rooms need pyroomacoustics: pip install 'daisy-speech[fairseq]'") from None
    generator = numpy.random.default_rng(seed)
    responses = []
    for _ in range(count):
        size = generator.uniform([3.0, 3.0, 2.4], [10.0, 8.0, 4.0])
        absorption, order = pyroomacoustics.inverse_sabine(generator.uniform(*reverberation_sec), size)
        material = pyroomacoustics.Material(absorption)
        room = pyroomacoustics.ShoeBox(size, fs=sample_rate, materials=material, max_order=min(order, 12))
        room.add_source(generator.uniform(0.5, size - 0.5))
        room.add_microphone(generator.uniform(0.5, size - 0.5))
        room.compute_rir()
        responses.append(torch.from_numpy(room.rir[0][0]).float())
    return responses


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
