"""What exits do under noise: full runs once, decisions from their scores, intervals by resampling speakers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy
import torch
from torch import Tensor

from daisy import audio, mixing
from daisy.checkpoint import Model
from daisy.encoder import EarlyExitEncoder
from daisy.policies import Never


class Estimate(NamedTuple):
    """A mean and its bootstrap interval."""

    mean: float
    low: float
    high: float


def full_scores(
    model: Model,
    waveforms: Sequence[Tensor],
    names: Iterable[str],
    *,
    batch_sec: float = 30.0,
    progress: Callable[[int], None] = lambda count: None,
) -> dict[str, Tensor]:
    """Every score of every utterance at every layer, (B, L): what any policy can be decided from.

    Args:
        model: with exit heads.
        waveforms: (N_b,) each, at the backbone's rate.
        names: scores to compute (`daisy.scores`).
        batch_sec: seconds of audio in a batch.
        progress: called with the number of utterances just run.
    """
    encoder = EarlyExitEncoder(model.backbone, model.heads, Never(), keep="last", scores=names)
    config = model.backbone.config
    scores = {name: torch.full((len(waveforms), config.num_layers), torch.nan) for name in encoder.score_names}
    for indices in audio.batches([len(w) for w in waveforms], int(batch_sec * config.sample_rate)):
        out = encoder([waveforms[i] for i in indices])
        for name, values in out.scores.items():
            scores[name][indices] = values
        progress(len(indices))
    return scores


def with_noise(
    waveforms: Sequence[Tensor], noises: mixing.NoiseBank, snr_db: float | None, seed: int = 0
) -> list[Tensor]:
    """Each utterance mixed with an excerpt of its own, the same at every SNR; as they are where ``snr_db`` is None."""
    if snr_db is None:
        return list(waveforms)
    mixed = []
    for index, waveform in enumerate(waveforms):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + index)
        mixed.append(mixing.mix(waveform, noises.draw(len(waveform), generator), snr_db))
    return mixed


def bootstrap(values: Sequence[float], groups: Sequence[str], *, draws: int = 2000, seed: int = 0) -> Estimate:
    """Mean over utterances with a 95 % percentile interval from resampling whole groups (speakers).

    Args:
        values: one per utterance.
        groups: the speaker of each.
        draws: bootstrap samples.
        seed: of the draws.
    """
    _, membership = numpy.unique(numpy.asarray(groups), return_inverse=True)
    sums = numpy.bincount(membership, weights=numpy.asarray(values, dtype=numpy.float64))
    counts = numpy.bincount(membership)
    picks = numpy.random.default_rng(seed).integers(len(sums), size=(draws, len(sums)))
    means = sums[picks].sum(1) / counts[picks].sum(1)
    low, high = numpy.quantile(means, [0.025, 0.975])
    return Estimate(float(sums.sum() / counts.sum()), float(low), float(high))
