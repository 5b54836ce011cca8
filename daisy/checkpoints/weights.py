"""Load tensors into a model: each must match a weight and each weight a tensor, with values that training can leave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from daisy.checkpoints.model import Model
from daisy.errors import CheckpointError

NOT_FINITE = "not finite"
MAX_WEIGHT = 1e10
"""No training leaves larger weights (the maximum of bfloat16 and float32 is 3e38), but a flipped exponent bit does."""
VARIANCES = ("variance", "running_var")
"""Endings of the names of variances, whose square root is compared with `MAX_WEIGHT`."""


def load_weights(model: Model, tensors: dict[str, Tensor]) -> None:
    """Load ``{"backbone.…": tensor, …}`` into a model; each tensor must match a weight, and each weight a tensor.

    Args:
        model: model to change in place.
        tensors: tensors by the names of ``model.state_dict()``.

    Raises:
        CheckpointError: naming weights that are missing, left over, of another shape, or not a number.
    """
    check_weights(model, tensors)
    model.load_state_dict(tensors)
    model.eval()


def check_weights(model: Model, tensors: Mapping[str, Tensor]) -> None:
    """Check that tensors are a model's weights; the model's own may be on the meta device.

    Raises:
        CheckpointError: as in `load_weights`.
    """
    places = model.state_dict()
    problems = []
    if missing := sorted(set(places) - set(tensors)):
        problems.append(f"missing {list_some(missing)}")
    if extra := sorted(set(tensors) - set(places)):
        problems.append(f"not part of this model {list_some(extra)}")
    problems += [
        f"{key} is {tuple(tensors[key].shape)} where the configuration says {tuple(place.shape)}"
        for key, place in places.items()
        if key in tensors and tensors[key].shape != place.shape
    ]
    if problems:
        raise CheckpointError("weights and configuration do not match: " + "; ".join(problems[:4]))
    if damaged := {key: fault for key, tensor in tensors.items() if (fault := find_fault(key, tensor))}:
        faults = " and ".join(dict.fromkeys(damaged.values()))
        raise CheckpointError(f"weights that are {faults}: {list_some(list(damaged))}; get the file again")


def cast_weights(module: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    """Convert a module's weights to a file's data type, on the CPU; buffers, such as counts, stay float32.

    Raises:
        CheckpointError: where a weight is not finite, or becomes so in that type.
    """
    weights = {key for key, _ in module.named_parameters()}
    tensors = {
        key: value.detach().to("cpu", dtype if key in weights else torch.float32).contiguous()
        for key, value in module.state_dict().items()
    }
    refuse_infinite(tensors, dtype)
    return tensors


def refuse_infinite(tensors: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    """Refuse weights that a cast has made infinite, or that already were.

    Raises:
        CheckpointError: naming them.
    """
    if lost := [key for key, tensor in tensors.items() if find_fault(key, tensor) == NOT_FINITE]:
        if dtype == torch.float32:
            raise CheckpointError(f"weights that are {NOT_FINITE}: {list_some(lost)}")
        raise CheckpointError(f"{list_some(lost)} would not be finite in {dtype}", remedy="full_precision")


def find_fault(name: str, tensor: Tensor) -> str | None:
    """Say why a trained network cannot have this weight. Finding the extremes takes a fortieth of isfinite's time."""
    if not tensor.numel():
        return None
    low, high = torch.aminmax(tensor.detach())
    if not (low.isfinite() and high.isfinite()):
        return NOT_FINITE
    limit = MAX_WEIGHT**2 if name.endswith(VARIANCES) else MAX_WEIGHT
    if max(-float(low), float(high)) > limit:
        return f"beyond {limit:g}"
    return "variances below 0" if name.endswith("running_var") and bool(low < 0) else None


def list_some(names: Sequence[str], limit: int = 3) -> str:
    """List names in a line; after ``limit`` of them, only say how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
