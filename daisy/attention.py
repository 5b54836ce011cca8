"""Attention within each utterance of a batch whose frames stand one after the other.

torch's fused kernels are fast for equal lengths; here are the ways to use them, or plain products, for any.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from daisy import frames, kernels
from daisy.layout import Layout

BLOCKED_FROM, QUERY_BLOCK = 64, 256
"""Frames from which bfloat16 attention on CPUs goes in blocks, and queries of a block, whose weights stay in caches."""


def attend(projected: Tensor, layout: Layout, num_heads: int) -> Tensor:
    """Attention within each utterance.

    Args:
        projected: (F, 3 D), queries, already scaled, keys and values of each frame; on CPUs further rows may follow,
            which mean nothing, in the result too.
        layout: of the utterances.
        num_heads: H.

    Returns:
        (F, D).
    """
    split = projected.unflatten(1, (3, num_heads, -1))  # (F, 3, H, D / H)
    if projected.device.type == "cpu":
        return _one_by_one(split, layout)
    if has_one_kernel(split.device, split.dtype, split.shape[3]):
        return _of_any_length(split, layout)
    return _padded(split, layout)


def has_one_kernel(device: torch.device, dtype: torch.dtype, head_width: int) -> bool:
    """Whether a device has one for many lengths, which looks at none on the host."""
    if device.type != "cuda" or torch.version.hip is not None or head_width % 8:
        return False
    return dtype == torch.float32 or (head_width <= 256 and torch.cuda.get_device_capability(device) >= (8, 0))


def _one_by_one(split: Tensor, layout: Layout) -> Tensor:
    """(F, 3, H, D / H) to (F, D), on CPUs."""
    in_blocks = split.dtype == torch.bfloat16
    mixed = split.new_empty(len(split), *split.shape[2:])
    mixed[layout.total :] = 0
    owned = split[: layout.total].permute(1, 2, 0, 3).split(layout.lengths, dim=2)
    for rows, own in zip(mixed[: layout.total].split(layout.lengths), owned, strict=True):
        if in_blocks and len(rows) >= BLOCKED_FROM:
            _in_blocks(own, rows)
        else:
            rows.copy_(_fused(own[:, None].float())[0])
    return mixed.flatten(1)


def _fused(queries_keys_values: Tensor, mask: Tensor | None = None) -> Tensor:
    """(3, B, H, T, D / H) to (B, T, H, D / H)."""
    queries, keys, values = queries_keys_values
    return F.scaled_dot_product_attention(queries, keys, values, mask, scale=1.0).transpose(1, 2)


def _in_blocks(own: Tensor, rows: Tensor) -> None:
    """(3, H, T, D / H) into ``rows`` (T, H, D / H), by plain products for a block of queries at a time.

    torch's fused kernel multiplies bfloat16 on CPUs no faster than float32; this takes three quarters of its time
    or less from a hundred frames on. Weights are rounded to bfloat16 before the softmax, which doubles the error.
    """
    count = len(rows)
    # The copy costs a hundredth of the products over strided rows, and takes a tenth off them.
    padded = own.new_zeros(*own.shape[:2], kernels.rounded(count), own.shape[3])
    padded[:, :, :count] = own
    queries, keys, values = padded
    turned = keys.transpose(-1, -2)
    # Queries that mean nothing may fill a block of their own.
    for some, block in zip(rows.split(QUERY_BLOCK), queries.split(QUERY_BLOCK, dim=-2), strict=False):
        weights = block @ turned
        weights[..., count:] = -torch.inf
        some.copy_((weights.softmax(-1) @ values).transpose(0, 1)[: len(some)])


def _of_any_length(split: Tensor, layout: Layout) -> Tensor:
    """(F, 3, H, D / H) to (F, D), on CUDA devices: one kernel, nothing padded or copied.

    The operators are those that torch's own attention comes down to (aten/src/ATen/native/transformers/attention.h);
    called directly, as the public form for many lengths (jagged tensors) costs the host as much as a whole layer.
    """
    queries, keys, values = split.unbind(1)  # (F, H, D / H)
    offsets, longest = layout.offsets, layout.longest
    if split.dtype == torch.float32:
        mixed = torch.ops.aten._efficient_attention_forward(
            queries[None], keys[None], values[None], None, offsets, offsets, longest, longest, 0.0, 0, scale=1.0
        )[0][0]
    else:
        mixed = torch.ops.aten._flash_attention_forward(
            queries, keys, values, offsets, offsets, longest, longest, 0.0, False, False, scale=1.0
        )[0]
    return mixed.flatten(1)


def _padded(split: Tensor, layout: Layout) -> Tensor:
    """All utterances in one call, which many small ones keep a device waiting for: (F, 3, H, D / H) to (F, D)."""
    longest, lengths = layout.longest, layout.lengths
    split = split.permute(1, 2, 0, 3)  # (3, H, F, D / H)
    if min(lengths) == longest:
        return _fused(split.unflatten(2, (-1, longest)).transpose(1, 2)).flatten(0, 1).flatten(1)
    valid = frames.valid_mask(layout.num_frames, longest)
    places = valid.flatten().nonzero().squeeze(1).to(split.device, non_blocking=True)  # found there, it would wait
    padded = split.new_zeros(3, split.shape[1], valid.numel(), split.shape[3]).index_copy_(2, places, split)
    mask = valid.to(split.device, non_blocking=True)[:, None, None]
    return _fused(padded.unflatten(2, valid.shape).transpose(1, 2), mask).flatten(0, 1)[places].flatten(1)
