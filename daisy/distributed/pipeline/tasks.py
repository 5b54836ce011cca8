"""Messages between workers: tasks, answers, and workers' status."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Task:
    """An utterance on its way through the stages."""

    number: int
    """Number of the admitted task; repeated attempts have the same."""
    stage: int = 0
    """Stage to compute next, counted from 0."""
    work: float = 1.0
    """Size of the task, for example in seconds of audio; service times are per unit of it."""
    num_bytes: int = 0
    """Bytes on a link, in the task's current form."""
    level: int = 0
    """Level of the exit policy by which the task may exit; see `daisy.distributed.pipeline.rules.RUN_ALL`."""
    priority: int = 0
    """Tasks with a higher priority go first."""
    attempt: int = 1
    """Number of this attempt, from 1."""
    hops: int = 0
    """Links that this attempt has crossed."""
    payload: Any = None
    """Waveform or states; the rules do not read it."""

    def replace(self, **changes: Any) -> Task:
        """Return a copy with some fields changed."""
        return dataclasses.replace(self, **changes)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The result of a task."""

    number: int
    attempt: int
    exit_layer: int
    worker: str
    """Worker that computed the last layer."""
    num_bytes: int = 0
    """Bytes of the answer."""
    payload: Any = None


@dataclass(frozen=True, kw_only=True)
class Status:
    """The status that a worker sends to its neighbours and to the source."""

    worker: str
    incarnation: int
    """Number of this start of the worker, from 1."""
    queued: int
    """Tasks in the input queue, including the one in progress."""
    backlog_sec: float
    """Seconds that these tasks will take, by measured service times."""
    waiting: int
    """Tasks in both queues."""
    service_sec: Mapping[int, float] = field(default_factory=dict)
    """Measured seconds per unit of work, by stage."""
    received: Mapping[str, int] = field(default_factory=dict)
    """Tasks received from each neighbour; any further tasks that it sent are still on their way."""
