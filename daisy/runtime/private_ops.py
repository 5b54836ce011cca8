"""Find and test torch's private operators once each, and do without those that are missing or have changed.

They are faster than torch's public functions, and any release may remove them.
"""

from __future__ import annotations

import functools
import platform
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F


def _is_right(
    compute: Callable[[Tensor, Tensor, Tensor], Tensor],
    dtype: torch.dtype,
    tolerance: float,
    then: Callable[[Tensor], Tensor] = lambda y: y,
) -> bool:
    """Whether ``compute(x, weight, bias)`` exists and gives the expected linear map, followed by ``then``."""
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(*size, generator=generator) for size in ((24, 32), (16, 32), (16,)))
    try:
        with torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            y = compute(x.to(dtype), weight.to(dtype), bias.to(dtype)).float()
    except (RuntimeError, AttributeError, TypeError, NotImplementedError):
        return False
    expected = then(F.linear(x, weight, bias))
    return y.shape == expected.shape and bool((y - expected).abs().max() < tolerance * expected.abs().max())


@cache
def has_onednn_linear(dtype: torch.dtype) -> bool:
    """Tell whether oneDNN's fused product works here; bfloat16 needs a CPU that multiplies it."""
    if not torch.backends.mkldnn.is_available():
        return False
    residual = torch.linspace(-3, 3, 24 * 16).view(24, 16)

    def multiply(x: Tensor, weight: Tensor, bias: Tensor, name: str, variant: str) -> Tensor:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight)
        y: Tensor = torch.ops.mkldnn._linear_pointwise.default(x, packed, bias, name, [], variant)
        return y

    def add(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight)
        y: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, residual.to(dtype), packed, bias, "add")
        return y

    try:
        if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return False
    except (RuntimeError, AttributeError):
        return False
    tolerance = 1e-5 if dtype == torch.float32 else 0.03
    return (
        _is_right(functools.partial(multiply, name="none", variant=""), dtype, tolerance)
        and _is_right(functools.partial(multiply, name="gelu", variant="none"), dtype, tolerance, F.gelu)
        and _is_right(add, dtype, tolerance, lambda y: y + residual)
    )


@cache
def has_mkl_linear() -> bool:
    """Tell whether torch's packed MKL products exist, on an Intel CPU with AVX-512, for which MKL has fast code."""
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available() and _is_intel_with_avx512()):
        return False

    def compute(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        packed = torch.ops.mkl._mkl_reorder_linear_weight(weight, 8)
        y: Tensor = torch.ops.mkl._mkl_linear(x, packed, weight, bias, len(x))
        return y

    return _is_right(compute, torch.float32, 1e-5)


def _is_intel_with_avx512() -> bool:
    try:
        if not torch.cpu._is_avx512_supported():
            return False
    except AttributeError:
        return False
    try:
        return "GenuineIntel" in Path("/proc/cpuinfo").read_text()
    except OSError:  # not Linux
        return "GenuineIntel" in platform.processor()


@cache
def has_int8_linear() -> bool:
    """Tell whether torch's dynamically quantised products exist."""

    def compute(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        scales = weight.abs().amax(1).double() / 127
        quantised = torch.quantize_per_channel(weight, scales, torch.zeros(len(weight)).long(), 0, torch.qint8)
        packed = torch.ops.quantized.linear_prepack(quantised, bias)
        y: Tensor = torch.ops.quantized.linear_dynamic(x, packed, reduce_range=True)
        return y

    return _is_right(compute, torch.float32, 0.05)


def supports_vnni() -> bool:
    """Tell whether sums of 8-bit products cannot overflow on this CPU; False if torch does not say."""
    try:
        return bool(torch.cpu._is_vnni_supported())
    except AttributeError:
        return False


@cache
def has_varlen_attention(device: torch.device, dtype: torch.dtype, head_width: int) -> bool:
    """Tell whether a device has one attention kernel for many lengths that needs no lengths on the host."""
    if device.type != "cuda" or torch.version.hip is not None or head_width % 8:
        return False
    if dtype != torch.float32 and (head_width > 256 or torch.cuda.get_device_capability(device) < (8, 0)):
        return False
    lengths = [3, 5]
    generator = torch.Generator().manual_seed(0)
    queries, keys, values = torch.randn(3, sum(lengths), 2, head_width, generator=generator).to(device, dtype)
    cu_seqlens = torch.tensor([0, 3, 8], dtype=torch.int32, device=device)
    try:
        with torch.inference_mode():
            mixed = varlen_attention(queries, keys, values, cu_seqlens, max(lengths))
    except (RuntimeError, AttributeError, TypeError, NotImplementedError):
        return False
    parts = (part.float().transpose(0, 1).split(lengths, dim=1) for part in (queries, keys, values))
    expected = torch.cat(
        [F.scaled_dot_product_attention(q, k, v, scale=1.0) for q, k, v in zip(*parts, strict=True)], 1
    )
    error = (mixed.float() - expected.transpose(0, 1)).abs().max()
    return bool(error < (1e-2 if dtype == torch.float32 else 0.05))  # float32 may use TF32


def varlen_attention(queries: Tensor, keys: Tensor, values: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
    """Attend within each utterance, in one kernel; queries are already scaled.

    These operators are the ones behind torch's own attention (aten/src/ATen/native/transformers/attention.h); they are
    called directly because the public form for many lengths (jagged tensors) costs the host as much as a whole layer.

    Args:
        queries: (F, H, D / H), like ``keys`` and ``values``.
        keys: likewise.
        values: likewise.
        cu_seqlens: (B + 1,) int32, the first frame of each utterance, and F.
        max_seqlen: at least the number of frames of the longest utterance.

    Returns:
        (F, H, D / H).
    """
    if queries.dtype == torch.float32:
        mixed: Tensor = torch.ops.aten._efficient_attention_forward(
            queries[None], keys[None], values[None], None, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen, 0.0, 0,
            scale=1.0,
        )[0][0]  # fmt: skip
        return mixed
    mixed = torch.ops.aten._flash_attention_forward(
        queries, keys, values, cu_seqlens, cu_seqlens, max_seqlen, max_seqlen, 0.0, False, False, scale=1.0
    )[0]
    return mixed
