"""Types that several modules of this package share."""

import numpy
from numpy.typing import NDArray

Floats = NDArray[numpy.float64]
