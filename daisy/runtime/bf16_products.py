"""Compute products whose result has bfloat16's type but not its error."""

from __future__ import annotations

import torch
from torch import Tensor


def split_inputs(windows: Tensor, dtype: torch.dtype) -> Tensor:
    """Make inputs for products with `split_weights`: (n, kernel) to (n, K).

    In bfloat16 each sample, like each weight, is split into two numbers, the rounded value and the remainder. A column
    of ones is for the bias, and K is a multiple of 8, which suits products on GPUs.
    """
    count = len(windows)
    if dtype == torch.float32:
        parts = [windows, windows.new_ones(count, 1)]
    else:
        rounded = windows.to(dtype)
        parts = [rounded, (windows - rounded).to(dtype), rounded, rounded.new_ones(count, 2)]
    return torch.cat([*parts, parts[0].new_zeros(count, -sum(part.shape[1] for part in parts) % 8)], 1)


def split_weights(weight: Tensor, bias: Tensor, dtype: torch.dtype) -> Tensor:
    """Make weights for `split_inputs`: (..., C, kernel) and biases (..., C) to (..., C, K)."""
    bias = bias[..., None]
    if dtype == torch.float32:
        parts = [weight, bias]
    else:
        parts = [weight.to(dtype), weight.to(dtype), (weight - weight.to(dtype)).to(dtype)]
        parts += [bias.to(dtype), (bias - bias.to(dtype)).to(dtype)]
    return torch.cat([*parts, parts[0].new_zeros(*bias.shape[:-1], -sum(part.shape[-1] for part in parts) % 8)], -1)
