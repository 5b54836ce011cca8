"""A worker's queues and decisions, without a clock, a network or a model; its caller has those.

The simulator and the real system call the same methods: `accept` and `finish` put tasks into queues, `take` returns the
task to compute next, `choose` those to send now, and `delivered` and `failed` report the outcome of sending.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import NamedTuple

from daisy.distributed.pipeline.offloading import Candidate, choose_by_queues, choose_first_done, draw_holder
from daisy.distributed.pipeline.rules import Rules
from daisy.distributed.pipeline.tasks import Status, Task

Routes = Mapping[int, Mapping[str, float]]
"""Share of the tasks that a worker shall compute, by stage and worker."""


@dataclass(frozen=True, kw_only=True)
class Neighbour:
    """A neighbour and the link to it, as declared in the topology."""

    name: str
    stages: range
    """Stages that the neighbour holds."""
    delay_sec: float = 0.0
    sec_per_byte: float = 0.0


@dataclass
class _Peer:
    """The known state of a neighbour."""

    declared: Neighbour
    dead: bool = False
    """The source has declared this incarnation dead, which is final."""
    suspect: bool = False
    """A task could not be sent there, and the neighbour has not been heard from since."""
    incarnation: int = 1
    link_busy: bool = False
    extra_sec: float = 0.0
    """Moving average of a transfer's seconds in addition to those of the declared link."""
    status: Status | None = None
    num_sent: int = 0
    """Tasks sent to its present incarnation."""
    pending: deque[float] = field(default_factory=deque)
    """Seconds of work of the tasks that were sent and that the neighbour's status does not count yet."""


@dataclass(eq=False)
class _Waiting:
    """A task in the output queue."""

    task: Task
    draw: float
    target: str | None
    """Worker drawn for the task, if a single draw decides."""


class Sending(NamedTuple):
    """A task to be sent."""

    neighbour: str
    incarnation: int
    """Incarnation of the neighbour for which the task is meant."""
    task: Task


