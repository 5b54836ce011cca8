"""Samples to frames: the arithmetic of the convolutional front end, and masks from lengths.

A convolution without padding of kernel ``k`` and stride ``s`` turns ``n`` positions into ``(n - k) // s + 1``. HuBERT's
seven of them make one frame of 400 samples (25 ms) every 320 (20 ms) at 16 kHz.
"""

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

ConvLayer = tuple[int, int, int]  # channels, kernel, stride
Count = TypeVar("Count", int, Tensor)


def num_frames(num_samples: Count, conv_layers: Sequence[ConvLayer]) -> Count:
    """Number of frames for a number of samples (an int, or an integer tensor of any shape); never below 0."""
    count = num_samples
    for _, kernel, stride in conv_layers:
        count = (count - kernel) // stride + 1
    return count.clamp(min=0) if isinstance(count, Tensor) else max(count, 0)


def frame_hop(conv_layers: Sequence[ConvLayer]) -> int:
    """Samples between the starts of two frames (320 for HuBERT)."""
    hop = 1
    for _, _, stride in conv_layers:
        hop *= stride
    return hop


def frame_span(conv_layers: Sequence[ConvLayer]) -> int:
    """Samples that one frame sees (400 for HuBERT): the shortest usable recording."""
    span = 1
    for _, kernel, stride in reversed(conv_layers):
        span = (span - 1) * stride + kernel
    return span


def utterance_mean(values: Tensor, num_frames: Tensor) -> Tensor:
    """Means over each utterance's frames, float32.

    Args:
        values: (F, ...), the frames of B utterances one after the other.
        num_frames: (B,) how many each has, on the CPU; they sum to F.

    Returns:
        (B, ...).
    """
    total = values.new_zeros(len(num_frames), *values.shape[1:], dtype=torch.float64)  # sums of minutes of frames
    total.index_add_(0, owners(num_frames, values.device), values.double())
    counts = num_frames.to(values.device, non_blocking=True)
    return (total / counts.view(-1, *[1] * (values.ndim - 1))).float()


def owners(num_frames: Tensor, device: torch.device) -> Tensor:
    """Which utterance each of the frames is of, that stand one after the other: (B,) counts on the CPU to (F,)."""
    return torch.repeat_interleave(num_frames).to(device, non_blocking=True)  # a GPU's host does not wait


def strided(num_frames: Tensor, stride: int) -> Tensor:
    """Rows of every ``stride``-th frame of each utterance, its first on, among the (F,) frames of all."""
    counts = (num_frames + stride - 1) // stride
    starts, firsts = num_frames.cumsum(0) - num_frames, counts.cumsum(0) - counts
    within = torch.arange(int(counts.sum())) - torch.repeat_interleave(firsts, counts)
    return torch.repeat_interleave(starts, counts) + stride * within


def valid_mask(num_frames: Tensor, length: int) -> Tensor:
    """(B,) frame counts to a (B, length) boolean mask, True where the frame belongs to the utterance."""
    return torch.arange(length, device=num_frames.device) < num_frames[:, None]
