"""Types that several modules here share."""

import numpy
from numpy.typing import NDArray

Floats = NDArray[numpy.float64]
