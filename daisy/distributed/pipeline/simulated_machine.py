"""A machine's cores under simpy, which the workers on it share."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

Event = Any
"""Of simpy, which has no types and is imported where it is used."""


class Machine:
    """As long as there are enough cores each worker computes as fast as alone; then all slow down alike.

    Args:
        env: of simpy.
        cores: of the machine; None: there are always enough.
    """

    def __init__(self, env: Any, cores: int | None):
        self._env, self._cores = env, cores
        self._wanted = 0
        """Cores that would be busy, were there enough."""
        self._changed: Event = env.event()

    def compute(self, seconds: float, threads: int, death: Event) -> Generator[Event, Any, None]:
        """Compute what takes so many seconds alone, on so many cores, until the worker's death at most."""
        if self._cores is None:
            yield self._env.timeout(seconds)
            return
        rest = seconds
        self._want(threads)
        while rest > 1e-9 and not death.triggered:
            begun, rate = self._env.now, min(1.0, self._cores / self._wanted)
            yield self._changed | death | self._env.timeout(rest / rate)
            rest -= (self._env.now - begun) * rate
        self._want(-threads)

    def _want(self, cores: int) -> None:
        self._wanted += cores
        changed, self._changed = self._changed, self._env.event()
        changed.succeed()  # whoever computes goes on at another rate
