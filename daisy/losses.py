"""The masked-unit loss, the same in training and in measuring."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class UnitLoss(NamedTuple):
    """Sums over each utterance's counted frames; divide by `num_counted` for means."""

    loss: Tensor
    """(B,) float32, nats."""
    num_correct: Tensor
    """(B,) float32."""
    num_counted: Tensor
    """(B,) float32, frames."""


def unit_loss(logits: Tensor, targets: Tensor, counted: Tensor) -> UnitLoss:
    """Cross-entropy of unit predictions, per utterance (HuBERT, arXiv:2106.07447, equation 1).

    Args:
        logits: (B, T, K).
        targets: (B, T) int64 units, 0 to K - 1; what stands in frames that are not counted is not read.
        counted: (B, T) bool, the frames that count (the masked ones, say, and never padding).
    """
    picked = logits[counted].float()  # (S, K)
    wanted = targets[counted]
    nats = F.cross_entropy(picked, wanted, reduction="none")
    correct = (picked.argmax(-1) == wanted).float()
    rows = counted.nonzero()[:, 0]
    zeros = nats.new_zeros(len(counted))
    return UnitLoss(
        loss=torch.index_add(zeros, 0, rows, nats),
        num_correct=torch.index_add(zeros, 0, rows, correct),
        num_counted=counted.sum(1).float(),
    )
