"""Static cuts: what leaving at layers that look at no recording comes to."""

from __future__ import annotations

import numpy
from numpy.typing import NDArray


def mix_best(static: NDArray[numpy.float64], depth: float) -> float:
    """Return the least mean loss that random exits can have at a mean depth (in layers), of losses by layer (L,)."""
    layers = numpy.arange(1, len(static) + 1)
    pairs = [
        static[i] + (static[j] - static[i]) * (depth - layers[i]) / (layers[j] - layers[i])
        for i in range(len(static))
        for j in range(i + 1, len(static))
        if layers[i] <= depth <= layers[j]
    ]
    return float(min(pairs))
