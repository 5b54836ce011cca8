"""Read and set whether float32 products and convolutions may use TF32, in either of torch's two ways.

Since torch 2.9 there is ``fp32_precision`` besides ``allow_tf32``; if the former was set, reading the latter fails.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import torch

_SETTING = threading.RLock()


def products_may_use_tf32() -> bool:
    """Tell whether float32 products may use TF32 on CUDA devices."""
    try:
        return bool(torch.backends.cuda.matmul.allow_tf32)
    except RuntimeError:
        return str(torch.backends.cuda.matmul.fp32_precision) == "tf32"


def convolutions_may_use_tf32() -> bool:
    """Tell whether float32 convolutions may use TF32 on CUDA devices."""
    try:
        return bool(torch.backends.cudnn.allow_tf32)
    except RuntimeError:
        return str(torch.backends.cudnn.conv.fp32_precision) == "tf32"  # type: ignore[attr-defined]


@contextlib.contextmanager
def allow_tf32_as_convolutions(dtype: torch.dtype) -> Iterator[None]:
    """Let products use TF32 if convolutions may: torch's defaults differ, and these products replace convolutions.

    The setting is global: products of other threads see it meanwhile. Only one thread at a time changes it; the others
    wait, because they would otherwise read a setting that is about to be restored.

    Args:
        dtype: dtype of the products; only float32 is affected.
    """
    if dtype == torch.float32:
        with hold_tf32():
            wanted = convolutions_may_use_tf32()
            if products_may_use_tf32() != wanted:
                with _set_products(wanted):
                    yield
                return
    yield


@contextlib.contextmanager
def hold_tf32() -> Iterator[None]:
    """Keep other threads from changing whether products may use TF32; wait for a thread that has changed it."""
    with _SETTING:
        yield


@contextlib.contextmanager
def _set_products(may_use_tf32: bool) -> Iterator[None]:
    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError:
        precision = torch.backends.cuda.matmul.fp32_precision
        torch.backends.cuda.matmul.fp32_precision = "tf32" if may_use_tf32 else "ieee"
        try:
            yield
        finally:
            torch.backends.cuda.matmul.fp32_precision = precision
        return
    torch.set_float32_matmul_precision("high" if may_use_tf32 else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
