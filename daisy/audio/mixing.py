"""Speech plus noise at a signal-to-noise ratio, generated noise, babble, rooms and clipping.

The ratio is that of the mean powers (RMS) over the whole utterance, pauses included; no peak is limited.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Sequence
from pathlib import Path

import numpy
import torch
from torch import Tensor

from daisy.audio.files import read
from daisy.audio.manifests import read_manifest
from daisy.errors import UsageError

SILENCE_POWER = 1e-20
"""A mean power below it, -200 dB of full scale, is silence: what decays in a float file, and no noise to scale up."""


def mix(speech: Tensor, noise: Tensor, snr_db: float) -> Tensor:
    """Add noise at a signal-to-noise ratio.

    Args:
        speech: (N,).
        noise: (N,), at any level.
        snr_db: ratio of mean powers over the whole utterance.

    Returns:
        (N,) the speech as it was and the noise scaled; only the speech where either is silent.

    Raises:
        UsageError: where one is longer than the other.
    """
    if len(speech) != len(noise):
        raise UsageError(f"speech of {len(speech)} samples and noise of {len(noise)} cannot be mixed")
    energies = _energy(speech), _energy(noise)
    if min(energies) <= SILENCE_POWER * len(speech):
        return speech
    ratio_db = 10 * (energies[0].log10() - energies[1].log10())
    scale: Tensor = 10 ** ((ratio_db - snr_db) / 20)
    return speech + scale * noise


def draw_excerpt(noise: Tensor, num_samples: int, generator: torch.Generator | None = None) -> Tensor:
    """Cut an excerpt from a random place of a noise recording, which begins again where it is too short.

    Args:
        noise: (N,) recording.
        num_samples: wanted.
        generator: of the place.

    Returns:
        (num_samples,).
    """
    start = int(torch.randint(len(noise), (1,), generator=generator))
    if start + num_samples <= len(noise):
        return noise[start : start + num_samples]
    return noise[torch.arange(start, start + num_samples, device=noise.device) % len(noise)]


def make_white_noise(num_samples: int, generator: torch.Generator | None = None) -> Tensor:
    """Draw (num_samples,) of Gaussian noise, equal power at all frequencies."""
    return torch.randn(num_samples, generator=generator)


def make_pink_noise(num_samples: int, generator: torch.Generator | None = None) -> Tensor:
    """Draw (num_samples,) of Gaussian noise whose power falls by 3 dB an octave."""
    spectrum = torch.fft.rfft(make_white_noise(num_samples, generator))
    frequency = torch.arange(len(spectrum)).clamp(min=1)
    noise: Tensor = torch.fft.irfft(spectrum / frequency.sqrt(), n=num_samples)
    return noise


def clip(speech: Tensor, share: float) -> Tensor:
    """Cut the loudest samples off at the level that the others stay below.

    Args:
        speech: (N,).
        share: of the samples that are cut off, 0 to 1.

    Returns:
        (N,).
    """
    level = speech.abs().kthvalue(max(1, round((1 - share) * len(speech)))).values
    return speech.clamp(-level, level)


def make_babble(talkers: NoiseBank, count: int, num_samples: int, generator: torch.Generator | None = None) -> Tensor:
    """Mix talkers who speak at once, equally loud.

    Args:
        talkers: speech to draw from.
        count: how many speak.
        num_samples: wanted.
        generator: of the talkers and their excerpts.

    Returns:
        (num_samples,).
    """
    voices = [talkers.draw(num_samples, generator) for _ in range(count)]
    return torch.stack([voice / voice.square().mean().sqrt().clamp(min=1e-5) for voice in voices]).sum(0)


def reverberate(speech: Tensor, response: Tensor) -> Tensor:
    """Play speech in a room: as long and as loud as before, and not delayed.

    Args:
        speech: (N,).
        response: (R,) impulse response of the room.

    Returns:
        (N,).
    """
    direct = int(response.abs().argmax())
    heard = convolve(speech, response)[direct : direct + len(speech)]
    power = heard.square().mean()
    return heard * (speech.square().mean() / power).sqrt() if power > 0 else speech


def convolve(waveform: Tensor, response: Tensor) -> Tensor:
    """Convolve (N,) with (R,) by Fourier transforms, to (N + R - 1,)."""
    length = len(waveform) + len(response) - 1
    product = torch.fft.rfft(waveform, n=length) * torch.fft.rfft(response, n=length)
    convolved: Tensor = torch.fft.irfft(product, n=length)
    return convolved


def simulate_rooms(
    count: int, seed: int, sample_rate: int = 16000, reverberation_sec: tuple[float, float] = (0.2, 0.7)
) -> list[Tensor]:
    """Simulate the impulse responses of random shoebox rooms: first reflections by the image method, the rest by rays.

    Rooms of 3 to 10 by 3 to 8 by 2.4 to 4 m (of those that can be so dry), reverberation times uniform in a range, from
    0.1 s, talker and microphone anywhere half a metre from the walls. Walls reflect half of the energy that they do not
    swallow into all directions, so that a room sounds as long as Eyring's formula has it.

    Args:
        count: number of rooms.
        seed: of their sizes, times and places.
        sample_rate: of the responses, in Hz.
        reverberation_sec: range of the times in which sound falls by 60 dB, in seconds.

    Returns:
        ``count`` float32 tensors (R,).

    Raises:
        UsageError: on a time below 0.1 s, or where pyroomacoustics is missing.
    """
    if not min(reverberation_sec) >= 0.1:
        raise UsageError(f"rooms have reverberation times of 0.1 s or more, found {min(reverberation_sec):g}")
    try:
        import pyroomacoustics
    except ModuleNotFoundError:
        raise UsageError("rooms need pyroomacoustics: pip install 'daisy-speech[analysis]'") from None
    generator = numpy.random.default_rng(seed)
    pyroomacoustics.random.seed(seed)
    responses: list[Tensor] = []
    while len(responses) < count:
        size = generator.uniform([3.0, 3.0, 2.4], [10.0, 8.0, 4.0])
        try:
            absorption, _ = pyroomacoustics.inverse_sabine(generator.uniform(*reverberation_sec), size)
        except ValueError:  # so large a room sounds longer even with walls that swallow everything
            continue
        material = pyroomacoustics.Material(1 - math.exp(-absorption), scattering=0.5)  # Eyring's of Sabine's
        room = pyroomacoustics.ShoeBox(
            size, fs=sample_rate, materials=material, max_order=3, ray_tracing=True, air_absorption=False
        )
        room.set_ray_tracing(n_rays=1000)
        room.add_source(generator.uniform(0.5, size - 0.5))
        room.add_microphone(generator.uniform(0.5, size - 0.5))
        room.compute_rir()
        responses.append(torch.from_numpy(room.rir[0][0]).float())
    return responses


SILENT = "no noise recording with any sound in it"


class NoiseBank:
    """Noise recordings in memory, to draw excerpts from.

    Args:
        recordings: (N,) float32 tensors at the rate of what they will be mixed into; those without any sound are left
            out.

    Raises:
        UsageError: where there are none.
    """

    def __init__(self, recordings: Sequence[Tensor]):
        self.recordings = [recording for recording in recordings if recording.any()]
        if not self.recordings:
            raise UsageError(SILENT)

    @classmethod
    def from_manifest(cls, path: str | Path, sample_rate: int = 16000) -> NoiseBank:
        """Read all recordings of a fairseq manifest.

        Args:
            path: of the manifest.
            sample_rate: of what they will be mixed into, in Hz.

        Raises:
            UsageError, AudioError: where the manifest or a recording cannot be read.
        """
        return cls([read(recording.path, sample_rate) for recording in read_manifest(path)])

    def digest(self) -> str:
        """Compute the SHA-256 of the lengths and samples of all recordings in order."""
        state = hashlib.sha256()
        for recording in self.recordings:
            state.update(f"{len(recording)} ".encode() + recording.numpy().tobytes())
        return state.hexdigest()

    def without(self, recording: Tensor) -> NoiseBank:
        """Return a bank without one of the recordings, the very tensor.

        Raises:
            UsageError: where nothing is left.
        """
        bank = copy.copy(self)
        bank.recordings = [other for other in self.recordings if other is not recording]
        if not bank.recordings:
            raise UsageError(SILENT)
        return bank

    def draw(self, num_samples: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw a random excerpt of a random recording, (num_samples,)."""
        index = int(torch.randint(len(self.recordings), (1,), generator=generator))
        return draw_excerpt(self.recordings[index], num_samples, generator)


def mix_some(
    source: Tensor, num_samples: Tensor, noises: NoiseBank, prob: float, snr_db: Sequence[float], seed: int
) -> Tensor:
    """Mix some utterances of a batch with noise, drawn by a seed.

    Args:
        source: (B, N), any floating type.
        num_samples: (B,) int64.
        noises: to draw from.
        prob: share of utterances that get noise.
        snr_db: the lowest and the highest signal-to-noise ratio, drawn uniformly between.
        seed: of the draws; the same for the same batch, whatever was drawn before.

    Returns:
        (B, N), a copy.
    """
    generator = torch.Generator().manual_seed(seed)
    low, high = snr_db
    noisy = source.clone()
    for row, length in enumerate(num_samples.tolist()):
        chance, place = torch.rand(2, generator=generator).tolist()
        if chance < prob:
            speech = source[row, :length].float()  # energies pass float16's range
            noise = noises.draw(length, generator).to(speech)
            noisy[row, :length] = mix(speech, noise, low + place * (high - low)).to(noisy.dtype)
    return noisy


def _energy(waveform: Tensor) -> Tensor:
    energy: Tensor = torch.linalg.vector_norm(waveform).square()
    return energy
