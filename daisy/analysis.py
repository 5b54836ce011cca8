"""What exits do under noise: full runs once, decisions from their scores, intervals by resampling speakers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy
import torch
from torch import Tensor
from torch.nn import functional as F

from daisy import audio, mixing
from daisy.checkpoint import Model
from daisy.encoder import EarlyExitEncoder
from daisy.errors import UsageError
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


class Fidelity(NamedTuple):
    """A full run of utterances with everything a comparison needs; (B, L) each, layers 1 to L."""

    scores: dict[str, Tensor]
    """Scores by name."""
    loss: Tensor
    """Mean unit loss of each layer's head against the reference units, nats."""
    accuracy: Tensor
    """Share of frames whose unit at this layer is the reference's."""
    agreement: Tensor
    """Share of frames whose unit at this layer is the full model's on the same input."""
    kl: Tensor
    """Mean KL divergence from the full model's distribution on the same input to this layer's, nats."""
    units: list[Tensor]
    """(T_b,) each: the full model's units on this input."""


@torch.no_grad()
def fidelity(
    model: Model,
    waveforms: Sequence[Tensor],
    reference: Sequence[Tensor] | None = None,
    *,
    batch_sec: float = 30.0,
    progress: Callable[[int], None] = lambda count: None,
) -> Fidelity:
    """Run every layer, and compare each layer's head with the full model.

    Args:
        model: with exit heads and HuBERT's own final head, which is the full model's prediction.
        waveforms: (N_b,) each.
        reference: (T_b,) units that ``loss`` and ``accuracy`` are measured against, such as those of the clean
            versions; the full model's on the same input where None.
        batch_sec: seconds of audio in a batch.
        progress: called with the number of utterances just run.

    Raises:
        UsageError: where the model lacks one of the heads.
    """
    if model.heads is None or model.final_head is None:
        raise UsageError("fidelity needs a checkpoint with exit heads and with HuBERT's own final head")
    names = ["entropy", "regressed"] if model.heads.regressors is not None else ["entropy"]
    encoder = EarlyExitEncoder(model.backbone, model.heads, Never(), scores=names)
    config = model.backbone.config
    size = (len(waveforms), config.num_layers)
    scores = {name: torch.zeros(size) for name in names}
    loss, accuracy, agreement, kl = (torch.zeros(size) for _ in range(4))
    units: list[Tensor] = [torch.empty(0)] * len(waveforms)
    for indices in audio.batches([len(w) for w in waveforms], int(batch_sec * config.sample_rate)):
        out = encoder([waveforms[i] for i in indices])
        for name, values in out.scores.items():
            scores[name][indices] = values
        for index, states in zip(indices, out.states, strict=True):
            full = model.final_head(states[-1]).log_softmax(-1)  # (T, K)
            units[index] = full.argmax(-1)
            wanted = units[index] if reference is None else reference[index]
            for layer in range(1, config.num_layers + 1):
                log_probs = model.heads.unit_logits(layer, states[layer]).log_softmax(-1)
                guesses = log_probs.argmax(-1)
                loss[index, layer - 1] = F.nll_loss(log_probs, wanted)
                accuracy[index, layer - 1] = (guesses == wanted).float().mean()
                agreement[index, layer - 1] = (guesses == units[index]).float().mean()
                kl[index, layer - 1] = F.kl_div(log_probs, full, log_target=True, reduction="batchmean")
        progress(len(indices))
    return Fidelity(scores, loss, accuracy, agreement, kl, units)


def at_exit(values: Tensor, exit_layers: Tensor) -> Tensor:
    """(B, L) values to (B,): each utterance's at its exit layer."""
    return values.gather(1, exit_layers[:, None] - 1)[:, 0]
