"""Decide which worker computes the next stage of a task.

``queues`` is our reading of MDI-Exit's description. If this worker also holds the task's next stage, the task is sent
to a neighbour only while more tasks wait for sending here than wait there. It is then sent for certain if the wait here
is longer than transfer plus wait there, and otherwise with the ratio of the two as its probability, by a number that
the task drew when it entered the output queue. If this worker does not hold the next stage, the task goes to the
neighbour that would finish it first (ours).

``random`` draws one of the holders of the stage, including this worker. ``routed`` draws by given shares, which
`daisy.distributed.pipeline.joint` chooses. Both keep the drawn worker unless it dies or a transfer to it fails.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A neighbour that holds a task's next stage, as seen from here."""

    name: str
    queued: int
    """Tasks that wait there or are on their way."""
    wait_sec: float
    """Seconds that these tasks will take."""
    transfer_sec: float
    """Seconds until the task would arrive there."""
    service_sec: float
    """Seconds to compute it there."""

    @property
    def done_sec(self) -> float:
        """Seconds until it would be finished there."""
        return self.transfer_sec + self.wait_sec + self.service_sec


def choose_first_done(candidates: Sequence[Candidate], limit: int) -> str | None:
    """Choose the neighbour that would finish a task first, among those with fewer than ``limit`` tasks."""
    free = [candidate for candidate in candidates if candidate.queued < limit]
    return min(free, key=lambda candidate: candidate.done_sec).name if free else None


def choose_by_queues(
    candidates: Sequence[Candidate], draw: float, num_here: int, wait_here_sec: float, limit: int
) -> str | None:
    """Choose a neighbour for a task whose next stage this worker also holds, or return None to keep the task.

    Args:
        candidates: neighbours that hold the task's next stage.
        draw: the task's own number in [0, 1).
        num_here: tasks that wait for sending here, including this one.
        wait_here_sec: seconds until the task would be begun here.
        limit: tasks at which a neighbour is full.
    """
    best = choose_first_done([candidate for candidate in candidates if num_here > candidate.queued], limit)
    if best is None:
        return None
    chosen = next(candidate for candidate in candidates if candidate.name == best)
    there_sec = chosen.transfer_sec + chosen.wait_sec
    return best if wait_here_sec > there_sec or draw < wait_here_sec / there_sec else None


def draw_holder(holders: Sequence[str], random: Random, shares: Mapping[str, float] | None = None) -> str:
    """Draw one of the holders of a stage, by shares if given; evenly if no holder has a share."""
    weights = [1.0 if shares is None else shares.get(name, 0.0) for name in holders]
    return random.choices(holders, weights if sum(weights) > 0 else None)[0]
