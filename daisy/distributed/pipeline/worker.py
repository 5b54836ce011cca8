"""A worker's queues and decisions, without a clock, a network or a model: those belong to whoever runs it.

The simulator and the real system call the same methods: `accept` and `finish` put tasks into queues, `take` gives the
one to compute next, `choose` those to send now, `delivered` and `failed` say what became of them.
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
"""Stage to worker to the share of tasks that it is to compute."""


@dataclass(frozen=True, kw_only=True)
class Neighbour:
    """A neighbour and the link to it, as the topology declares them."""

    name: str
    stages: range
    """That it holds."""
    delay_sec: float = 0.0
    sec_per_byte: float = 0.0


@dataclass
class _Peer:
    """What is known of a neighbour."""

    declared: Neighbour
    dead: bool = False
    """The source says so, of this incarnation and for good."""
    suspect: bool = False
    """A task could not be sent there, and nothing has been heard since."""
    incarnation: int = 1
    link_busy: bool = False
    extra_sec: float = 0.0
    """Moving average of what a transfer took beyond what the link's declaration says."""
    status: Status | None = None
    num_sent: int = 0
    """To its present incarnation."""
    pending: deque[float] = field(default_factory=deque)
    """Seconds of work of the tasks that were sent and that its status does not count yet."""


@dataclass(eq=False)
class _Waiting:
    """A task in the output queue."""

    task: Task
    draw: float
    target: str | None
    """Whom it was drawn for, where that is decided once."""


class Sending(NamedTuple):
    """A task that is to be sent."""

    neighbour: str
    incarnation: int
    """Of the neighbour, whom it is meant for."""
    task: Task


class Worker:
    """One worker.

    Args:
        name: of the worker.
        stages: that it holds.
        neighbours: that it has links to.
        rules: of the whole system.
        random: where its draws come from.
        service_sec: seconds for a unit of work by stage, of all stages, until they are measured.
        routes: with ``routed`` offloading, who is to compute which share of each stage.
        incarnation: which start of this worker it is.
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
        """Take a task in: of a neighbour into the input queue, of the source (no sender) wherever it is best.

        Args:
            task: that has come. One that is here already is dropped: its sender had to think that it got lost.
            sender: which neighbour sent it.
            incarnation: of the sender. What a dead one sent is not counted: it is not asked after any more.
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
        """Begin the next task, if there is one and none is in work.

        The highest priority goes first, then whoever came first. With an empty input queue it is one that waits for
        sending and could be done here as well.
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
        """Note that the task in work was computed.

        Args:
            seconds: what it took.
            task: what goes on with its next stage; None where it has left.
        """
        assert self._running is not None, "no task is in work"
        stage, work = self._running.stage, self._running.work
        self._running = None
        past = self._measured_sec.get(stage)
        self._measured_sec[stage] = self._average(past, seconds / max(work, 1e-9))
        if task is not None:
            self._place(task)

    def abandon(self) -> None:
        """Note that the task in work cannot be computed."""
        self._running = None

    def choose(self) -> list[Sending]:
        """Choose the tasks to send now, at most one for each link that is free, and take these links.

        The caller sends them, and calls `free_link` when the link is free again, and `delivered` or `failed`.
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
        """Note that a link can take the next task."""
        self._peers[neighbour].link_busy = False

    def delivered(self, neighbour: str, num_bytes: int, seconds: float) -> None:
        """Note that a task has come to a neighbour, and what that took."""
        peer = self._peers[neighbour]
        extra = seconds - peer.declared.delay_sec - num_bytes * peer.declared.sec_per_byte
        peer.extra_sec = self._average(peer.extra_sec, extra)

    def failed(self, sending: Sending) -> None:
        """Take a task back that could not be sent; the neighbour gets none until it is heard of again."""
        peer = self._peers[sending.neighbour]
        if peer.incarnation == sending.incarnation and not peer.dead:
            peer.suspect = True
            peer.num_sent -= 1
            if peer.pending:
                peer.pending.pop()
        self._place(sending.task.replace(hops=sending.task.hops - 1))

    def hear(self, status: Status) -> None:
        """Note what a neighbour says of itself."""
        self.welcome(status.worker, status.incarnation)
        peer = self._peers.get(status.worker)
        if peer is None or status.incarnation < peer.incarnation:
            return
        peer.status, peer.suspect = status, False
        on_the_way = peer.num_sent - status.received.get(self.name, 0)
        while len(peer.pending) > max(on_the_way, 0):
            peer.pending.popleft()

    def lose(self, neighbour: str, incarnation: int) -> None:
        """Note that an incarnation of a neighbour is dead; what was meant for it is decided anew."""
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
        """Note that a neighbour was started anew."""
        peer = self._peers.get(neighbour)
        if peer is not None and incarnation > peer.incarnation:
            peer.incarnation, peer.dead, peer.suspect = incarnation, False, False
            peer.status, peer.num_sent = None, 0
            peer.pending.clear()
            self._received.pop(neighbour, None)  # it counts what it has sent from 0 on

    def status(self) -> Status:
        """Say how things stand."""
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
        """Put a task whose next stage is to be computed into one of the queues, if it is in none yet."""
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
        """Whether this attempt of a task is in a queue or in work."""
        here = [*self._input, *(waiting.task for waiting in self._output)]
        if self._running is not None:
            here.append(self._running)
        return any((other.number, other.attempt) == (task.number, task.attempt) for other in here)

    def _choose_for(self, waiting: _Waiting) -> str | None:
        """Who gets a task of the output queue now, if anybody."""
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
        """List living neighbours that hold a stage."""
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
        """Seconds that a neighbour takes for a unit of work, as far as is known."""
        measured = peer.status.service_sec.get(stage) if peer.status else None
        return self._service(stage) if measured is None else measured

    def _service(self, stage: int) -> float:
        return self._measured_sec.get(stage, self._expected_sec.get(stage, 0.0))

    def _average(self, past: float | None, now: float) -> float:
        return now if past is None else self.rules.memory * past + (1 - self.rules.memory) * now
