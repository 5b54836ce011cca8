"""WavLM's gated relative positions: an attention bias that depends on the distance from a query to a key.

All layers share the biases; each layer's gate scales them depending on the query.

Matched behaviour: WavLM (arXiv:2110.13900, section III-B), as in transformers 4.57,
transformers/models/wavlm/modeling_wavlm.py, and torchaudio 2.5, torchaudio/models/wav2vec2/wavlm_attention.py. The
buckets of distances are those of T5 (arXiv:1910.10683).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def find_buckets(distances: Tensor, num_buckets: int, max_distance: int) -> Tensor:
    """Find the buckets of distances (key minus query).

    Half of the buckets are for keys after the query. Of each half, the first half is for one distance each; the rest
    grow logarithmically, and the last is for ``max_distance`` and beyond.

    Args:
        distances: distances in frames, int64.
        num_buckets: number of buckets, a multiple of 4.
        max_distance: frames, more than a quarter of the buckets.

    Returns:
        Buckets from 0 to ``num_buckets - 1``, int64, of the same shape.
    """
    half, exact = num_buckets // 2, num_buckets // 4
    frames = distances.abs()
    growth = torch.log(frames.clamp(min=1).float() / exact) / math.log(max_distance / exact) * (half - exact)
    far = (exact + growth).long().clamp(max=half - 1)
    return torch.where(frames < exact, frames, far) + half * (distances > 0)


class RelativePositions(nn.Module):
    """The biases for distances, for each attention head.

    Args:
        num_buckets: number of buckets of distances.
        max_distance: see `find_buckets`.
        num_heads: number of attention heads, H.
    """

    def __init__(self, num_buckets: int, max_distance: int, num_heads: int):
        super().__init__()
        self.num_buckets, self.max_distance = num_buckets, max_distance
        self.weight = nn.Parameter(torch.randn(num_buckets, num_heads))

    def list_biases(self, length: int) -> Tensor:
        """Return the biases for the distances ``1 - length`` to ``length - 1``, (H, 2 ``length`` - 1)."""
        distances = torch.arange(1 - length, length, device=self.weight.device)
        return F.embedding(find_buckets(distances, self.num_buckets, self.max_distance), self.weight).T

    def forward(self, length: int) -> Tensor:
        """Return the biases for all pairs of T frames, in the order of `view_backwards`: (H, T, T)."""
        return view_backwards(self.list_biases(length), length)


def view_backwards(biases: Tensor, length: int) -> Tensor:
    """View biases for distances as biases for all pairs of frames, without a copy; the last query comes first.

    Each row begins one distance further than the one before, which strides can express only in this order.

    Args:
        biases: (H, 2 M - 1), biases for the distances 1 - M to M - 1, with M at least T.
        length: number of frames, T.

    Returns:
        (H, T, T), with the bias for query T - 1 - r and key k at [:, r, k].
    """
    unused = (biases.shape[1] + 1) // 2 - length
    return biases[:, unused : unused + 2 * length - 1].unfold(1, length, 1)


class PositionGate(nn.Module):
    """A layer's gate: the factor of the biases for each query and head.

    For a head's input x at a query, with u and v each the sum of four outputs of one linear map of x, it is
    sigmoid(u) (sigmoid(v) c - 1) + 2, with a parameter c for each head.

    Args:
        head_width: width of a head's input.
        num_heads: number of attention heads, H.
    """

    def __init__(self, head_width: int, num_heads: int):
        super().__init__()
        self.gru_rel_pos_linear = nn.Linear(head_width, 8)
        self.gru_rel_pos_const = nn.Parameter(torch.ones(1, num_heads, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Compute the gates from the input of attention: (B, T, D) to (B, H, T, 1)."""
        num_heads = self.gru_rel_pos_const.shape[1]
        sums = self.gru_rel_pos_linear(x.unflatten(2, (num_heads, -1)).transpose(1, 2)).unflatten(3, (2, 4)).sum(-1)
        reset, update = sums.sigmoid().split(1, dim=3)
        gates: Tensor = reset * (update * self.gru_rel_pos_const - 1) + 2
        return gates
