"""Run what may not fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")


def run_if_it_fits(run: Callable[[Sequence[Tensor]], Result], waveforms: Sequence[Tensor]) -> Result | None:
    """Run a function on waveforms; None if memory, a GPU's or the machine's, is too small.

    Args:
        run: function to call.
        waveforms: (N_b,) each.
    """
    try:
        return run(waveforms)
    except torch.OutOfMemoryError:
        return None
    except RuntimeError as error:
        if "DefaultCPUAllocator: " in str(error):  # torch has no class for it
            return None
        raise
