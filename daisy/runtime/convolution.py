"""Compute convolutions over time as matrix products, or by Fourier transforms if the kernel is long."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from daisy.models.packing import FrameLayout, PackedLayout
from daisy.runtime.dtypes import Precision
from daisy.runtime.linear import make_linear


class Conv:
    """A convolution over time without padding, as a matrix product over windows of frames.

    Args:
        weight: (M, C, kernel).
        bias: (M,), or None.
        stride: stride between windows.
        precision: as in `make_linear`.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, stride: int, precision: Precision = "float32"):
        self.kernel, self.stride = weight.shape[2], stride
        self.linear = make_linear(weight.transpose(1, 2).flatten(1), bias, precision)

    def __call__(self, x: Tensor, *, gelu: bool = False) -> Tensor:
        """Convolve (T, C) to ((T - kernel) // stride + 1, M)."""
        return self.linear.multiply(gather_windows(x, self.kernel, self.stride), gelu, None)


def gather_windows(x: Tensor, kernel: int, stride: int) -> Tensor:
    """Copy the input window of each output of a convolution: (T, C) to ((T - kernel) // stride + 1, kernel C)."""
    length, channels = x.shape
    count = (length - kernel) // stride + 1
    return x.contiguous().as_strided((count, kernel * channels), (stride * channels, 1)).contiguous()


class FourierConv:
    """A grouped convolution with a long kernel and stride 1, by Fourier transforms of overlapping blocks.

    Computes in float32. The multiplications are a few percent of the direct form's; the result is the same except for
    rounding (overlap-save; e.g. Oppenheim and Schafer, Discrete-Time Signal Processing, 8.7.3).

    Args:
        weight: (D, D / groups, kernel).
        bias: (D,), or None.
        groups: number of groups of channels.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, groups: int):
        width, group_width, self.kernel = weight.shape
        self.groups, self.bias = groups, None if bias is None else bias.detach().float()
        self.block = 2 ** (2 * self.kernel - 1).bit_length()
        self.step = self.block - self.kernel + 1
        """Number of new frames in a block."""
        spectrum = torch.fft.rfft(weight.detach().float().flip(-1), self.block)  # a convolution, not a correlation
        self.spectrum = spectrum.view(groups, width // groups, group_width, -1).permute(3, 0, 2, 1).contiguous()

    def __call__(self, frames: Tensor, layout: FrameLayout) -> Tensor:
        """Convolve (F, D) to (F, D): each utterance with ``kernel // 2`` frames of zeros around it."""
        if isinstance(layout, PackedLayout) and frames.device.type == "cpu":
            blocks, rows = self._cut_on_host(frames.float(), layout)
        else:
            blocks, rows = self._cut_on_device(frames.float(), layout)
        spectrum = torch.fft.rfft(blocks, self.block).unflatten(1, (self.groups, -1))  # (blocks, G, D / G, bins)
        spectrum = spectrum.permute(3, 1, 0, 2) @ self.spectrum
        convolved = torch.fft.irfft(spectrum.permute(2, 1, 3, 0), self.block).flatten(1, 2)[..., self.kernel - 1 :]
        result: Tensor = convolved.transpose(1, 2).flatten(0, 1)[rows]
        return result if self.bias is None else result.add_(self.bias)

    def _cut_on_host(self, frames: Tensor, layout: PackedLayout) -> tuple[Tensor, slice | Tensor]:
        """Cut (F, D) into blocks of single utterances (blocks, D, block), and find the output rows that are frames."""
        before, blocks = self.kernel // 2, []
        counts = (layout.num_frames + self.step - 1) // self.step
        for utterance, count in zip(frames.split(layout.seqlens_list), counts.tolist(), strict=True):
            # Output t of the overlap-save block needs inputs t - before to t - before + kernel - 1.
            padded = F.pad(utterance.T, (before, count * self.step + self.kernel - 1 - before - len(utterance)))
            blocks.append(padded.unfold(1, self.block, self.step).transpose(0, 1))
        if len(blocks) == 1:
            return blocks[0], slice(layout.total)
        return torch.cat(blocks), layout.row_indices((counts.cumsum(0) - counts) * self.step)

    def _cut_on_device(self, frames: Tensor, layout: FrameLayout) -> tuple[Tensor, slice | Tensor]:
        """Do the same at once, without the lengths on the host: each utterance gets a block more, which is dropped."""
        counts = (layout.seqlens + self.step - 1) // self.step + 1
        rows = layout.row_indices((counts.cumsum(0) - counts) * self.step)
        blocks = layout.total // self.step + 2 * len(layout)  # at least the sum of the counts
        spread = frames.new_zeros((blocks - 1) * self.step + self.block, frames.shape[1])
        spread.index_copy_(0, rows + self.kernel // 2, frames)
        return spread.unfold(0, self.block, self.step), rows
