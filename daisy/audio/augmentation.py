"""Corrupt speech in the ways in which it may be met, for training on the units of the clean audio.

This is the denoising masked prediction of WavLM (arXiv:2110.13900, section III-B): the input is corrupted, the
targets are not. The corruptions here are noise, other talkers, rooms, gain and speed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from daisy.audio import mixing
from daisy.audio.files import resample
from daisy.errors import UsageError

TALKER_SNR_DB = 0.0
"""Lowest ratio for a single other talker: below it, nobody could tell whose units are the targets."""


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How often and how strongly speech is corrupted; with the defaults it stays as it is."""

    noise_prob: float = 0.0
    """Share of utterances with recorded noise."""
    talkers_prob: float = 0.0
    """Share of the other utterances with other talkers: one, or babble."""
    max_talkers: int = 8
    """Largest number of talkers in babble; the number is drawn uniformly."""
    snr_db: tuple[float, float] = (-5.0, 20.0)
    """Range of the signal-to-noise ratio, uniform in dB."""
    reverb_prob: float = 0.0
    """Share of utterances with the reverberation of a room (before the noise)."""
    gain_db: tuple[float, float] = (0.0, 0.0)
    """Range of the gain, uniform in dB."""
    speeds: tuple[float, ...] = (1.0,)
    """Speeds to draw from; 1.1 is a tenth faster and higher."""

    def __post_init__(self) -> None:
        for name in ("snr_db", "gain_db"):
            values = getattr(self, name)
            if len(values) != 2 or values[0] > values[1]:
                raise UsageError(f"{name} must be [low, high] in dB, found {list(values)}")
        for name in ("noise_prob", "talkers_prob", "reverb_prob"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"{name} must be between 0 and 1, found {getattr(self, name)}")
        if not self.speeds or min(self.speeds) <= 0:
            raise UsageError(f"speeds must be positive numbers, found {list(self.speeds)}")
        if self.max_talkers < 1:
            raise UsageError(f"max_talkers must be at least 1, found {self.max_talkers}")


class Augmenter:
    """Corrupts utterances, each in its own way.

    Args:
        settings: how often and how strongly.
        noises: recorded noise, if ``noise_prob`` is above 0.
        talkers: speech of others, if ``talkers_prob`` is above 0.
        responses: (R,) room impulse responses, if ``reverb_prob`` is above 0.
        sample_rate: sample rate in Hz.

    Raises:
        UsageError: where the settings need recordings or responses that are not given.
    """

    def __init__(
        self,
        settings: Augmentation,
        noises: mixing.NoiseBank | None = None,
        talkers: mixing.NoiseBank | None = None,
        responses: Sequence[Tensor] = (),
        sample_rate: int = 16000,
    ):
        for name, given in (("noise_prob", noises), ("talkers_prob", talkers), ("reverb_prob", responses)):
            if getattr(settings, name) and not given:
                raise UsageError(f"{name} is {getattr(settings, name)}, and there is nothing to draw from")
        self.settings, self.noises, self.talkers, self.responses = settings, noises, talkers, responses
        self.sample_rate = sample_rate

    def draw_speed(self, generator: torch.Generator) -> float:
        """Draw a speed for one utterance."""
        speeds = self.settings.speeds
        return speeds[int(torch.randint(len(speeds), (1,), generator=generator))]

    def change_speed(self, waveform: Tensor, speed: float) -> Tensor:
        """Play an utterance faster or slower, which changes pitch and tempo alike.

        Args:
            waveform: (N,) samples.
            speed: speed factor; 1.1 is a tenth faster and higher.

        Returns:
            (ceil(N / speed),) samples, with the speed rounded to a whole number of Hz.
        """
        return resample(waveform, round(self.sample_rate * speed), self.sample_rate)

    def __call__(self, waveform: Tensor, generator: torch.Generator, own: Tensor | None = None) -> Tensor:
        """Corrupt an utterance by a room, noise or other talkers, and a gain, with the probabilities of the settings.

        Args:
            waveform: (N,) clean speech.
            generator: generator of all draws.
            own: the very tensor in ``talkers`` that the utterance is taken from, which is left out.

        Returns:
            (N,) corrupted speech.

        Raises:
            UsageError: where ``talkers`` holds no recording other than ``own``.
        """
        settings = self.settings
        room, kind, place, gain = torch.rand(4, generator=generator).tolist()
        if room < settings.reverb_prob:
            choice = int(torch.randint(len(self.responses), (1,), generator=generator))
            waveform = mixing.reverberate(waveform, self.responses[choice])
        low, high = settings.snr_db
        if kind < settings.noise_prob and self.noises is not None:
            noise = self.noises.draw(len(waveform), generator)
            waveform = mixing.mix(waveform, noise, low + place * (high - low))
        elif (
            kind < settings.noise_prob + (1 - settings.noise_prob) * settings.talkers_prob and self.talkers is not None
        ):
            count = int(torch.randint(1, settings.max_talkers + 1, (1,), generator=generator))
            low = max(low, min(TALKER_SNR_DB, high)) if count == 1 else low
            others = self.talkers if own is None else self.talkers.without(own)
            babble = mixing.make_babble(others, count, len(waveform), generator)
            waveform = mixing.mix(waveform, babble, low + place * (high - low))
        low, high = settings.gain_db
        return waveform if low == high == 0 else waveform * 10 ** ((low + gain * (high - low)) / 20)
