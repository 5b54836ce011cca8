"""What moves between workers: tasks, answers, and what workers say of themselves."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Task:
    """An utterance on its way through the stages."""

    number: int
    """Of the admitted task; an attempt to do it again has the same."""
    stage: int = 0
    """Which is to be computed next, from 0."""
    work: float = 1.0
    """Its size, in seconds of audio, say: service times are of a unit of it."""
    num_bytes: int = 0
    """What it takes on a link as it is now."""
    level: int = 0
    """Of the exit policy that it may leave by; see `daisy.distributed.pipeline.rules.RUN_ALL`."""
    priority: int = 0
    """Higher ones go first."""
    attempt: int = 1
    """How often it was begun."""
    hops: int = 0
    """How many links this attempt has crossed."""
    payload: Any = None
    """Waveform or states; rules do not look at it."""

    def replace(self, **changes: Any) -> Task:
        """Return the same task but for some fields."""
        return dataclasses.replace(self, **changes)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What came of a task."""

    number: int
    attempt: int
    exit_layer: int
    worker: str
    """Who computed the last layer."""
    num_bytes: int = 0
    """Of the answer."""
    payload: Any = None


@dataclass(frozen=True, kw_only=True)
class Status:
    """What a worker says of itself to its neighbours and to the source."""

    worker: str
    incarnation: int
    """Which start of this worker it is, from 1."""
    queued: int
    """Tasks in its input queue, the one in work included."""
    backlog_sec: float
    """What these will take, by measured service times."""
    waiting: int
    """Tasks in both queues."""
    service_sec: Mapping[int, float] = field(default_factory=dict)
    """Measured seconds for a unit of work, by stage."""
    received: Mapping[str, int] = field(default_factory=dict)
    """Tasks that have come from each neighbour: what it sent besides is still on its way."""
