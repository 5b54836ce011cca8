"""Matrix products with weights laid out once, and convolutions that are such products.

On a CPU the products are oneDNN's, with the activation or the residual sum in the same pass, or MKL's, where these save
more than a pass for activation or sum costs; elsewhere torch's own. Nothing here takes gradients.
"""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from daisy.layout import Layout

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.float32}
"""What can be computed in, and the type of the states."""


FEW_ROWS = 1024
"""Up to which CUDA's float32 product with a bias in it takes longer than the product and the bias one after the other:
by half at 3072 inputs, 768 outputs and 512 rows (H200, CUDA 13)."""

MKL_FROM = 384
"""Inputs and outputs from which MKL's float32 products, with the passes that follow, take less time than oneDNN's: 5 to
20 % less at 384 and 768; at 256 it goes both ways (a Xeon with AMX, 150 and 499 rows, one thread)."""
PACKED_FOR = 512
"""Rows that MKL is told to lay weights out for; the layout serves any number, by test."""


class Linear:
    """``x @ weight.T + bias`` for any number of rows.

    Args:
        weight: (M, D).
        bias: (M,), or None.
        dtype: of `DTYPES`. "int8": weights rounded to 8 bits once, with a scale for each row, inputs at each call, with
            one scale (torch's dynamic quantisation); on CPUs only.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: str = "float32"):
        self.kind = dtype
        weight = weight.detach().to(DTYPES[dtype]).contiguous()
        self.bias = None if bias is None else bias.detach().to(DTYPES[dtype])
        if weight.device.type != "cpu":
            self.kind = "torch"
        elif dtype == "int8":
            scales = weight.abs().amax(1).clamp(min=1e-12) / 127
            quantised = torch.quantize_per_channel(
                weight, scales.double(), torch.zeros(len(weight)).long(), 0, torch.qint8
            )
            self.weight = torch.ops.quantized.linear_prepack(quantised, self.bias)
            # Without VNNI, sums of products of 8 and 8 bits would overflow.
            self.reduce_range = not torch.cpu._is_vnni_supported()
            return
        elif dtype == "float32" and min(weight.shape) >= MKL_FROM and _mkl_leads():
            self.kind = "mkl"
            self.unread = weight.new_full((1,), torch.nan).expand(weight.shape)  # in place of the weights as they were
            weight = torch.ops.mkl._mkl_reorder_linear_weight(weight, PACKED_FOR)
        elif torch.backends.mkldnn.is_available() and (dtype == "float32" or _multiplies_bfloat16()):
            weight = torch.ops.mkldnn._reorder_linear_weight(weight)
        else:
            self.kind = "torch"
        self.weight = weight

    def rows(self, count: int) -> int:
        """How many rows x should have where ``count`` are wanted, for `with_room`."""
        # In int8 all rows share a scale, which others would change; torch's and MKL's products compile nothing.
        return count if self.kind in ("torch", "int8", "mkl") else rounded(count)

    def __call__(self, x: Tensor, *, gelu: bool = False, plus: Tensor | None = None) -> Tensor:
        """(N, D) to (N, M), then GELU, or the sum with ``plus`` (N, M)."""
        if self.kind == "torch":
            if self.bias is not None and len(x) <= FEW_ROWS and x.dtype == torch.float32 and not gelu:
                y = x @ self.weight.T if plus is None else torch.addmm(plus, x, self.weight.T)
                return y.add_(self.bias)
            y = F.linear(x, self.weight, self.bias)
        elif self.kind == "mkl":
            y = torch.ops.mkl._mkl_linear(x, self.weight, self.unread, self.bias, len(x))
        elif self.kind == "int8":
            y = torch.ops.quantized.linear_dynamic(x, self.weight, reduce_range=self.reduce_range)
        elif plus is not None:
            # The overload by name: to find it, torch.ops would print x into an error message that nobody sees.
            return torch.ops.mkldnn._linear_pointwise.binary(x, plus, self.weight, self.bias, "add")
        else:
            name, variant = ("gelu", "none") if gelu else ("none", "")
            return torch.ops.mkldnn._linear_pointwise.default(x, self.weight, self.bias, name, [], variant)
        if plus is not None:
            return y.add_(plus)
        return torch.ops.aten.gelu_(y) if gelu else y


def _multiplies_bfloat16() -> bool:
    """Whether oneDNN does on this CPU; torch's own products do everywhere."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


@cache
def _mkl_leads() -> bool:
    """Whether torch's packed MKL products are here, and MKL's fast code for this CPU, as for Intel's own."""
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):
        return False
    if not torch.cpu._is_avx512_supported():
        return False
    try:
        return "GenuineIntel" in Path("/proc/cpuinfo").read_text()
    except OSError:  # not Linux
        return "GenuineIntel" in platform.processor()


