"""The masked-unit loss, the same in training and in evaluation."""

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

    def mean(self) -> Tensor:
        """Return the mean loss of each utterance, (B,) nats, detached; 0 where no frame counts."""
        return (self.loss / self.num_counted.clamp(min=1)).detach()


def unit_loss(logits: Tensor, targets: Tensor, utterance: Tensor, num_utterances: int) -> UnitLoss:
    """Compute the cross-entropy of unit predictions, per utterance (HuBERT, arXiv:2106.07447, equation 1).

    Args:
        logits: (S, K), the frames that count, of all utterances one after another.
        targets: (S,) int64 units, 0 to K - 1.
        utterance: (S,) int64, index of the utterance that each frame belongs to.
        num_utterances: number of utterances, B.

    Returns:
        Sums over each utterance's frames.

    Example:
        >>> import torch
        >>> from daisy.models import unit_loss
        >>> loss = unit_loss(torch.zeros(3, 4), torch.tensor([0, 1, 2]), torch.tensor([0, 0, 1]), 2)
        >>> loss.num_counted.tolist(), round(float(loss.mean()[1]), 4)  # ln 4
        ([2.0, 1.0], 1.3863)
    """
    logits = logits.float()
    nats = F.cross_entropy(logits, targets, reduction="none")
    correct = (logits.argmax(-1) == targets).float()
    zeros = nats.new_zeros(num_utterances)
    return UnitLoss(
        loss=zeros.index_add(0, utterance, nats),
        num_correct=zeros.index_add(0, utterance, correct),
        num_counted=zeros.index_add(0, utterance, torch.ones_like(correct)),
    )
