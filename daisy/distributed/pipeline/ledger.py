"""The source's ledger of admitted tasks: each is answered exactly once, despite deaths and late answers."""

from __future__ import annotations

from dataclasses import dataclass

from daisy.distributed.pipeline.tasks import Answer, Task


@dataclass
class _Entry:
    task: Task
    """The task as admitted; a new attempt starts from here."""
    source: str
    began: float
    worker: str
    incarnation: int
    hops: int = 0


@dataclass(frozen=True, kw_only=True)
class Record:
    """An answered task."""

    task: Task
    answer: Answer
    admitted: float
    """Seconds after the start."""
    answered: float
    source: str


class Ledger:
    """Admitted tasks, where they were last seen, and the answers that count.

    The source keeps a task's input until the task is answered. If there are several attempts, the first answer counts;
    later ones are counted and dropped.
    """

    def __init__(self) -> None:
        self.records: dict[int, Record] = {}
        self.num_admitted = self.num_restarts = self.num_late = 0
        self._open: dict[int, _Entry] = {}
        self._admitted: dict[int, float] = {}
        self._dead: set[tuple[str, int]] = set()

    @property
    def num_open(self) -> int:
        """Tasks without an answer."""
        return len(self._open)

    def admit(self, task: Task, worker: str, incarnation: int, now: float) -> None:
        """Record a task that is admitted at a worker."""
        if task.number in self._admitted:
            raise ValueError(f"task {task.number} was admitted before")
        self.num_admitted += 1
        self._admitted[task.number] = now
        self._open[task.number] = _Entry(task, worker, now, worker, incarnation)

    def moved(self, number: int, attempt: int, hops: int, worker: str, incarnation: int, now: float) -> Task | None:
        """Record that an attempt has reached a worker.

        Returns:
            A new attempt to begin if that worker has died in the meantime; else None.
        """
        entry = self._open.get(number)
        if entry is None or attempt != entry.task.attempt or hops <= entry.hops:
            return None
        entry.worker, entry.incarnation, entry.hops = worker, incarnation, hops
        return self._restart(number, now) if (worker, incarnation) in self._dead else None

    def answer(self, answer: Answer, now: float) -> bool:
        """Record an answer; return whether it is the one that counts."""
        entry = self._open.pop(answer.number, None)
        if entry is None:
            self.num_late += 1
            return False
        self.records[answer.number] = Record(
            task=entry.task,
            answer=answer,
            admitted=self._admitted[answer.number],
            answered=now,
            source=entry.source,
        )
        return True

    def lose(self, worker: str, incarnation: int, now: float) -> list[Task]:
        """Record a death, and return new attempts at the tasks last seen there."""
        self._dead.add((worker, incarnation))
        lost = [n for n, entry in self._open.items() if (entry.worker, entry.incarnation) == (worker, incarnation)]
        return [self._restart(number, now) for number in lost]

    def list_overdue(self, seconds: float, now: float) -> list[Task]:
        """Return new attempts at tasks that were begun at least ``seconds`` ago and have no answer.

        The limit doubles with each attempt, so that a merely slow system is not kept busy with repetitions.
        """
        late = [
            number
            for number, entry in self._open.items()
            if now - entry.began >= seconds * 2 ** (entry.task.attempt - 1)
        ]
        return [self._restart(number, now) for number in late]

    def begin(self, number: int, worker: str, incarnation: int) -> None:
        """Record where a new attempt was begun."""
        if number in self._open:
            entry = self._open[number]
            entry.worker, entry.incarnation = worker, incarnation

    def source_of(self, attempt: Task) -> str | None:
        """Return the worker at which a task came in; None if the task is answered or has a later attempt."""
        entry = self._open.get(attempt.number)
        return entry.source if entry is not None and entry.task.attempt == attempt.attempt else None

    def _restart(self, number: int, now: float) -> Task:
        entry = self._open[number]
        self.num_restarts += 1
        entry.task = entry.task.replace(attempt=entry.task.attempt + 1)
        entry.began, entry.hops, entry.worker = now, 0, ""
        return entry.task
