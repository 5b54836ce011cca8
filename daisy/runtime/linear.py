"""Multiply by weights that are laid out once.

On a CPU the products are oneDNN's, with the activation or the residual sum in the same pass, or MKL's, if these save
more than a separate pass for activation or sum costs; on other devices torch's own. Nothing here takes gradients.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from daisy.errors import UsageError
from daisy.runtime import private_ops
from daisy.runtime.dtypes import STATE_DTYPES, Precision

MAX_ROWS_WITH_SEPARATE_BIAS = 1024
"""Rows up to which CUDA's float32 product with a fused bias takes longer than a product and a separate bias: by half at
3072 inputs, 768 outputs and 512 rows (H200, CUDA 13)."""
MKL_MIN_FEATURES = 384
"""Inputs and outputs from which MKL's float32 products, with the passes that follow, take less time than oneDNN's: 5 to
20 % less at 384 and 768; at 256 results are mixed (a Xeon with AMX, 150 and 499 rows, one thread)."""
MKL_PACKED_ROWS = 512
"""Number of rows that MKL lays weights out for; tests show that the layout serves any number."""


class Linear(ABC):
    """``x @ weight.T + bias`` for any number of rows."""

    def __call__(self, x: Tensor, *, gelu: bool = False, residual: Tensor | None = None) -> Tensor:
        """Multiply a matrix by the weights.

        Args:
            x: (N, D).
            gelu: whether GELU follows.
            residual: (N, M), added to the product instead.

        Returns:
            (N, M).
        """
        count = len(x)
        rows = self.padded_rows(count)
        if rows == count:
            return self.multiply(x, gelu, residual)
        residual = None if residual is None else padded_view(residual, rows)
        return self.multiply(padded_view(x, rows), gelu, residual)[:count]

    def padded_rows(self, count: int) -> int:
        """Return how many rows are multiplied if ``count`` are given; callers that pass this many save a copy."""
        return count

    @abstractmethod
    def multiply(self, x: Tensor, gelu: bool, residual: Tensor | None) -> Tensor:
        """Multiply as `__call__` does, without adding rows: for callers with few different numbers of rows."""


def make_linear(weight: Tensor, bias: Tensor | None, precision: Precision = "float32") -> Linear:
    """Lay out weights for the fastest product available.

    Args:
        weight: (M, D).
        bias: (M,), or None.
        precision: "int8": weights rounded to 8 bits once, with a scale per row, and inputs at each call, with one scale
            (torch's dynamic quantisation); on CPUs only.

    Raises:
        UsageError: on int8, if this torch has no int8 products.
    """
    dtype = STATE_DTYPES[precision]
    weight = weight.detach().to(dtype).contiguous()
    bias = None if bias is None else bias.detach().to(dtype)
    if weight.device.type != "cpu":
        return TorchLinear(weight, bias)
    if precision == "int8":
        return Int8Linear(weight, bias)
    if precision == "float32" and min(weight.shape) >= MKL_MIN_FEATURES and private_ops.has_mkl_linear():
        return MklLinear(weight, bias)
    if private_ops.has_onednn_linear(dtype):
        return OneDnnLinear(weight, bias)
    return TorchLinear(weight, bias)


def pack_linear(module: nn.Linear, precision: Precision) -> Linear:
    """Lay out a module's weights."""
    return make_linear(module.weight, module.bias, precision)


class TorchLinear(Linear):
    """Uses torch's own product."""

    def __init__(self, weight: Tensor, bias: Tensor | None):
        self.weight, self.bias = weight, bias

    def multiply(self, x: Tensor, gelu: bool, residual: Tensor | None) -> Tensor:
        if self.bias is not None and len(x) <= MAX_ROWS_WITH_SEPARATE_BIAS and x.dtype == torch.float32 and not gelu:
            y = x @ self.weight.T if residual is None else torch.addmm(residual, x, self.weight.T)
            return y.add_(self.bias)
        return _finish(F.linear(x, self.weight, self.bias), gelu, residual)


class OneDnnLinear(Linear):
    """Uses oneDNN's product, with activation or sum in the same pass."""

    def __init__(self, weight: Tensor, bias: Tensor | None):
        self.weight, self.bias = torch.ops.mkldnn._reorder_linear_weight(weight), bias

    def padded_rows(self, count: int) -> int:
        """See `Linear.padded_rows`: oneDNN compiles code for each shape."""
        return round_up_rows(count)

    def multiply(self, x: Tensor, gelu: bool, residual: Tensor | None) -> Tensor:
        y: Tensor
        if residual is not None:
            # The overload is named because torch.ops, to find it, would print x into an error message that nobody sees.
            y = torch.ops.mkldnn._linear_pointwise.binary(x, residual, self.weight, self.bias, "add")
        else:
            name, variant = ("gelu", "none") if gelu else ("none", "")
            y = torch.ops.mkldnn._linear_pointwise.default(x, self.weight, self.bias, name, [], variant)
        return y


class MklLinear(Linear):
    """Uses MKL's product."""

    def __init__(self, weight: Tensor, bias: Tensor | None):
        self.unread = weight.new_full((1,), torch.nan).expand(weight.shape)  # stands in for the unpacked weights
        self.weight, self.bias = torch.ops.mkl._mkl_reorder_linear_weight(weight, MKL_PACKED_ROWS), bias

    def multiply(self, x: Tensor, gelu: bool, residual: Tensor | None) -> Tensor:
        return _finish(torch.ops.mkl._mkl_linear(x, self.weight, self.unread, self.bias, len(x)), gelu, residual)


class Int8Linear(Linear):
    """Uses torch's dynamically quantised product. All rows share a scale, so none is added."""

    def __init__(self, weight: Tensor, bias: Tensor | None):
        if not private_ops.has_int8_linear():
            raise UsageError(f"torch {torch.__version__} has no int8 products: compute in float32 or bfloat16")
        scales = weight.abs().amax(1).clamp(min=1e-12) / 127
        quantised = torch.quantize_per_channel(weight, scales.double(), torch.zeros(len(weight)).long(), 0, torch.qint8)
        self.weight = torch.ops.quantized.linear_prepack(quantised, bias)
        self.reduce_range = not private_ops.supports_vnni()

    def multiply(self, x: Tensor, gelu: bool, residual: Tensor | None) -> Tensor:
        y = torch.ops.quantized.linear_dynamic(x, self.weight, reduce_range=self.reduce_range)
        return _finish(y, gelu, residual)


def _finish(y: Tensor, gelu: bool, residual: Tensor | None) -> Tensor:
    """Apply what a product cannot do itself; ``y`` is overwritten."""
    if residual is not None:
        return y.add_(residual)
    return torch.ops.aten.gelu_(y) if gelu else y


def round_up_rows(count: int) -> int:
    """Round up to the next of eight sizes an octave, sixteen from 256 on: 100 to 104, 1000 to 1024.

    oneDNN compiles code for each shape and keeps that of a thousand. Recordings of many lengths have more shapes, and
    it would compile again and again (docs/results/speed.md gives the cost).
    """
    step = (1 << max(0, count.bit_length() - 4)) // (2 if count >= 256 else 1)
    return -(-count // step) * step


def padded_view(x: Tensor, rows: int) -> Tensor:
    """Add rows to be ignored: (N, D) to (``rows``, D), with what follows x in its memory, or zeros.

    The result is read-only: its rows may belong to another tensor.
    """
    if rows == len(x):
        return x
    end = x.storage_offset() + rows * x.shape[1]
    if x.is_contiguous() and x.untyped_storage().nbytes() >= end * x.element_size():
        return x.as_strided((rows, x.shape[1]), (x.shape[1], 1))
    return F.pad(x, (0, 0, 0, rows - len(x)))
