"""The rules of model-distributed inference as settings, each constant with its source.

The design follows MDI-Exit (arXiv:2408.05247) as far as we could read it: workers hold consecutive layers, have an
input and an output queue, let a task exit by a threshold, and use queue lengths, service times and transfer delays to
decide which worker computes a task; either the arrival rate or the threshold adapts. We could not read its algorithms
and constants: the rules here are our reading of that description, and every number is ours.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal, get_args

from daisy.errors import UsageError, unknown_name

Offloading = Literal["queues", "random", "routed"]
"""How to choose the worker for the next stage; see `daisy.distributed.pipeline.offloading`."""
Admission = Literal["fixed", "rate", "threshold"]
"""What adapts at the source: nothing, the arrival rate at a fixed exit level, or the exit level at a fixed rate."""
RUN_ALL = -1
"""The exit level at which no task leaves before the last layer."""
COUNTS = ("output_limit", "neighbour_limit", "low_mark", "high_mark", "adapt_every")
SECONDS = ("status_sec", "dead_after_sec", "restart_after_sec")
FACTORS = ("speed_up", "slow_down", "memory")


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Rules of a system. All numbers are ours."""

    offloading: Offloading = "queues"
    admission: Admission = "fixed"
    exits: bool = True
    """Whether tasks may leave before the last layer."""
    output_limit: int = 4
    """A worker that also holds the next stage keeps a task if its output queue is longer than this."""
    neighbour_limit: int = 4
    """No task is sent to a neighbour with this many tasks waiting or on their way. Tasks then wait where a choice is
    still open, and congestion reaches the source, whose admission reads its own queues."""
    low_mark: int = 4
    """Admission: with fewer tasks queued at the source the rate rises, or exits become later."""
    high_mark: int = 8
    """Admission: with more tasks queued at the source the rate falls, or exits become earlier."""
    speed_up: float = 1.05
    """Admission: the rate is multiplied by this below the low mark."""
    slow_down: float = 1.05
    """Admission: the rate is divided by this above the high mark. With these marks and factors a bottleneck is busy for
    about 90 % of the time in the simulator."""
    adapt_every: int = 1
    """Admission: number of tasks admitted between two steps. Steps are counted in tasks rather than seconds so that
    they suit both fast and slow systems."""
    memory: float = 0.8
    """Weight of the past in moving averages of service times and transfer delays."""
    status_sec: float = 0.1
    """Seconds between two messages of a worker to its neighbours and to the source."""
    dead_after_sec: float = 1.0
    """Seconds of silence after which a worker counts as dead."""
    restart_after_sec: float = 120.0
    """Seconds without an answer after which a task is begun again, wherever it is; the first answer counts."""
    respawn_sec: float | None = 1.0
    """Seconds between the notice of a worker's death and its restart; None: no restart."""

    def __post_init__(self) -> None:
        for name, values in (("offloading", get_args(Offloading)), ("admission", get_args(Admission))):
            if getattr(self, name) not in values:
                raise UsageError(unknown_name(name, getattr(self, name), values))
        for name in (*COUNTS, *SECONDS, *FACTORS):
            self._check_number(name)
        if self.respawn_sec is not None:
            self._check_number("respawn_sec")
        for name in ("status_sec", "dead_after_sec", "restart_after_sec"):
            if not getattr(self, name) > 0:
                raise UsageError(f"rule {name} must be above 0, found {getattr(self, name)!r}")
        if self.status_sec >= self.dead_after_sec:
            raise UsageError(
                f"rule dead_after_sec {self.dead_after_sec:g} must be above status_sec {self.status_sec:g}: "
                "who waits to speak is not dead"
            )
        if not 0 <= self.memory < 1:
            raise UsageError(f"rule memory must be at least 0 and below 1, found {self.memory!r}")
        if self.speed_up <= 1 or self.slow_down <= 1:
            raise UsageError("rules speed_up and slow_down must be above 1")
        if self.low_mark > self.high_mark:
            raise UsageError(f"rule low_mark {self.low_mark} must not be above high_mark {self.high_mark}")
        for name in ("neighbour_limit", "adapt_every"):
            if getattr(self, name) < 1:
                raise UsageError(f"rule {name} must be at least 1, found {getattr(self, name)!r}")

    def _check_number(self, name: str) -> None:
        value, is_count = getattr(self, name), name in COUNTS
        is_number = isinstance(value, int if is_count else int | float) and not isinstance(value, bool)
        if not is_number or not 0 <= value < float("inf"):
            wanted = "whole number" if is_count else "number"
            raise UsageError(f"rule {name} must be a {wanted}, at least 0, found {value!r}")

    def replace(self, **changes: object) -> Rules:
        """Return a copy with some rules changed.

        Raises:
            UsageError: if a rule does not exist or a value is impossible.
        """
        known = [field.name for field in dataclasses.fields(self)]
        for name in changes:
            if name not in known:
                raise UsageError(unknown_name("rule", name, known))
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]
