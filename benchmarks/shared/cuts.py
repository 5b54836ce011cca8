"""Static cuts: losses of exits that do not depend on the recording."""

from __future__ import annotations

from collections.abc import Sequence

import numpy
from numpy.typing import NDArray


def mix_best(static: NDArray[numpy.float64], depth: float, layers: Sequence[int] | None = None) -> float:
    """Return the least mean loss of random exits at a mean depth.

    Args:
        static: (E,) mean loss at each exit.
        depth: mean depth in layers.
        layers: layers of the exits, rising; if None, every layer has one.
    """
    if layers is None:
        layers = range(1, len(static) + 1)
    depth = min(max(depth, layers[0]), layers[-1])  # rounding of sums may exceed the ends
    pairs = [
        static[i] + (static[j] - static[i]) * (depth - layers[i]) / (layers[j] - layers[i])
        for i in range(len(static))
        for j in range(i + 1, len(static))
        if layers[i] <= depth <= layers[j]
    ]
    return float(min(pairs))
