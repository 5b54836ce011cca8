"""From samples to frames: the arithmetic of the convolutional front end, and masks from lengths.

A convolution without padding of kernel ``k`` and stride ``s`` turns ``n`` positions into ``(n - k) // s + 1``. HuBERT's
seven convolutions make one frame of 400 samples (25 ms) every 320 samples (20 ms) at 16 kHz.
"""

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

ConvLayer = tuple[int, int, int]  # channels, kernel, stride
Count = TypeVar("Count", int, Tensor)

HUBERT_CONV: tuple[ConvLayer, ...] = ((512, 10, 5), *((512, 3, 2),) * 4, *((512, 2, 2),) * 2)
"""The front end of all published HuBERTs."""


def count_frames(num_samples: Count, conv_layers: Sequence[ConvLayer]) -> Count:
    """Count the frames of a number of samples (an int, or an integer tensor of any shape); at least 0."""
    count = num_samples
    for _, kernel, stride in conv_layers:
        count = (count - kernel) // stride + 1
    return count.clamp(min=0) if isinstance(count, Tensor) else max(count, 0)


def compute_frame_hop(conv_layers: Sequence[ConvLayer]) -> int:
    """Compute the number of samples between the starts of two frames (320 for HuBERT)."""
    hop = 1
    for _, _, stride in conv_layers:
        hop *= stride
    return hop


def compute_frame_span(conv_layers: Sequence[ConvLayer]) -> int:
    """Compute the number of samples that one frame sees (400 for HuBERT): the shortest usable recording."""
    span = 1
    for _, kernel, stride in reversed(conv_layers):
        span = (span - 1) * stride + kernel
    return span


MIN_SAMPLES = compute_frame_span(HUBERT_CONV)
"""Samples of one frame at 16 kHz, both for HuBERT and for MFCCs: 400."""


def make_valid_mask(num_frames: Tensor, length: int) -> Tensor:
    """Make a (B, length) boolean mask of (B,) frame counts, True where the frame belongs to the utterance."""
    return torch.arange(length, device=num_frames.device) < num_frames[:, None]
