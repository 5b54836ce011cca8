"""The source's side: admission, the ledger, and liveness of workers, without a clock, a network or a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Any, NamedTuple

from daisy.distributed.pipeline.admission import make_admissions
from daisy.distributed.pipeline.ledger import Ledger
from daisy.distributed.pipeline.tasks import Answer, Status, Task
from daisy.distributed.pipeline.topology import Topology
from daisy.errors import UsageError

MakeTask = Callable[[int, int, int], Task]
"""Function of number, exit level and priority that makes a task."""


class Begin(NamedTuple):
    """A task that a worker shall begin."""

    worker: str
    incarnation: int
    task: Task


class Death(NamedTuple):
    """A worker that is presumed dead."""

    worker: str
    incarnation: int


class Desk:
    """Admits tasks, tracks them, and begins them again if needed.

    Args:
        topology: the workers, sources and rules.
        random: random number generator.
        admission: arguments of `daisy.distributed.pipeline.admission.make_admissions`.

    Raises:
        UsageError: as `make_admissions` does.
    """

    def __init__(
        self,
        topology: Topology,
        random: Random,
        **admission: Any,
    ):
        self.topology, self.rules, self.ledger = topology, topology.rules, Ledger()
        self.admissions = make_admissions(topology, **admission)
        self._num_admitted = [0] * len(self.admissions)
        self._random = random
        self._incarnations = {worker.name: 1 for worker in topology.workers}
        self._heard: dict[str, float] = {worker.name: 0.0 for worker in topology.workers}
        self._alive = set(self._incarnations)
        self._gone: set[str] = set()
        self._statuses: dict[str, Status] = {}
        self._waiting: list[Task] = []
        """Tasks that wait for a living worker that holds the first stage."""
        self._first_holders = [worker.name for worker in topology.workers if 0 in topology.stages_of(worker.name)]

    def begin_watch(self, now: float) -> None:
        """Count every worker as heard from; its silence counts from now on."""
        self._heard = dict.fromkeys(self._heard, now)

    def next_interval(self, source: int, now: float) -> float:
        """Draw the seconds until a source's next task arrives."""
        return self.admissions[source].next_interval(now, self._random)

    def admit(self, source: int, make_task: MakeTask, now: float) -> list[Begin]:
        """Admit a task of a source."""
        where = self.topology.sources[source]
        task = make_task(self.ledger.num_admitted, self.admissions[source].level, where.priority)
        self.ledger.admit(task, where.worker, self._incarnations[where.worker], now)
        self._num_admitted[source] += 1
        if self._num_admitted[source] % self.rules.adapt_every == 0:
            self._adapt(source)
        return self._begin([task])

    def _adapt(self, source: int) -> None:
        """Adapt a source's rate or exit level to its queues."""
        status = self._statuses.get(self.topology.sources[source].worker)
        self.admissions[source].adapt((status.waiting if status else 0) + len(self._waiting))

    def hear(self, status: Status, now: float) -> None:
        """Record a worker's status."""
        if status.worker in self._alive and status.incarnation == self._incarnations[status.worker]:
            self._heard[status.worker], self._statuses[status.worker] = now, status

    def moved(self, task: Task, worker: str, incarnation: int, now: float) -> list[Begin]:
        """Record that a task has reached a worker."""
        again = self.ledger.moved(task.number, task.attempt, task.hops, worker, incarnation, now)
        return self._begin([again]) if again is not None else []

    def answer(self, answer: Answer, now: float) -> bool:
        """Record an answer; return whether it is the one that counts."""
        return self.ledger.answer(answer, now)

    def check(self, now: float) -> tuple[list[Death], list[Begin]]:
        """Look for silent workers and overdue tasks.

        Returns:
            The newly noticed deaths, and the tasks to begin again.
        """
        deaths, begins = [], []
        for worker in sorted(self._alive):
            if now - self._heard[worker] >= self.rules.dead_after_sec:
                deaths.append(Death(worker, self._incarnations[worker]))
        for death in deaths:
            begins += self.lose(death, now)
        return deaths, begins + self._begin(self.ledger.list_overdue(self.rules.restart_after_sec, now))

    def lose(self, death: Death, now: float) -> list[Begin]:
        """Record a death, and return the tasks to begin again."""
        if death.worker not in self._alive or death.incarnation != self._incarnations[death.worker]:
            return []
        self._alive.discard(death.worker)
        self._statuses.pop(death.worker, None)
        return self._begin(self.ledger.lose(death.worker, death.incarnation, now))

    def welcome(self, worker: str, incarnation: int, now: float) -> list[Begin]:
        """Record that a worker was restarted, and return the tasks that have waited for it."""
        self._incarnations[worker], self._heard[worker] = incarnation, now
        self._alive.add(worker)
        return self._begin([])

    def give_up(self, worker: str) -> None:
        """Record that a dead worker cannot be restarted."""
        self._gone.add(worker)

    def refuse_if_stuck(self) -> None:
        """Raise an error if a stage has no living holder within reach, and none will be restarted.

        Raises:
            UsageError: in that case; names the layers.
        """
        starting = set(self._incarnations) - self._gone if self.rules.respawn_sec is not None else set()
        usable, at = self._alive | starting, set(self._first_holders)
        for stage, layers in enumerate(self.topology.stages):
            at = {taker for name in at & usable for taker in self.topology.takers_of(name, stage, usable)}
            if not at:
                holders = [w.name for w in self.topology.workers if stage in self.topology.stages_of(w.name)]
                living = [name for name in holders if name in usable]
                reason = f", and nobody who lives has a link to {', '.join(living)}" if living else ", which died"
                raise UsageError(
                    f"layers {layers[0]}-{layers[-1]} were held by {', '.join(holders)} only{reason}: "
                    f"{self.ledger.num_open} tasks are without an answer"
                )

    def _begin(self, tasks: Sequence[Task]) -> list[Begin]:
        """Send waiting and given tasks to their source's worker or, if that is dead, to another first-stage holder."""
        begins, waiting = [], []
        for task in [*self._waiting, *tasks]:
            source = self.ledger.source_of(task)
            if source is None:  # it was answered while it waited, or begun again
                continue
            order = [source, *(name for name in self._first_holders if name != source)]
            worker = next((name for name in order if name in self._alive), None)
            if worker is None:
                waiting.append(task)
                continue
            incarnation = self._incarnations[worker]
            self.ledger.begin(task.number, worker, incarnation)
            begins.append(Begin(worker, incarnation, task))
        self._waiting = waiting
        return begins
