"""Batches of a packed file's speech, corrupted and masked on the device that trains on them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.training.gpu_settings import Settings
from benchmarks.training.packed_speech import HOP, Frames

SPECIAL_SYMBOLS = 4
"""Number of rows before the units in fairseq's dictionaries, which the heads have too."""


class Stream:
    """Batches of (B, N) samples and (B, T) units: recordings in random order, each as often as it is listed."""

    def __init__(self, frames: Frames, device: torch.device, generator: torch.Generator):
        self.samples, self.units = frames.samples.to(device), frames.units.to(device)
        self.starts = frames.starts.repeat_interleave(frames.times)
        self.counts = frames.counts.repeat_interleave(frames.times)
        self.generator = generator
        self.order = torch.empty(0, dtype=torch.int64)

    def draw(self, batch: int, length: int) -> tuple[Tensor, Tensor]:
        """Draw the next stretches; the samples that the last frame needs beyond its hop are from the stream too."""
        needed = batch * (length + 1)
        while len(self.order) < needed:
            order = torch.randperm(len(self.starts), generator=self.generator)
            starts, counts = self.starts[order], self.counts[order]
            begins = counts.cumsum(0) - counts
            epoch = torch.arange(int(counts.sum())) + (starts - begins).repeat_interleave(counts)
            self.order = torch.cat([self.order, epoch])
        rows, self.order = self.order[:needed].view(batch, length + 1).to(self.samples.device), self.order[needed:]
        waveforms = self.samples[rows].flatten(1)[:, : length * HOP + HOP // 4].float() / 32768
        return waveforms, self.units[rows[:, :length]].long() + SPECIAL_SYMBOLS


def corrupt(waveforms: Tensor, noise: Tensor, settings: Settings, generator: torch.Generator) -> Tensor:
    """Mix some rows of (B, N) with an excerpt of the noise (M,), others with other rows, and change all rows' gains."""
    batch, length = waveforms.shape
    device = waveforms.device

    def draw(low: float = 0.0, high: float = 1.0) -> Tensor:
        return low + (high - low) * torch.rand(batch, 1, generator=generator, device=device)

    begins = (draw() * (len(noise) - length)).long()
    recorded = noise[begins + torch.arange(length, device=device)].float() / 32768
    kind = draw()
    added = torch.where(kind < settings.noise_prob, recorded, waveforms.roll(1, 0))
    low, high = settings.snr_db
    ratio = torch.where(
        kind < settings.noise_prob, draw(low, high), draw(0.0, high)
    )  # talkers no louder than the speech
    energies = [signal.square().mean(1, keepdim=True).clamp(min=1e-8) for signal in (waveforms, added)]
    scale = (energies[0] / energies[1] / 10 ** (ratio / 10)).sqrt()
    mixed = torch.where(kind < settings.noise_prob + settings.talkers_prob, waveforms + scale * added, waveforms)
    return mixed * 10 ** (draw(*settings.gain_db) / 20)


def draw_masks(batch: int, length: int, settings: Settings, generator: torch.Generator, device: torch.device) -> Tensor:
    """Draw masked frames (B, T): spans of ten that may overlap; some rows have none."""
    begins = torch.rand(batch, length, generator=generator, device=device) < settings.mask_prob
    masked = F.max_pool1d(F.pad(begins.float(), (9, 0))[:, None], 10, 1)[:, 0].bool()
    return masked & (torch.rand(batch, 1, generator=generator, device=device) >= settings.unmasked_prob)
