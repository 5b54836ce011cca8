"""Head outputs to one number per utterance and layer. A policy names what it reads; nothing else is computed."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from daisy import frames
from daisy.errors import PolicyError, unknown_name
from daisy.heads import ExitHeads


def entropy(heads: ExitHeads, layer: int, read: Tensor, num_frames: Tensor) -> Tensor:
    """Mean frame entropy of the unit distribution, (B,) in nats: DAISY's predicted masked-unit loss."""
    return frame_mean(unit_entropy(heads.unit_logits(layer, read)), num_frames)


def regressed(heads: ExitHeads, layer: int, read: Tensor, num_frames: Tensor) -> Tensor:
    """The loss regressor's estimate of the masked-unit loss, (B,) in nats."""
    return heads.predicted_loss(layer, read, num_frames)


SCORES: dict[str, Callable[[ExitHeads, int, Tensor, Tensor], Tensor]] = {"entropy": entropy, "regressed": regressed}


def check(names: Iterable[str]) -> None:
    """Refuse what is no score.

    Raises:
        PolicyError: on a name that is no score.
    """
    for name in names:
        if name not in SCORES:
            raise PolicyError(unknown_name("score", name, SCORES))


def unit_entropy(logits: Tensor) -> Tensor:
    """Entropy of the distribution of logits (..., K), (...) in nats; finite for any finite logits."""
    log_probs = logits.log_softmax(-1)
    return -(log_probs.exp() * log_probs).sum(-1)


def frame_mean(values: Tensor, num_frames: Tensor) -> Tensor:
    """Mean of (B, T) values over each utterance's own frames, (B,) float32."""
    valid = frames.valid_mask(num_frames, values.shape[1]).to(values.device)
    total = torch.where(valid, values, values.new_zeros(())).sum(1, dtype=torch.float32)
    return total / num_frames.to(values.device, torch.float32)
