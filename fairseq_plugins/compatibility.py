"""What fairseq 0.12.2 needs with today's numpy. Applied on import."""

import numpy


def restore_numpy_int() -> None:
    """Bring back ``np.int``, gone from numpy 1.24, for fairseq's ``compute_mask_indices`` under ``no_mask_overlap``."""
    if "int" not in vars(numpy):
        numpy.int = int  # type: ignore[attr-defined]


restore_numpy_int()
