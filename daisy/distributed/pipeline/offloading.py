"""Who computes the next stage of a task.

``queues`` is our reading of MDI-Exit's description. A task whose next stage is held here too is sent to a neighbour
only while more tasks wait for sending here than wait there; then surely where the wait here is longer than transfer and
wait there, else with the ratio of the two as probability, by a number that the task drew when it came into the output
queue. A task whose next stage is not held here goes to the neighbour where it would be done first (ours).

``random`` draws one of those who hold the stage, this worker among them. ``routed`` draws by given shares, which
`daisy.distributed.pipeline.joint` chooses. Both keep what was drawn.
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
    """What these will take."""
    transfer_sec: float
    """Until the task would be there."""
    service_sec: float
    """What it would take then."""

    @property
    def done_sec(self) -> float:
        """Until it would be done there."""
        return self.transfer_sec + self.wait_sec + self.service_sec


def choose_first_done(candidates: Sequence[Candidate], limit: int) -> str | None:
    """Choose the neighbour where a task would be done first, of those with fewer than ``limit`` tasks."""
    free = [candidate for candidate in candidates if candidate.queued < limit]
    return min(free, key=lambda candidate: candidate.done_sec).name if free else None


def choose_by_queues(
    candidates: Sequence[Candidate], draw: float, num_here: int, wait_here_sec: float, limit: int
) -> str | None:
    """Choose a neighbour for a task that could be done here too, or None to keep it.

    Args:
        candidates: who holds its next stage.
        draw: the task's own number from [0, 1).
        num_here: tasks that wait for sending here, this one among them.
        wait_here_sec: until it would be begun here.
        limit: of tasks at a neighbour.
    """
    best = choose_first_done([candidate for candidate in candidates if num_here > candidate.queued], limit)
    if best is None:
        return None
    chosen = next(candidate for candidate in candidates if candidate.name == best)
    there_sec = chosen.transfer_sec + chosen.wait_sec
    return best if wait_here_sec > there_sec or draw < wait_here_sec / there_sec else None


def draw_holder(holders: Sequence[str], random: Random, shares: Mapping[str, float] | None = None) -> str:
    """Draw one of those who hold a stage, evenly or by shares; evenly where none of them has a share."""
    weights = [1.0 if shares is None else shares.get(name, 0.0) for name in holders]
    return random.choices(holders, weights if sum(weights) > 0 else None)[0]
