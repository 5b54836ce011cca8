"""What fairseq 0.12.2 needs on CPUs and with today's numpy. Applied on import."""

from __future__ import annotations

import os

import numpy
import torch
from fairseq.distributed import utils as distributed_utils


def allow_gather_without_gpu() -> None:
    """Let ``all_gather_list`` work between CPU processes: fairseq would allocate its buffer with CUDA.

    The size is that of ``common.all_gather_list_size``, fairseq's default.
    """
    if torch.cuda.is_available():
        return
    size, world_size = 16384, int(os.environ.get("WORLD_SIZE", "1"))
    gather = distributed_utils.all_gather_list
    gather._buffer = torch.ByteTensor(size * world_size)
    gather._cpu_buffer = torch.ByteTensor(size)


def restore_numpy_int() -> None:
    """Bring back ``np.int``, gone from numpy 1.24, for fairseq's ``compute_mask_indices`` under ``no_mask_overlap``."""
    if "int" not in vars(numpy):
        numpy.int = int  # type: ignore[attr-defined]


allow_gather_without_gpu()
restore_numpy_int()