def rounded(count: int) -> int:
    """Up to the next of eight sizes an octave, sixteen from 256 on: 100 to 104, 1000 to 1024.

    oneDNN compiles code for each shape it meets and keeps that of a thousand. Recordings of many lengths meet more,
    and then it compiles again and again (docs/speed.md has what that costs).
    """
    step = (1 << max(0, count.bit_length() - 4)) // (2 if count >= 256 else 1)
    return -(-count // step) * step


def with_room(x: Tensor, rows: int) -> Tensor:
    """(N, D) to (``rows``, D), with rows that mean nothing after x: what follows in its memory, or zeros.

    To be read only: the rows may be another's.
    """
    if rows == len(x):
        return x
    end = x.storage_offset() + rows * x.shape[1]
    if x.is_contiguous() and x.untyped_storage().nbytes() >= end * x.element_size():
        return x.as_strided((rows, x.shape[1]), (x.shape[1], 1))
    return F.pad(x, (0, 0, 0, rows - len(x)))


class Conv:
    """A convolution over time without padding, as a matrix product over windows of frames.

    Args:
        weight: (M, C, kernel).
        bias: (M,), or None.
        stride: between windows.
        dtype: of `Linear`.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, stride: int, dtype: str = "float32"):
        self.kernel, self.stride = weight.shape[2], stride
        self.linear = Linear(weight.transpose(1, 2).flatten(1), bias, dtype)

    def __call__(self, x: Tensor, *, gelu: bool = False) -> Tensor:
        """(T, C) to ((T - kernel) // stride + 1, M)."""
        return self.linear(under_kernel(x, self.kernel, self.stride), gelu=gelu)


def under_kernel(x: Tensor, kernel: int, stride: int) -> Tensor:
    """(T, C) to ((T - kernel) // stride + 1, kernel C): what a convolution's outputs see, frame after frame."""
    length, channels = x.shape
    count = (length - kernel) // stride + 1
    return x.contiguous().as_strided((count, kernel * channels), (stride * channels, 1)).contiguous()


class FourierConv:
    """A grouped convolution with a long kernel and stride 1, by Fourier transforms of overlapping blocks.

    Computes in float32. The multiplications are a few percent of the direct form's; the result is the same but for
    rounding (overlap-save; e.g. Oppenheim and Schafer, Discrete-Time Signal Processing, 8.7.3).

    Args:
        weight: (D, D / groups, kernel).
        bias: (D,), or None.
        groups: of channels.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, groups: int):
        width, each, self.kernel = weight.shape
        self.groups, self.bias = groups, None if bias is None else bias.detach().float()
        self.block = 2 ** (2 * self.kernel - 1).bit_length()
        self.step = self.block - self.kernel + 1
        """New frames of a block."""
        spectrum = torch.fft.rfft(weight.detach().float().flip(-1), self.block)  # a convolution, not a correlation
        self.spectrum = spectrum.view(groups, width // groups, each, -1).permute(3, 0, 2, 1).contiguous()

    def __call__(self, frames: Tensor, layout: Layout) -> Tensor:
        """(F, D) to (F, D): each utterance with ``kernel // 2`` frames of zeros around it."""
        cut = self._one_by_one if frames.device.type == "cpu" else self._together
        blocks, rows = cut(frames.float(), layout)
        spectrum = torch.fft.rfft(blocks, self.block).unflatten(1, (self.groups, -1))  # (blocks, G, D / G, bins)
        spectrum = spectrum.permute(3, 1, 0, 2) @ self.spectrum
        found = torch.fft.irfft(spectrum.permute(2, 1, 3, 0), self.block).flatten(1, 2)[..., self.kernel - 1 :]
        result = found.transpose(1, 2).flatten(0, 1)[rows]
        return result if self.bias is None else result.add_(self.bias)

    def _one_by_one(self, frames: Tensor, layout: Layout) -> tuple[Tensor, slice | Tensor]:
        """(F, D) to blocks of single utterances (blocks, D, block), and the rows of their outputs that are frames'."""
        before, blocks = self.kernel // 2, []
        counts = (layout.num_frames + self.step - 1) // self.step
        for own, count in zip(frames.split(layout.lengths), counts.tolist(), strict=True):
            # Output t of the overlap-save block needs inputs t - before to t - before + kernel - 1.
            padded = F.pad(own.T, (before, count * self.step + self.kernel - 1 - before - len(own)))
            blocks.append(padded.unfold(1, self.block, self.step).transpose(0, 1))
        if len(blocks) == 1:
            return blocks[0], slice(layout.total)
        return torch.cat(blocks), layout.placed((counts.cumsum(0) - counts) * self.step)

    def _together(self, frames: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
        """Likewise, in one go and without a look at the lengths: with a block more an utterance, which is dropped."""
        counts = (layout.counts + self.step - 1) // self.step + 1
        rows = layout.placed((counts.cumsum(0) - counts) * self.step)
        blocks = layout.total // self.step + 2 * len(layout)  # at least the sum of the counts
        spread = frames.new_zeros((blocks - 1) * self.step + self.block, frames.shape[1])
        spread.index_copy_(0, rows + self.kernel // 2, frames)
        return spread.unfold(0, self.block, self.step), rows
