"""Speed and depth of an extraction while it runs."""

from __future__ import annotations

import time
from collections.abc import Callable

from daisy.extraction.journal import Row


class Throughput:
    """Counts finished recordings.

    Args:
        clock: function that returns the time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._start = clock()
        self.audio_sec = 0.0
        self.num_recordings = 0
        self._layers = 0.0

    def add(self, row: Row) -> None:
        """Count a recording that was just finished."""
        self.audio_sec += row.duration_sec
        self.num_recordings += 1
        self._layers += row.mean_exit_layer

    @property
    def audio_hours_an_hour(self) -> float:
        """Audio hours per hour since this object was created."""
        return self.audio_sec / max(self._clock() - self._start, 1e-9)

    @property
    def mean_exit_layer(self) -> float | None:
        """Mean exit layer of the counted recordings; None before the first."""
        return self._layers / self.num_recordings if self.num_recordings else None

    def describe(self) -> str:
        """Return the line "1,234 audio hours an hour, mean exit layer 6.52"; empty before the first recording."""
        if not self.num_recordings:
            return ""
        rate = self.audio_hours_an_hour
        return f"{rate:,.{0 if rate >= 100 else 1}f} audio hours an hour, mean exit layer {self.mean_exit_layer:.2f}"