class Worker:
    """The state machine of one worker.

    Args:
        name: name of the worker.
        stages: stages that the worker holds.
        neighbours: workers to which it has links.
        rules: rules of the whole system.
        random: random number generator.
        service_sec: seconds per unit of work for every stage, used until they are measured.
        routes: with ``routed`` offloading, each worker's share of each stage.
        incarnation: number of this start of the worker, from 1.
    """

    def __init__(
        self,
        name: str,
        stages: range,
        neighbours: Iterable[Neighbour],
        rules: Rules,
        random: Random,
        *,
        service_sec: Mapping[int, float] | None = None,
        routes: Routes | None = None,
        incarnation: int = 1,
    ):
        self.name, self.stages, self.rules, self.incarnation = name, stages, rules, incarnation
        self._random, self._routes = random, routes or {}
        self._peers = {neighbour.name: _Peer(neighbour) for neighbour in neighbours}
        self._expected_sec = dict(service_sec or {})
        self._measured_sec: dict[int, float] = {}
        self._input: list[Task] = []
        self._output: list[_Waiting] = []
        self._running: Task | None = None
        self._received: dict[str, int] = {}

    def accept(self, task: Task, sender: str = "", incarnation: int = 1) -> None:
        """Take in a task: from a neighbour into the input queue, from the source (no sender) into the better queue.

        Args:
            task: the task. A duplicate is dropped: its sender had reason to think that the task was lost.
            sender: name of the neighbour that sent it.
            incarnation: incarnation of the sender. Tasks from a dead incarnation are not counted as received from it.
        """
        if not sender:
            self._place(task)
            return
        self.welcome(sender, incarnation)
        if sender not in self._peers or self._peers[sender].incarnation == incarnation:
            self._received[sender] = self._received.get(sender, 0) + 1
        if not self._has(task):
            self._input.append(task)

    def take(self) -> Task | None:
        """Begin the next task, if there is one and none is in progress.

        The highest priority goes first, then the earliest arrival. If the input queue is empty, a task that waits for
        sending but could also be done here is taken.
        """
        if self._running is not None:
            return None
        if self._input:
            index = max(range(len(self._input)), key=lambda i: (self._input[i].priority, -i))
            self._running = self._input.pop(index)
        else:
            mine = [w for w in self._output if w.task.stage in self.stages and w.target is None]
            if mine:
                first = max(mine, key=lambda waiting: waiting.task.priority)
                self._output.remove(first)
                self._running = first.task
        return self._running

    def finish(self, seconds: float, task: Task | None) -> None:
        """Record that the task in progress was computed.

        Args:
            seconds: seconds that it took.
            task: the task with its next stage; None if it has exited.
        """
        assert self._running is not None, "no task is in work"
        stage, work = self._running.stage, self._running.work
        self._running = None
        past = self._measured_sec.get(stage)
        self._measured_sec[stage] = self._average(past, seconds / max(work, 1e-9))
        if task is not None:
            self._place(task)

    def abandon(self) -> None:
        """Record that the task in progress cannot be computed."""
        self._running = None

    def choose(self) -> list[Sending]:
        """Choose the tasks to send now, at most one for each free link, and occupy these links.

        The caller sends the tasks, calls `free_link` when the link is free again, and calls `delivered` or `failed`.
        """
        chosen: list[Sending] = []
        for waiting in sorted(self._output, key=lambda waiting: -waiting.task.priority):  # stable: first come first
            name = self._choose_for(waiting)
            if name is None:
                continue
            self._output.remove(waiting)
            peer, task = self._peers[name], waiting.task
            peer.link_busy = True
            peer.num_sent += 1
            peer.pending.append(task.work * self._service_of(peer, task.stage))
            chosen.append(Sending(name, peer.incarnation, task.replace(hops=task.hops + 1)))
        return chosen

    def free_link(self, neighbour: str) -> None:
        """Record that a link can take the next task."""
        self._peers[neighbour].link_busy = False

    def delivered(self, neighbour: str, num_bytes: int, seconds: float) -> None:
        """Record that a task has reached a neighbour, and how long that took."""
        peer = self._peers[neighbour]
        extra = seconds - peer.declared.delay_sec - num_bytes * peer.declared.sec_per_byte
        peer.extra_sec = self._average(peer.extra_sec, extra)

    def failed(self, sending: Sending) -> None:
        """Take back a task that could not be sent; the neighbour gets no more tasks until it is heard from again."""
        peer = self._peers[sending.neighbour]
        if peer.incarnation == sending.incarnation and not peer.dead:
            peer.suspect = True
            peer.num_sent -= 1
            if peer.pending:
                peer.pending.pop()
        self._place(sending.task.replace(hops=sending.task.hops - 1))

    def hear(self, status: Status) -> None:
        """Record a neighbour's status."""
        self.welcome(status.worker, status.incarnation)
        peer = self._peers.get(status.worker)
        if peer is None or status.incarnation < peer.incarnation:
            return
        peer.status, peer.suspect = status, False
        on_the_way = peer.num_sent - status.received.get(self.name, 0)
        while len(peer.pending) > max(on_the_way, 0):
            peer.pending.popleft()

    def lose(self, neighbour: str, incarnation: int) -> None:
        """Record that an incarnation of a neighbour is dead; decide again on the tasks meant for it."""
        self.welcome(neighbour, incarnation)
        peer = self._peers.get(neighbour)
        if peer is None or peer.incarnation != incarnation or peer.dead:
            return
        peer.dead, peer.status = True, None
        peer.pending.clear()
        meant = [waiting for waiting in self._output if waiting.target == neighbour]
        self._output = [waiting for waiting in self._output if waiting.target != neighbour]
        for waiting in meant:
            self._place(waiting.task)

    def welcome(self, neighbour: str, incarnation: int) -> None:
        """Record that a neighbour was restarted."""
        peer = self._peers.get(neighbour)
        if peer is not None and incarnation > peer.incarnation:
            peer.incarnation, peer.dead, peer.suspect = incarnation, False, False
            peer.status, peer.num_sent = None, 0
            peer.pending.clear()
            self._received.pop(neighbour, None)  # the neighbour counts its sent tasks from 0 again

    def status(self) -> Status:
        """Return the worker's status."""
        queued = self._input + ([self._running] if self._running is not None else [])
        return Status(
            worker=self.name,
            incarnation=self.incarnation,
            queued=len(queued),
            backlog_sec=sum(task.work * self._service(task.stage) for task in queued),
            waiting=len(queued) + len(self._output),
            service_sec=dict(self._measured_sec),
            received=dict(self._received),
        )

    def _place(self, task: Task) -> None:
        """Put a task whose next stage is to be computed into one of the queues, unless it is here already."""
        if self._has(task):
            return
        held = task.stage in self.stages
        candidates = self._holders(task.stage)
        target = None
        if self.rules.offloading == "queues":
            idle = not self._input and self._running is None
            keep = held and (idle or not candidates or len(self._output) > self.rules.output_limit)
        else:
            names = [*([self.name] if held else []), *candidates]
            shares = self._routes.get(task.stage, {}) if self.rules.offloading == "routed" else None
            drawn = draw_holder(names, self._random, shares) if names else None
            keep = drawn == self.name
            target = drawn
        if keep:
            self._input.append(task)
        else:
            self._output.append(_Waiting(task, self._random.random(), target))

    def _has(self, task: Task) -> bool:
        """Return whether this attempt of a task is in a queue or in progress."""
        here = [*self._input, *(waiting.task for waiting in self._output)]
        if self._running is not None:
            here.append(self._running)
        return any((other.number, other.attempt) == (task.number, task.attempt) for other in here)

    def _choose_for(self, waiting: _Waiting) -> str | None:
        """Return the neighbour that gets a task of the output queue now, or None."""
        task, limit = waiting.task, self.rules.neighbour_limit
        candidates = [
            self._as_candidate(self._peers[name], task)
            for name in self._holders(task.stage)
            if not self._peers[name].link_busy
        ]
        if waiting.target is not None:
            return choose_first_done([c for c in candidates if c.name == waiting.target], limit)
        if task.stage not in self.stages or self.rules.offloading != "queues":
            return choose_first_done(candidates, limit)
        wait_here = self.status().backlog_sec
        return choose_by_queues(candidates, waiting.draw, len(self._output), wait_here, limit)

    def _holders(self, stage: int) -> Sequence[str]:
        """List reachable neighbours that hold a stage."""
        return [
            name
            for name, peer in self._peers.items()
            if not peer.dead and not peer.suspect and stage in peer.declared.stages
        ]

    def _as_candidate(self, peer: _Peer, task: Task) -> Candidate:
        status, declared = peer.status, peer.declared
        transfer = declared.delay_sec + task.num_bytes * declared.sec_per_byte + peer.extra_sec
        return Candidate(
            name=declared.name,
            queued=(status.queued if status else 0) + len(peer.pending),
            wait_sec=(status.backlog_sec if status else 0.0) + sum(peer.pending),
            transfer_sec=max(transfer, 0.0),
            service_sec=task.work * self._service_of(peer, task.stage),
        )

    def _service_of(self, peer: _Peer, stage: int) -> float:
        """Return a neighbour's seconds per unit of work, as far as is known."""
        measured = peer.status.service_sec.get(stage) if peer.status else None
        return self._service(stage) if measured is None else measured

    def _service(self, stage: int) -> float:
        return self._measured_sec.get(stage, self._expected_sec.get(stage, 0.0))

    def _average(self, past: float | None, now: float) -> float:
        return now if past is None else self.rules.memory * past + (1 - self.rules.memory) * now
