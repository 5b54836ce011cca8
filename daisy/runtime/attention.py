"""Attend within each utterance of a batch whose frames follow one another without padding.

torch's fused kernels are fast for equal lengths; this module uses them, or plain products, for any lengths.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from daisy.models.lengths import make_valid_mask
from daisy.models.packing import FrameLayout, PackedLayout
from daisy.runtime.linear import round_up_rows
from daisy.runtime.private_ops import has_varlen_attention, varlen_attention

MIN_BLOCKED_FRAMES = 64
"""Number of frames from which bfloat16 attention on CPUs is computed in blocks."""
QUERY_BLOCK = 256
"""Number of queries in a block, whose weights stay in the caches."""


def attend(projected: Tensor, layout: FrameLayout, num_heads: int) -> Tensor:
    """Attend within each utterance.

    Args:
        projected: (F, 3 D), queries (already scaled), keys and values of each frame; on CPUs further rows may follow,
            to be ignored in the result too.
        layout: layout of the utterances' frames.
        num_heads: number of heads, H.

    Returns:
        (F, D).
    """
    split = projected.unflatten(1, (3, num_heads, -1))  # (F, 3, H, D / H)
    if has_varlen_attention(split.device, split.dtype, split.shape[3]):
        queries, keys, values = split.unbind(1)  # (F, H, D / H)
        return varlen_attention(queries, keys, values, layout.cu_seqlens, layout.max_seqlen).flatten(1)
    assert isinstance(layout, PackedLayout)  # graphs are only for devices with that kernel
    if projected.device.type == "cpu":
        return _attend_one_by_one(split, layout)
    return _attend_padded(split, layout)


def _attend_one_by_one(split: Tensor, layout: PackedLayout) -> Tensor:
    """Attend one utterance at a time, on CPUs: (F, 3, H, D / H) to (F, D)."""
    in_blocks = split.dtype == torch.bfloat16
    mixed = split.new_empty(len(split), *split.shape[2:])
    mixed[layout.total :] = 0
    utterances = split[: layout.total].permute(1, 2, 0, 3).split(layout.seqlens_list, dim=2)
    for rows, utterance in zip(mixed[: layout.total].split(layout.seqlens_list), utterances, strict=True):
        if in_blocks and len(rows) >= MIN_BLOCKED_FRAMES:
            _attend_in_blocks(utterance, rows)
        else:
            rows.copy_(_attend_fused(utterance[:, None].float())[0])
    return mixed.flatten(1)


def _attend_fused(queries_keys_values: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attend with torch's kernel: (3, B, H, T, D / H) to (B, T, H, D / H)."""
    queries, keys, values = queries_keys_values
    return F.scaled_dot_product_attention(queries, keys, values, mask, scale=1.0).transpose(1, 2)


def _attend_in_blocks(utterance: Tensor, rows: Tensor) -> None:
    """Attend with plain products for a block of queries at a time: (3, H, T, D / H) into ``rows`` (T, H, D / H).

    torch's fused kernel multiplies bfloat16 on CPUs no faster than float32; from a hundred frames on, this takes three
    quarters of its time or less. Weights are rounded to bfloat16 before the softmax, which doubles the error.
    """
    count = len(rows)
    # The copy costs a hundredth of the time of products over strided rows, and saves a tenth of it.
    padded = utterance.new_zeros(*utterance.shape[:2], round_up_rows(count), utterance.shape[3])
    padded[:, :, :count] = utterance
    queries, keys, values = padded
    transposed_keys = keys.transpose(-1, -2)
    # Padding queries may fill a block of their own.
    for block_rows, block in zip(rows.split(QUERY_BLOCK), queries.split(QUERY_BLOCK, dim=-2), strict=False):
        weights = block @ transposed_keys
        weights[..., count:] = -torch.inf
        block_rows.copy_((weights.softmax(-1) @ values).transpose(0, 1)[: len(block_rows)])


def _attend_padded(split: Tensor, layout: PackedLayout) -> Tensor:
    """Attend in one padded call, as many small ones keep a device waiting: (F, 3, H, D / H) to (F, D)."""
    max_seqlen = layout.max_seqlen
    split = split.permute(1, 2, 0, 3)  # (3, H, F, D / H)
    if min(layout.seqlens_list) == max_seqlen:
        return _attend_fused(split.unflatten(2, (-1, max_seqlen)).transpose(1, 2)).flatten(0, 1).flatten(1)
    valid = make_valid_mask(layout.num_frames, max_seqlen)
    places = valid.flatten().nonzero().squeeze(1).to(split.device, non_blocking=True)  # on the device, this would wait
    padded = split.new_zeros(3, split.shape[1], valid.numel(), split.shape[3]).index_copy_(2, places, split)
    mask = valid.to(split.device, non_blocking=True)[:, None, None]
    return _attend_fused(padded.unflatten(2, valid.shape).transpose(1, 2), mask).flatten(0, 1)[places].flatten(1)
