"""A machine's cores under simpy, shared by the workers on it."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

Event = Any
"""Event of simpy, which has no type annotations and is imported where it is used."""


class Machine:
    """While there are enough cores, each worker computes as fast as alone; beyond that, all slow down equally.

    Args:
        env: simpy's environment.
        cores: cores of the machine; None: always enough.
    """

    def __init__(self, env: Any, cores: int | None):
        self._env, self._cores = env, cores
        self._wanted = 0
        """Number of cores that would be busy if there were enough."""
        self._changed: Event = env.event()

    def compute(self, seconds: float, threads: int, death: Event) -> Generator[Event, Any, None]:
        """Do a computation that takes ``seconds`` alone on ``threads`` cores; stop early if the worker dies."""
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
        changed.succeed()  # other computations continue at another rate
