"""Attend with WavLM's gated relative positions, within each utterance of a batch without padding.

torch has no fused kernel that makes the biases as it goes, and one that reads them takes longer than plain products
over as many weights as stay in a core's cache. CPUs therefore use plain products in blocks, other devices that kernel.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from daisy.models.lengths import make_valid_mask
from daisy.models.packing import PackedLayout
from daisy.models.relative_positions import PositionGate, RelativePositions, view_backwards

BLOCK_WEIGHTS = 1 << 18
"""Attention weights in a block on CPUs, float32 or bfloat16: with 2 to 16 times as many, products over 250 to 1500
frames took up to twice as long, with a quarter as many a fifth longer (12 heads of 64, one thread)."""
MIN_BLOCK_QUERIES = 64
DEVICE_BLOCK_WEIGHTS = 1 << 26
"""The same on other devices, to limit memory: 256 MB of float32."""
MIN_LENGTH = 512
"""Number of frames for which biases are listed at first; they are listed again for longer utterances."""


class PackedBiases:
    """Biases by distance, listed once for many batches.

    Args:
        module: module with the biases, as they are now.
        dtype: type to list them in.
    """

    def __init__(self, module: RelativePositions, dtype: torch.dtype):
        self._module, self._dtype = copy.deepcopy(module).requires_grad_(False), dtype
        self._listed: tuple[int, Tensor | None] = 0, None  # replaced as a whole: threads share it

    def __call__(self, length: int) -> Tensor:
        """View the biases of all pairs of T frames, as `view_backwards` does: (H, T, T)."""
        longest, biases = self._listed
        if biases is None or length > longest:
            longest = max(MIN_LENGTH, 2 * length)
            biases = self._module.list_biases(longest).to(self._dtype).contiguous()
            self._listed = longest, biases
        return view_backwards(biases, length)


class PackedGate:
    """A layer's gate, of whose eight outputs only two sums are needed."""

    def __init__(self, module: PositionGate, dtype: torch.dtype):
        linear = module.gru_rel_pos_linear
        self.weight = linear.weight.detach().unflatten(0, (2, 4)).sum(1).to(dtype)  # (2, D / H)
        self.bias = linear.bias.detach().unflatten(0, (2, 4)).sum(1).to(dtype)
        self.constant = module.gru_rel_pos_const.detach().flatten().to(dtype)  # (H,)

    def __call__(self, x: Tensor) -> Tensor:
        """Compute gates (F, H) from the input of attention, (F, D)."""
        sums = F.linear(x.unflatten(1, (len(self.constant), -1)), self.weight, self.bias).sigmoid()
        gates: Tensor = sums[..., 0] * (sums[..., 1] * self.constant - 1) + 2
        return gates


def attend_gated(projected: Tensor, gates: Tensor, layout: PackedLayout, positions: PackedBiases) -> Tensor:
    """Attend within each utterance.

    Args:
        projected: as in `daisy.runtime.attention.attend`.
        gates: (F, H); on CPUs further rows may follow.
        layout: layout of the utterances' frames.
        positions: biases by distance.

    Returns:
        (F, D), with as many further rows as ``projected``.
    """
    split = projected.unflatten(1, (3, gates.shape[1], -1))  # (F, 3, H, D / H)
    if projected.device.type != "cpu":
        return _attend_padded(split, gates, layout, positions)
    mixed: Tensor = split.new_empty(len(split), *split.shape[2:])
    mixed[layout.total :] = 0
    lengths = layout.seqlens_list
    utterances = split[: layout.total].permute(1, 2, 0, 3).split(lengths, dim=2)
    of_each = zip(mixed[: layout.total].split(lengths), utterances, gates[: layout.total].split(lengths), strict=True)
    for rows, utterance, gate in of_each:
        _attend_in_blocks(utterance, gate, positions(len(rows)), rows)
    return mixed.flatten(1)


def _attend_in_blocks(utterance: Tensor, gates: Tensor, biases: Tensor, rows: Tensor) -> None:
    """Attend with plain products: (3, H, T, D / H), gates (T, H), biases (H, T, T) into ``rows`` (T, H, D / H)."""
    queries, keys, values = utterance.contiguous()
    backwards, transposed_keys, gates = queries.flip(1), keys.transpose(1, 2), gates.T.flip(1)[..., None]
    mixed = torch.empty_like(queries)
    num_heads, length, _ = queries.shape
    for heads, block in _cut_blocks(num_heads, length, BLOCK_WEIGHTS):
        weights = backwards[heads, block] @ transposed_keys[heads]
        weights.addcmul_(gates[heads, block], biases[heads, block])
        mixed[heads, block] = weights.softmax(-1) @ values[heads]
    rows.copy_(mixed.flip(1).transpose(0, 1))


def _cut_blocks(num_heads: int, length: int, budget: int) -> Iterator[tuple[slice, slice]]:
    """Cut heads and queries so that no part has more weights than the budget, unless `MIN_BLOCK_QUERIES` needs more."""
    heads = max(1, min(num_heads, budget // length**2))
    queries = length if heads > 1 else max(MIN_BLOCK_QUERIES, budget // length)
    for head in range(0, num_heads, heads):
        for query in range(0, length, queries):
            yield slice(head, head + heads), slice(query, query + queries)


def _attend_padded(split: Tensor, gates: Tensor, layout: PackedLayout, positions: PackedBiases) -> Tensor:
    """Attend for all utterances in one call, or a few: (F, 3, H, D / H) to (F, D)."""
    length = layout.max_seqlen
    valid = make_valid_mask(layout.num_frames, length)
    places = valid.flatten().nonzero().squeeze(1).to(split.device, non_blocking=True)
    padded = split.new_zeros(valid.numel(), *split.shape[1:]).index_copy_(0, places, split)
    padded = padded.unflatten(0, valid.shape).permute(2, 0, 3, 1, 4)  # (3, B, H, T, D / H)
    queries, keys, values = padded
    padded_gates = gates.new_zeros(valid.numel(), gates.shape[1]).index_copy_(0, places, gates)
    padded_gates = padded_gates.unflatten(0, valid.shape).transpose(1, 2).flip(2)[..., None]  # (B, H, T, 1)
    hidden = ~valid.to(split.device, non_blocking=True)[:, None, None]
    biases, backwards = positions(length), queries.flip(2)
    mixed = torch.empty_like(queries)
    rows = max(1, DEVICE_BLOCK_WEIGHTS // (keys[..., 0].numel()))
    for start in range(0, length, rows):
        block = slice(start, start + rows)
        gated = (padded_gates[:, :, block] * biases[:, block]).masked_fill_(hidden, -torch.inf)
        mixed[:, :, block] = F.scaled_dot_product_attention(backwards[:, :, block], keys, values, gated, scale=1.0)
    return mixed.flip(2).transpose(1, 2).flatten(0, 1)[places].flatten(1)
