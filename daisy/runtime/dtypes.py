"""Name the types to compute in, as strings or torch's dtypes, and check devices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from daisy.errors import UsageError, unknown_name

Precision = Literal["float32", "bfloat16", "int8"]
"""float32; bfloat16: weights and states, sums still in float32; int8: linear maps of the layers, on CPUs only."""

STATE_DTYPES: dict[Precision, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "int8": torch.float32,
}
"""Type of the output states for each precision."""


def parse_dtype(dtype: str | torch.dtype, device: torch.device | str = "cpu") -> Precision:
    """Return the precision that a dtype names.

    Args:
        dtype: "float32", "bfloat16", "int8", or torch's dtype of that name.
        device: device of the weights.

    Raises:
        UsageError: where the dtype is none of these, or not for this device.
    """
    name = str(dtype).removeprefix("torch.")
    known = get_args(Precision)
    if name not in known:
        raise UsageError(unknown_name("dtype", name, known))
    if name == "int8" and torch.device(device).type != "cpu":
        raise UsageError(f"dtype int8 is for CPUs, and the weights are on {device}")
    return next(precision for precision in known if precision == name)


def check_device(device: str | torch.device) -> torch.device:
    """Check that a device exists and works.

    Args:
        device: "cpu", "cuda", "cuda:1" and so on, or torch's device.

    Returns:
        The device.

    Raises:
        UsageError: where it does not; with the reason.
    """
    if str(device).partition(":")[0] not in ("cpu", "cuda"):
        raise UsageError(f"device {device}: cpu, cuda, cuda:1 and so on are what there is")
    try:
        return torch.zeros(1, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"device {device}: {str(error).splitlines()[0]}") from None


def to_floating(precision: Precision) -> Precision:
    """Return the precision of the parts that int8 does not change."""
    return "float32" if precision == "int8" else precision


def cast_precision(fn: Callable[[Tensor], Tensor]) -> Precision | None:
    """Tell what a function that ``nn.Module`` applies to its weights (``bfloat16()``, ``to(...)``) casts to.

    Returns:
        The precision; None if the function only moves weights.

    Raises:
        UsageError: where it casts to a type that daisy does not compute in, such as float16.
    """
    for probe in (torch.empty(0), torch.empty(0, dtype=torch.bfloat16)):
        if (dtype := fn(probe).dtype) != probe.dtype:
            return parse_dtype(dtype)
    return None


def without_cast(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Move as ``fn`` does, but keep the type: weights are packed in another type from their full precision."""

    def move(tensor: Tensor) -> Tensor:
        moved = fn(tensor)
        return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

    return move
