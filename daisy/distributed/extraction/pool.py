"""A pool of Ray actors of a fixed size that replaces actors that die and repeats their tasks."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar

from daisy.errors import DaisyError, OutputError, UsageError

Task = TypeVar("Task")
QUEUE = 2
"""Number of tasks that a worker holds: the current one and the next, so that it need not wait for the driver. A
worker's death counts against its current task only: the next has not begun, unless the worker died before it could send
the first one's result."""
MAX_FAILED_STARTS = 3
"""Workers in a row that may end before they are ready; after that, something is wrong with all of them. The limit also
holds for workers that cannot write: after so many, no more are started in their places, and a result that so many
machines cannot write ends the run."""
START_SEC = 300.0
"""Seconds within which at least one worker must be ready."""
WAIT_SEC = 5.0
"""Seconds between two checks whether any worker is ready, while nothing finishes."""


@dataclass(eq=False)
class Attempt(Generic[Task]):
    """A task and its history so far."""

    task: Task
    deaths: int = 0
    """Workers that died while they did the task."""
    refused_by: set[str] = field(default_factory=set)
    """Machines that could not write the task's results."""


class WorkerProcess(NamedTuple):
    """The process in which a worker runs."""

    node: str
    """Ray's ID of the node."""
    host: str
    pid: int


@dataclass
class Tally:
    """Statistics on a run's workers."""

    start_sec: float = 0.0
    """Seconds until the first worker was ready, including the start of a cluster for this run."""
    end_sec: float = 0.0
    """Seconds until the last result, counted from the same moment."""
    lost: int = 0
    """Workers that died or could not write."""
    repeated: int = 0
    """Tasks that were repeated because their worker was lost."""
    refusals: list[str] = field(default_factory=list)
    """Reasons why workers could not write, with the names of their machines."""
    workers: list[WorkerProcess] = field(default_factory=list)
    """Workers that became ready, in that order."""


@dataclass(eq=False)
class _Member(Generic[Task]):
    """An actor and its tasks; the first one is in progress."""

    actor: Any
    is_ready: bool = False
    host: str = ""
    """Name of the machine, once the actor is ready."""
    attempts: list[Attempt[Task]] = field(default_factory=list)


