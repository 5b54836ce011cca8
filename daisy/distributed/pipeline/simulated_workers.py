"""Workers and links under simpy: the real system's state machines in simulated time."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from random import Random
from typing import Any

from daisy.distributed.pipeline.desk import Begin, Desk
from daisy.distributed.pipeline.run_report import WorkerReport
from daisy.distributed.pipeline.simulated_machine import Event, Machine
from daisy.distributed.pipeline.tasks import Answer, Task
from daisy.distributed.pipeline.timeline import Costs
from daisy.distributed.pipeline.timeline import Event as Noted
from daisy.distributed.pipeline.topology import Topology
from daisy.distributed.pipeline.worker import Routes, Sending, Worker
from daisy.distributed.pipeline.workload import Wire, Workload

BYTES_PER_UNIT = 2
"""Bytes of a unit; an answer has one unit per frame."""


class SimulatedWorkers:
    """Workers that compute, send tasks and exchange their status.

    Args:
        env: simpy's environment.
        topology: the workers and links.
        workload: the utterances.
        desk: desk that gets answers and the workers' status.
        seed: seed of all draws.
        wire: format of states on links.
        routes: with ``routed`` offloading, each worker's share of each stage.
        costs: costs of a real system.
    """

    def __init__(
        self,
        env: Any,
        topology: Topology,
        workload: Workload,
        desk: Desk,
        *,
        seed: int,
        wire: Wire,
        routes: Routes | None,
        costs: Costs,
    ):
        self.env, self.topology, self.workload, self.desk = env, topology, workload, desk
        self.wire, self.costs, self._routes, self._seed = wire, costs, routes, seed
        self._machines = {
            machine: Machine(self.env, topology.cores.get(machine))
            for machine in {place.machine for place in topology.workers}
        }
        self._random = Random(f"{seed} links")
        self.stages = topology.stages
        self.speeds = {place.name: place.speed or 1.0 for place in topology.workers}
        self.reports = {place.name: WorkerReport() for place in topology.workers}
        self._neighbours = {place.name: topology.neighbours_of(place.name) for place in topology.workers}
        self._links = {
            (place.name, neighbour.name): topology.link(place.name, neighbour.name)
            for place in topology.workers
            for neighbour in self._neighbours[place.name]
        }
        self.workers: dict[str, Worker] = {}
        self._deaths: dict[str, Event] = {}
        """Event of the death of each living incarnation."""
        for place in topology.workers:
            self._start(place.name, 1)

    def _start(self, name: str, incarnation: int) -> None:
        self.workers[name], self._deaths[name] = self._make_worker(name, incarnation), self.env.event()

    def _end(self, name: str) -> None:
        """Let a worker die, if it is alive."""
        if self.workers.pop(name, None) is not None:
            self._deaths.pop(name).succeed()
            self.reports[name].num_deaths += 1

    def _make_worker(self, name: str, incarnation: int) -> Worker:
        expected = {
            stage: seconds / self.speeds[name] for stage, seconds in enumerate(self.workload.mean_seconds(self.stages))
        }
        return Worker(
            name,
            self.topology.stages_of(name),
            self._neighbours[name],
            self.topology.rules,
            Random(f"{self._seed} {name} {incarnation}"),
            service_sec=expected,
            routes=self._routes,
            incarnation=incarnation,
        )

    def _is_alive(self, name: str, incarnation: int) -> bool:
        worker = self.workers.get(name)
        return worker is not None and worker.incarnation == incarnation

    def _begin(self, begins: Sequence[Begin]) -> None:
        for begin in begins:
            if self.costs.admission_sec:
                self.env.process(self._hand_in(begin))
            else:
                self._hand_in_now(begin)

    def _hand_in(self, begin: Begin) -> Generator[Event, Any, None]:
        yield self.env.timeout(self.costs.admission_sec)
        self._hand_in_now(begin)

    def _hand_in_now(self, begin: Begin) -> None:
        if self._is_alive(begin.worker, begin.incarnation):  # otherwise the desk will notice its death
            self._note("accepted", begin.worker, begin.task)
            self.workers[begin.worker].accept(begin.task)
            self._go_on(begin.worker)

    def _note(self, kind: Any, name: str, task: Task, seconds: float = 0.0) -> None:
        self.reports[name].events.append(Noted(kind, task.number, task.attempt, task.stage, self.env.now, seconds))

    def _go_on(self, name: str) -> None:
        """Begin what a worker can begin now: transfers over free links, and the next task."""
        worker = self.workers[name]
        for sending in worker.choose():
            self.env.process(self._send(name, worker.incarnation, sending))
        task = worker.take()
        if task is not None:
            self.env.process(self._compute(name, worker.incarnation, task, self._deaths[name]))

    def _compute(self, name: str, incarnation: int, task: Task, death: Event) -> Generator[Event, Any, None]:
        layers, workload = self.stages[task.stage], self.workload
        exit_layer, place = workload.exit_layer(task.level, task.payload), self.topology.worker(name)
        begun, alone = self.env.now, workload.stage_seconds(task.payload, layers, exit_layer)
        alone *= self.costs.slowdown.get((name, task.stage), 1.0)
        self._note("begun", name, task)
        yield from self._machines[place.machine].compute(alone, place.threads, death)
        rest = begun + alone / self.speeds[name] - self.env.now
        if rest > 0:
            yield self.env.timeout(rest)  # as the real one waits
        if not self._is_alive(name, incarnation):
            return
        report, seconds = self.reports[name], self.env.now - begun
        self._note("computed", name, task, seconds)
        report.busy_sec += seconds
        report.num_computed += 1
        leaves = exit_layer <= layers[-1]
        after = None
        if not leaves:
            num_bytes = workload.wire_bytes(task.payload, task.stage + 1, self.wire)
            after = task.replace(stage=task.stage + 1, num_bytes=num_bytes)
        self.workers[name].finish(seconds, after)
        if leaves:
            size = BYTES_PER_UNIT * workload.num_frames[task.payload]
            answer = Answer(
                number=task.number, attempt=task.attempt, exit_layer=exit_layer, worker=name, num_bytes=size
            )
            report.num_exits += 1
            if self.costs.answer_sec:
                self.env.process(self._answer(answer))
            else:
                self.desk.answer(answer, self.env.now)
        self._go_on(name)

    def _answer(self, answer: Answer) -> Generator[Event, Any, None]:
        yield self.env.timeout(self.costs.answer_sec)
        self.desk.answer(answer, self.env.now)

    def _send(self, name: str, incarnation: int, sending: Sending) -> Generator[Event, Any, None]:
        link, task, other = self._links[name, sending.neighbour], sending.task, sending.neighbour
        assert link is not None
        repeats = 1
        while link.loss and self._random.random() < link.loss:
            repeats += 1
        begun, link_sec = self.env.now, repeats * task.num_bytes / link.bytes_per_sec
        self._note("sent", name, task, link_sec + link.delay_sec)
        yield self.env.timeout(link_sec)
        alive = self._is_alive(name, incarnation)
        if alive:
            self.reports[name].num_sent += 1
            self.reports[name].bytes_sent += repeats * task.num_bytes
            self.workers[name].free_link(other)
            self._go_on(name)
        yield self.env.timeout(link.delay_sec + self.costs.hop_sec)
        seconds, status = self.env.now - begun, None
        if self._is_alive(other, sending.incarnation):
            self._note("accepted", other, task)
            self.workers[other].accept(task, name, incarnation)
            self._go_on(other)
            if self._is_alive(name, incarnation):
                self._begin(self.desk.moved(task, other, sending.incarnation, self.env.now))
            status = self.workers[other].status()
        yield self.env.timeout(link.delay_sec)
        if self._is_alive(name, incarnation):
            worker = self.workers[name]
            if status is None:
                worker.failed(sending)
            else:
                worker.delivered(other, task.num_bytes, seconds)
                worker.hear(status)
            self._go_on(name)

    def _tell(self, name: str, incarnation: int) -> Generator[Event, Any, None]:
        """Send a worker's status at intervals."""
        while self._is_alive(name, incarnation):
            status = self.workers[name].status()
            self.desk.hear(status, self.env.now)
            for neighbour in self._neighbours[name]:
                link = self._links[name, neighbour.name]
                if link is not None and link.delay_sec > 0:
                    self.env.process(self._hear(neighbour.name, status, link.delay_sec))
                else:
                    self._hear_now(neighbour.name, status)
            yield self.env.timeout(self.topology.rules.status_sec)

    def _hear(self, name: str, status: Any, delay_sec: float) -> Generator[Event, Any, None]:
        yield self.env.timeout(delay_sec)
        self._hear_now(name, status)

    def _hear_now(self, name: str, status: Any) -> None:
        if name in self.workers:
            self.workers[name].hear(status)
            self._go_on(name)
