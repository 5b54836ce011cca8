"""Bridge differences between fairseq 0.12.2, its fork for Python 3.11, and current numpy."""

import inspect
import os

import numpy
import torch
from fairseq.data.data_utils import compute_mask_indices, numpy_seed
from fairseq.distributed.utils import all_gather_list
from torch import Tensor

GATHERED_BYTES = 16384


def mask_indices(valid: Tensor, mask_prob: float, mask_length: int, seed: int) -> Tensor:
    """Draw the frames to mask among the valid ones, (B, T) bool, as in HuBERT's pre-training, by the seed alone.

    fairseq 0.12.2 draws from numpy's global generator, its fork from a generator that must be passed to it.
    """
    options = {"seed": seed, "epoch": 0, "indices": torch.arange(len(valid))}
    known = inspect.signature(compute_mask_indices).parameters
    padding = None if valid.all() else ~valid.cpu()
    with numpy_seed(seed):
        drawn = compute_mask_indices(
            tuple(valid.shape),
            padding,
            mask_prob,
            mask_length,
            min_masks=2,
            **{name: value for name, value in options.items() if name in known},
        )
    return torch.from_numpy(drawn).to(valid.device) & valid


def restore_numpy_int() -> None:
    """Restore ``np.int``, removed in numpy 1.24, for ``compute_mask_indices`` with ``no_mask_overlap``."""
    if "int" not in vars(numpy):
        numpy.int = int  # type: ignore[attr-defined]


def gather_on_cpu() -> None:
    """Let processes without a GPU gather their logs; fairseq's ``all_gather_list`` would allocate buffers on a GPU.

    The buffers have the size that fairseq would give them. The fork for Python 3.11 starts no CPU processes at all.
    """
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes > 1 and not torch.cuda.is_available():
        all_gather_list._buffer = torch.ByteTensor(GATHERED_BYTES * processes)
        all_gather_list._cpu_buffer = torch.ByteTensor(GATHERED_BYTES)


restore_numpy_int()
gather_on_cpu()
