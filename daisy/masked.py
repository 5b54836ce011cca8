"""HuBERT's own task, masked prediction of units, on a backbone: measuring it, and giving it a head for other units."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy
import torch
from torch import Tensor
from torch.nn import functional as F

from daisy import frames
from daisy.checkpoint import Model
from daisy.errors import CheckpointError, UsageError
from daisy.heads import FinalHead
from daisy.losses import UnitLoss, unit_loss

SPECIAL_SYMBOLS = 4
"""Rows before the units in fairseq's dictionaries: bos, pad, eos, unk."""


def spans(num_frames: int, mask_prob: float, mask_length: int, generator: numpy.random.Generator) -> Tensor:
    """(T,) bool: masked frames, as in HuBERT's pre-training (static spans that may overlap, at least two)."""
    count = max(2, int(mask_prob * num_frames / mask_length + generator.random()))
    length = min(mask_length, max(1, num_frames - 1))
    starts = generator.choice(num_frames - length + 1, min(count, num_frames - length + 1), replace=False)
    masked = torch.zeros(num_frames, dtype=torch.bool)
    masked[(torch.from_numpy(starts)[:, None] + torch.arange(length)).flatten()] = True
    return masked


@torch.no_grad()
def masked_states(model: Model, waveform: Tensor, masked: Tensor) -> Tensor:
    """(N,) waveform to (T, D) states of the last layer, with the masked frames (T,) replaced by the mask embedding."""
    backbone = model.backbone
    features, num_frames = backbone.front_end(waveform[None], torch.tensor([len(waveform)]))
    projected = backbone.project(features)
    projected[0, masked] = backbone.mask_embedding
    states = backbone.position(projected, num_frames)
    for layer in range(1, backbone.config.num_layers + 1):
        states = backbone.layer(layer, states, num_frames)
    return states[0]


def loss(
    model: Model,
    waveforms: Sequence[Tensor],
    units: Sequence[Tensor],
    *,
    mask_prob: float = 0.65,
    mask_length: int = 10,
    seed: int = 0,
    progress: Callable[[int], None] = lambda count: None,
) -> UnitLoss:
    """Masked-unit loss of the model's own final head, per utterance (HuBERT, arXiv:2106.07447, equation 1).

    Args:
        model: with a final head.
        waveforms: (N_b,) each.
        units: (T_b,) each, 0 to K - 1 without special symbols.
        mask_prob: share of frames that start a span, times ``mask_length``.
        mask_length: frames of a span.
        seed: of the masks.
        progress: called with 1 after each utterance.

    Raises:
        CheckpointError: where the model has no final head.
    """
    if model.final_head is None:
        raise CheckpointError("this checkpoint has no prediction head of its own")
    generator = numpy.random.default_rng(seed)
    parts = []
    for waveform, wanted in zip(waveforms, units, strict=True):
        masked = spans(_num_frames(model, waveform), mask_prob, mask_length, generator)[: len(wanted)]
        states = masked_states(model, waveform, _padded(masked, _num_frames(model, waveform)))[: len(wanted)]
        with torch.no_grad():
            logits = model.final_head(states[masked])
        targets = wanted[: len(masked)][masked] + SPECIAL_SYMBOLS
        parts.append(unit_loss(logits, targets, torch.zeros_like(targets), 1))
        progress(1)
    return UnitLoss(*(torch.cat(each) for each in zip(*parts, strict=True)))


@torch.no_grad()
def refit(
    model: Model,
    waveforms: Sequence[Tensor],
    units: Sequence[Tensor],
    num_units: int,
    *,
    seed: int = 0,
    progress: Callable[[int], None] = lambda count: None,
) -> None:
    """Give a model a final head for other units: each unit's embedding is the mean of the projected masked states.

    A head that starts at random sends misleading gradients through a network that was trained; this one predicts from
    the first update on.

    Args:
        model: changed in place; keeps its projection, and gets one that changes nothing where it had no head.
        waveforms: (N_b,) each.
        units: (T_b,) each, 0 to ``num_units`` - 1.
        num_units: K, without special symbols.
        seed: of the masks.
        progress: called with 1 after each utterance.

    Raises:
        UsageError: where a unit occurs nowhere.
    """
    width = model.backbone.config.width
    old = model.final_head
    head = FinalHead(width, old.embeddings.shape[1] if old else width, num_units + SPECIAL_SYMBOLS)
    if old is None:
        head.projection.weight.copy_(torch.eye(width))
        head.projection.bias.zero_()
    else:
        head.temperature = old.temperature
        head.projection.load_state_dict(old.projection.state_dict())
    sums, counts = torch.zeros_like(head.embeddings), torch.zeros(num_units + SPECIAL_SYMBOLS)
    generator = numpy.random.default_rng(seed)
    for waveform, wanted in zip(waveforms, units, strict=True):
        masked = spans(_num_frames(model, waveform), 0.65, 10, generator)
        states = masked_states(model, waveform, masked)[: len(wanted)]
        masked, targets = masked[: len(wanted)], wanted[: len(states)] + SPECIAL_SYMBOLS
        projected = F.normalize(head.projection(states[masked]), dim=-1)
        sums.index_add_(0, targets[masked], projected)
        counts.index_add_(0, targets[masked], torch.ones(int(masked.sum())))
        progress(1)
    if (counts[SPECIAL_SYMBOLS:] == 0).any():
        raise UsageError(
            f"unit {int((counts[SPECIAL_SYMBOLS:] == 0).nonzero()[0])} occurs nowhere: give more recordings"
        )
    centred = F.normalize(sums / counts.clamp(min=1)[:, None] - sums.sum(0) / counts.sum(), dim=-1)
    centred[:SPECIAL_SYMBOLS] = -F.normalize(sums.sum(0), dim=0)  # never the best
    head.embeddings.copy_(centred)
    model.final_head, model.heads, model.policies = head, None, {}


def _num_frames(model: Model, waveform: Tensor) -> int:
    return frames.num_frames(len(waveform), model.backbone.config.conv_layers)


def _padded(masked: Tensor, length: int) -> Tensor:
    return F.pad(masked, (0, length - len(masked)))
