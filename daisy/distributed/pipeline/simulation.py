"""Model-distributed inference under simpy: the same workers and desk as in the real system, in simulated time.

What is simulated: service times as the workload has them divided by a worker's speed, links with delay, rate and loss
(each direction carries one task at a time), messages about queues, which take a link's delay, deaths and new starts.
What is not: the operating system, contention between workers of one machine, and time to pack and unpack states, but
for ``overhead_sec``. Answers and what workers tell the source take no time.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from random import Random
from typing import Any

from daisy.distributed.pipeline.desk import Begin, Desk
from daisy.distributed.pipeline.run_report import RunReport, WorkerReport
from daisy.distributed.pipeline.tasks import Answer, Task
from daisy.distributed.pipeline.topology import Topology
from daisy.distributed.pipeline.worker import Routes, Sending, Worker
from daisy.distributed.pipeline.workload import Wire, Workload
from daisy.errors import UsageError

BYTES_PER_UNIT = 2
"""An answer has the unit of each frame."""
Event = Any
"""Of simpy, which has no types and is imported where it is used."""


class Simulation:
    """One run.

    Args:
        topology: the workers, sources and rules.
        workload: utterances, taken in turn.
        rate: tasks a second of sources that the topology gives none.
        level: exit level at the start.
        seed: of all draws.
        wire: how states travel.
        load: times, and what the rate is multiplied by from then on.
        even: whether tasks come at even intervals.
        kills: seconds and workers to kill.
        routes: with ``routed`` offloading, who is to compute which share.
        overhead_sec: of each stage and task, beside the workload's times.

    Raises:
        UsageError: where simpy is missing, or workload and topology are of different models.
    """

    def __init__(
        self,
        topology: Topology,
        workload: Workload,
        *,
        rate: float = 1.0,
        level: int = 0,
        seed: int = 0,
        wire: Wire = "float32",
        load: Sequence[tuple[float, float]] = (),
        even: bool = False,
        kills: Sequence[tuple[float, str]] = (),
        routes: Routes | None = None,
        overhead_sec: float = 0.0,
    ):
        try:
            import simpy
        except ModuleNotFoundError:
            raise UsageError("the simulator needs simpy", remedy="ray") from None
        if workload.num_layers != topology.num_layers:
            raise UsageError(
                f"the topology is for {topology.num_layers} layers, and the workload has {workload.num_layers}"
            )
        self.topology, self.workload, self.wire, self.kills = topology, workload, wire, kills
        self.overhead_sec, self._routes, self._seed = overhead_sec, routes, seed
        self.env = simpy.Environment()
        self._random = Random(f"{seed} links")
        self.desk = Desk(
            topology,
            Random(f"{seed} source"),
            rate=rate,
            level=level,
            num_levels=workload.num_levels,
            load=load,
            even=even,
        )
        self.stages = topology.stages
        self.speeds = {place.name: place.speed or 1.0 for place in topology.workers}
        self.reports = {place.name: WorkerReport() for place in topology.workers}
        self._neighbours = {place.name: topology.neighbours_of(place.name) for place in topology.workers}
        self._links = {
            (place.name, neighbour.name): topology.link(place.name, neighbour.name)
            for place in topology.workers
            for neighbour in self._neighbours[place.name]
        }
        self.workers = {place.name: self._make_worker(place.name, 1) for place in topology.workers}
        self._num_left = 0

    def run(self, *, num_tasks: int | None = None, seconds: float | None = None) -> RunReport:
        """Admit tasks, and go on until all are answered.

        Args:
            num_tasks: to admit in all; or
            seconds: for which to admit.

        Raises:
            UsageError: where neither or both are given, or a stage has lost its last worker for good.
        """
        if (num_tasks is None) == (seconds is None):
            raise UsageError("a run has a number of tasks or a number of seconds")
        for name in self.workers:
            self.env.process(self._tell(name, 1))
        self._num_left = num_tasks if num_tasks is not None else -1
        arrivals = [self.env.process(self._arrive(source, seconds)) for source in range(len(self.topology.sources))]
        self.env.process(self._watch())
        for when, worker in self.kills:
            self.env.process(self._kill(when, worker))
        self.env.run(until=self.env.all_of(arrivals))
        while self.desk.ledger.num_open:
            self.env.step()
        return self._report()

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

    def _make_task(self, number: int, level: int, priority: int) -> Task:
        index = number % len(self.workload.names)
        return Task(
            number=number,
            work=self.workload.work(index),
            num_bytes=self.workload.wire_bytes(index, 0, self.wire),
            level=level,
            priority=priority,
            payload=index,
        )

    def _arrive(self, source: int, seconds: float | None) -> Generator[Event, Any, None]:
        """Admit a source's tasks."""
        while self._num_left != 0:
            yield self.env.timeout(self.desk.next_interval(source, self.env.now))
            if (seconds is not None and self.env.now >= seconds) or self._num_left == 0:
                return
            self._num_left -= 1
            self._begin(self.desk.admit(source, self._make_task, self.env.now))

    def _begin(self, begins: Sequence[Begin]) -> None:
        for begin in begins:
            if self._is_alive(begin.worker, begin.incarnation):  # else the desk will hear of its death
                self.workers[begin.worker].accept(begin.task)
                self._go_on(begin.worker)

    def _go_on(self, name: str) -> None:
        """Begin what a worker can begin now: transfers on free links, and the next task."""
        worker = self.workers[name]
        for sending in worker.choose():
            self.env.process(self._send(name, worker.incarnation, sending))
        task = worker.take()
        if task is not None:
            self.env.process(self._compute(name, worker.incarnation, task))

    def _compute(self, name: str, incarnation: int, task: Task) -> Generator[Event, Any, None]:
        layers, workload = self.stages[task.stage], self.workload
        exit_layer = workload.exit_layer(task.level, task.payload)
        seconds = workload.stage_seconds(task.payload, layers, exit_layer) / self.speeds[name] + self.overhead_sec
        yield self.env.timeout(seconds)
        if not self._is_alive(name, incarnation):
            return
        report = self.reports[name]
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
            if self.desk.answer(answer, self.env.now):
                report.num_exits += 1
        self._go_on(name)

    def _send(self, name: str, incarnation: int, sending: Sending) -> Generator[Event, Any, None]:
        link, task, other = self._links[name, sending.neighbour], sending.task, sending.neighbour
        assert link is not None
        repeats = 1
        while link.loss and self._random.random() < link.loss:
            repeats += 1
        begun = self.env.now
        yield self.env.timeout(repeats * task.num_bytes / link.bytes_per_sec)
        alive = self._is_alive(name, incarnation)
        if alive:
            self.reports[name].num_sent += 1
            self.reports[name].bytes_sent += repeats * task.num_bytes
            self.workers[name].free_link(other)
            self._go_on(name)
        yield self.env.timeout(link.delay_sec)
        seconds, status = self.env.now - begun, None
        if self._is_alive(other, sending.incarnation):
            self.workers[other].accept(task, name)
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
        """Let a worker say at intervals how things stand."""
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

    def _watch(self) -> Generator[Event, Any, None]:
        """Look for deaths and overdue tasks."""
        rules = self.topology.rules
        while True:
            yield self.env.timeout(rules.status_sec)
            deaths, begins = self.desk.check(self.env.now)
            for death in deaths:
                for name, worker in self.workers.items():
                    worker.lose(death.worker, death.incarnation)
                    self._go_on(name)
                if rules.respawn_sec is not None:
                    self.env.process(self._start_anew(death.worker, death.incarnation + 1))
            self._begin(begins)
            if deaths:
                self.desk.refuse_if_stuck()

    def _kill(self, when: float, name: str) -> Generator[Event, Any, None]:
        yield self.env.timeout(when)
        if self.workers.pop(name, None) is not None:
            self.reports[name].num_deaths += 1

    def _start_anew(self, name: str, incarnation: int) -> Generator[Event, Any, None]:
        respawn_sec = self.topology.rules.respawn_sec
        assert respawn_sec is not None  # else nobody starts anew
        yield self.env.timeout(respawn_sec)
        self.workers[name] = self._make_worker(name, incarnation)
        for worker in self.workers.values():
            worker.welcome(name, incarnation)
        self.env.process(self._tell(name, incarnation))
        self._begin(self.desk.welcome(name, incarnation, self.env.now))

    def _report(self) -> RunReport:
        ledger, workload = self.desk.ledger, self.workload
        records = sorted(ledger.records.values(), key=lambda record: record.answered)
        first = min((record.admitted for record in records), default=0.0)
        rows = [record.task.payload for record in records]
        return RunReport(
            seconds=(records[-1].answered - first) if records else 0.0,
            records=records,
            workers=self.reports,
            fidelity=[
                workload.fidelity[row][record.answer.exit_layer - 1] for row, record in zip(rows, records, strict=True)
            ],
            work=[workload.work(row) for row in rows],
            num_admitted=ledger.num_admitted,
            num_restarts=ledger.num_restarts,
            num_late=ledger.num_late,
        )
