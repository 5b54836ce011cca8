"""HuBERT's own task, masked prediction of units: a network's states of masked frames, and a head for other units."""

from __future__ import annotations

from collections.abc import Sequence

import numpy
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from daisy.checkpoints import Model
from daisy.checkpoints.provenance import drop_notes_of_heads
from daisy.errors import UsageError
from daisy.models.heads import SPECIAL_SYMBOLS, FinalHead
from daisy.models.lengths import count_frames
from daisy.training.learner import draw_spans

SPARE_FRAMES = 5
"""Difference allowed between a recording's units and frames, due to other windows or ends."""


@torch.no_grad()
def run_masked(model: Model, waveform: Tensor, masked: Tensor) -> Tensor:
    """Compute the last layer (T, D) of a waveform (N,), with the masked frames (T,) replaced by the mask embedding."""
    backbone = model.backbone
    features, num_frames = backbone.front_end(waveform[None], torch.tensor([len(waveform)]))
    projected = backbone.project(features)
    projected[0, masked] = backbone.mask_embedding
    return backbone.run_layers(backbone.position(projected, num_frames), num_frames)[-1][0]


def gather_masked_frames(
    model: Model,
    waveforms: Sequence[Tensor],
    units: Sequence[Tensor],
    *,
    mask_prob: float = 0.65,
    mask_length: int = 10,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Gather the network's states of masked frames, and their units.

    Args:
        model: model whose backbone is run.
        waveforms: waveforms, (N_b,) each.
        units: (T_b,) each, 0 to K - 1, one per frame; the last few frames may have none. (T_b, S) for several kinds.
        mask_prob: share of frames that start a span, times ``mask_length``.
        mask_length: frames per span.
        seed: seed of the masks, which are the same for every model.

    Returns:
        (N, D) states of the last layer and (N,) units, or (N, S).

    Raises:
        UsageError: where units have another rate than frames.
    """
    generator = numpy.random.default_rng(seed)
    masked_states, targets = [], []
    for waveform, wanted in zip(waveforms, units, strict=True):
        num_frames = count_frames(len(waveform), model.backbone.config.conv_layers)
        if abs(num_frames - len(wanted)) > SPARE_FRAMES:
            raise UsageError(f"{len(wanted)} units for {num_frames} frames: make units at the rate of the frames")
        where = draw_spans(num_frames, mask_prob, mask_length, generator)
        where[len(wanted) :] = False
        masked_states.append(run_masked(model, waveform, where)[where])
        targets.append(wanted[: len(where)][where[: len(wanted)]])
    return torch.cat(masked_states), torch.cat(targets)


@torch.no_grad()
def refit(model: Model, masked_states: Tensor, units: Tensor, num_units: int) -> int:
    """Give a model a final head for other units, whose embeddings are centred means of the projected masked states.

    A randomly initialised head sends misleading gradients into a trained network; this one predicts from
    the first update.

    Args:
        model: model to change in place. It keeps its projection, or gets an identity if it had no head, and loses its
            exit heads and policies, which were for the old units.
        masked_states: (S, D), of `gather_masked_frames`.
        units: (S,), 0 to ``num_units`` - 1.
        num_units: K, without special symbols.

    Returns:
        Number of units that did not occur; their embeddings are random.
    """
    width, old = model.backbone.config.width, model.final_head
    head = FinalHead(width, old.embeddings.shape[1] if old else width, num_units + SPECIAL_SYMBOLS)
    if old is None:
        nn.init.eye_(head.projection.weight)
        nn.init.zeros_(head.projection.bias)
    else:
        head.temperature = old.temperature
        head.projection.load_state_dict(old.projection.state_dict())
    projected = F.normalize(head.projection(masked_states), dim=-1)
    sums = torch.zeros(num_units, projected.shape[1]).index_add(0, units, projected)
    counts = torch.bincount(units, minlength=num_units)
    unmet = counts == 0
    embeddings = F.normalize(sums / counts.clamp(min=1)[:, None] - projected.mean(0), dim=-1)
    drawn = torch.randn(embeddings.shape, generator=torch.Generator().manual_seed(0))
    embeddings[unmet] = F.normalize(drawn, dim=-1)[unmet]
    special = -F.normalize(projected.mean(0), dim=0).expand(SPECIAL_SYMBOLS, -1)  # never the best
    head.embeddings.copy_(torch.cat([special, embeddings]))
    model.final_head, model.heads, model.policies = head, None, {}
    model.provenance = drop_notes_of_heads(model.provenance)
    return int(unmet.sum())
