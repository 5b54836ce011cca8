"""WavLM's gated relative positions: a bias to attention's weights for how far a key is from a query.

All layers share the biases of distances; each layer's gate weighs them by what stands at the query.

Matched behaviour: WavLM (arXiv:2110.13900, section III-B), as in transformers 4.57,
transformers/models/wavlm/modeling_wavlm.py, and torchaudio 2.5, torchaudio/models/wav2vec2/wavlm_attention.py. The
distances' buckets are T5's (arXiv:1910.10683).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def find_buckets(distances: Tensor, num_buckets: int, max_distance: int) -> Tensor:
    """Find the buckets of distances, key minus query.

    Half of the buckets are for keys behind the query. Of each half, the first half is for one distance each; the others
    grow as the logarithm does, and the last is for ``max_distance`` and all beyond.

    Args:
        distances: int64.
        num_buckets: a multiple of 4.
        max_distance: frames, more than a quarter of the buckets.

    Returns:
        Of the same shape, int64, from 0 to ``num_buckets - 1``.
    """
    half, exact = num_buckets // 2, num_buckets // 4
    frames = distances.abs()
    growth = torch.log(frames.clamp(min=1).float() / exact) / math.log(max_distance / exact) * (half - exact)
    far = (exact + growth).long().clamp(max=half - 1)
    return torch.where(frames < exact, frames, far) + half * (distances > 0)


class RelativePositions(nn.Module):
    """The biases of distances, of each attention head.

    Args:
        num_buckets: of distances.
        max_distance: see `find_buckets`.
        num_heads: H.
    """

    def __init__(self, num_buckets: int, max_distance: int, num_heads: int):
        super().__init__()
        self.num_buckets, self.max_distance = num_buckets, max_distance
        self.weight = nn.Parameter(torch.randn(num_buckets, num_heads))

    def list_biases(self, length: int) -> Tensor:
        """Return the biases of the distances ``1 - length`` to ``length - 1``, (H, 2 ``length`` - 1)."""
        distances = torch.arange(1 - length, length, device=self.weight.device)
        return F.embedding(find_buckets(distances, self.num_buckets, self.max_distance), self.weight).T

    def forward(self, length: int) -> Tensor:
        """Return the biases of all pairs of T frames, as `view_backwards` has them: (H, T, T)."""
        return view_backwards(self.list_biases(length), length)


def view_backwards(biases: Tensor, length: int) -> Tensor:
    """View biases of distances as those of all pairs of frames, the last frame's first; nothing is copied.

    Each row begins one distance further than the one before, which strides can express in this order only.

    Args:
        biases: (H, 2 M - 1), of the distances 1 - M to M - 1, for an M of at least T.
        length: T.

    Returns:
        (H, T, T): at [:, r, k] those of query T - 1 - r and key k.
    """
    unused = (biases.shape[1] + 1) // 2 - length
    return biases[:, unused : unused + 2 * length - 1].unfold(1, length, 1)


class PositionGate(nn.Module):
    """A layer's gate: by what the biases are multiplied at each query and head.

    Of a head's inputs x at a query, with u and v the sums of four outputs each of one linear map of x, it is
    sigmoid(u) (sigmoid(v) c - 1) + 2, with a constant c of the head.

    Args:
        head_width: of a head's inputs.
        num_heads: H.
    """

    def __init__(self, head_width: int, num_heads: int):
        super().__init__()
        self.gru_rel_pos_linear = nn.Linear(head_width, 8)
        self.gru_rel_pos_const = nn.Parameter(torch.ones(1, num_heads, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Compute the gates of what comes into attention: (B, T, D) to (B, H, T, 1)."""
        num_heads = self.gru_rel_pos_const.shape[1]
        sums = self.gru_rel_pos_linear(x.unflatten(2, (num_heads, -1)).transpose(1, 2)).unflatten(3, (2, 4)).sum(-1)
        reset, update = sums.sigmoid().split(1, dim=3)
        gates: Tensor = reset * (update * self.gru_rel_pos_const - 1) + 2
        return gates