class WorkerPool(Generic[Task]):
    """Run tasks on actors; each actor runs one task at a time.

    If an actor is killed or its machine leaves, the actor is replaced and another one repeats its task. The others
    continue while there is no room for the replacement. The same holds for an actor that cannot write, for example
    because its machine's disk is full or does not have the run's folder.

    Args:
        ray: the ``ray`` module, connected to a cluster.
        make_actor: function that creates an actor with the methods ``prepare()``, which returns its `WorkerProcess`,
            and ``encode(task)``.
        size: number of actors.
        try_again: maps an attempt during which a worker died to the attempts to follow; if there are none, the task is
            given up.
        describe: returns the workers' request, for the error if none starts.
        since: time by `time.monotonic` from which the tally counts; None: now.
    """

    def __init__(
        self,
        ray: Any,
        make_actor: Callable[[], Any],
        size: int,
        try_again: Callable[[Attempt[Task]], list[Attempt[Task]]],
        describe: Callable[[], str],
        since: float | None = None,
    ):
        self._ray, self._make_actor, self._try_again, self._describe = ray, make_actor, try_again, describe
        self.size, self.tally = size, Tally()
        self._start = time.monotonic() if since is None else since
        self._again: deque[Attempt[Task]] = deque()
        self._asked: dict[Any, tuple[_Member[Task], Attempt[Task] | None]] = {}
        """Each pending call's actor and attempt, in the order of the calls; None: the actor's preparation."""
        self._team: list[_Member[Task]] = []
        self._failed_starts = 0

    def run(self, tasks: Iterable[Task]) -> Iterator[tuple[Task, Any]]:
        """Run tasks, taken one by one as workers have room for them.

        Yields:
            A task and its result, in the order in which they finish; the result of a task that is given up is None.

        Raises:
            DaisyError: any that a worker raised; an `OutputError` only if no other worker can do better.
            UsageError: if no worker starts.
        """
        remaining = (Attempt(task) for task in tasks)
        last_ready = time.monotonic()
        try:
            for _ in range(self.size):
                self._hire()
            while self._hand_out(remaining):
                self._ray.wait(list(self._asked), timeout=WAIT_SEC)
                done, _ = self._ray.wait(list(self._asked), num_returns=len(self._asked), timeout=0)
                for reference in done:  # in the order of the calls
                    yield from self._take(reference)
                if any(member.is_ready for member in self._team):
                    last_ready = time.monotonic()
                elif time.monotonic() > last_ready + START_SEC:
                    raise UsageError(f"no worker has started within {START_SEC:.0f} s: {self._describe()}")
        finally:
            for member in self._team:
                self._ray.kill(member.actor)

    def _hire(self) -> None:
        member: _Member[Task] = _Member(self._make_actor())
        self._team.append(member)
        self._asked[member.actor.prepare.remote()] = member, None

    def _hand_out(self, remaining: Iterator[Attempt[Task]]) -> bool:
        """Give tasks to workers that have room; no worker gets a second one before all have a first.

        Returns:
            Whether anything remains to be done.
        """
        for length in range(QUEUE):
            for member in self._team:
                if len(member.attempts) == length and member.is_ready:
                    attempt = self._again.popleft() if self._again else next(remaining, None)
                    if attempt is None:
                        return not self._is_done(remaining)
                    member.attempts.append(attempt)
                    self._asked[member.actor.encode.remote(attempt.task)] = member, attempt
        return not self._is_done(remaining)

    def _is_done(self, remaining: Iterator[Attempt[Task]]) -> bool:
        """Return whether every task has its outcome, so that no further worker need become ready.

        To find out, this may take the next task from ``remaining`` and queue it.
        """
        if any(attempt for _, attempt in self._asked.values()):
            return False
        if not self._again:
            self._again.extend(itertools.islice(remaining, 1))
        return not self._again

    def _take(self, reference: Any) -> Iterator[tuple[Task, Any]]:
        """Yield a task's result; if there is none because its worker died, arrange for the task to be repeated."""
        member, attempt = self._asked.pop(reference)
        try:
            result = self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            if not isinstance(error.cause, OutputError):
                raise error.cause if isinstance(error.cause, DaisyError) else error from None
            self._dismiss(member, attempt, error.cause)
            return
        except self._ray.exceptions.RayError as error:  # its process or machine is gone or unreachable
            if member in self._team:
                self._replace(member, error)
            if attempt is not None and not self._put_back(member, attempt):
                yield attempt.task, None
            return
        self._failed_starts = 0
        if attempt is None:
            member.is_ready, member.host = True, result.host
            self.tally.start_sec = self.tally.start_sec or time.monotonic() - self._start
            self.tally.workers.append(result)
        else:
            member.attempts.remove(attempt)
            self.tally.end_sec = time.monotonic() - self._start
            yield attempt.task, result

    def _replace(self, member: _Member[Task], error: Exception) -> None:
        """Replace a dead worker."""
        self._ray.kill(member.actor)  # it may only have been unreachable
        self._team.remove(member)
        if member.is_ready:
            self.tally.lost += 1
        else:
            self._failed_starts += 1
            if self._failed_starts >= MAX_FAILED_STARTS:
                reason = str(error).strip().splitlines()[-1]
                raise UsageError(f"{self._failed_starts} workers in a row have ended as they began: {reason}")
        self._hire()

    def _dismiss(self, member: _Member[Task], attempt: Attempt[Task] | None, refusal: OutputError) -> None:
        """Remove a worker that cannot write, and queue its task again."""
        if attempt is not None:
            attempt.refused_by.add(member.host)
            if len(attempt.refused_by) >= MAX_FAILED_STARTS:
                raise refusal from None
            self._again.appendleft(attempt)
            self.tally.repeated += 1
        if member not in self._team:  # its previous task was refused, too
            return
        self._ray.kill(member.actor)
        self._team.remove(member)
        self.tally.lost += member.is_ready
        self.tally.refusals.append(f"{member.host}: {refusal}" if member.host else str(refusal))
        if len(self.tally.refusals) < MAX_FAILED_STARTS:
            self._hire()  # on another machine, if Ray finds a place there
        elif not self._team:
            raise refusal from None

    def _put_back(self, member: _Member[Task], attempt: Attempt[Task]) -> bool:
        """Queue a dead worker's task again; return False if the task had begun and is given up."""
        was_begun = member.attempts[0] is attempt
        if not was_begun:
            self._again.append(attempt)
            return True
        attempt.deaths += 1
        following = self._try_again(attempt)
        self.tally.repeated += bool(following)
        self._again.extendleft(reversed(following))
        return bool(following)
