"""Model-distributed inference under simpy: the same workers and desk as in the real system, in simulated time.

The simulation covers service times (those of the workload divided by a worker's speed), cores shared by the workers of
a machine if the topology counts them, links with delay, rate and loss (each direction carries one task at a time),
messages about queues, which take a link's delay, deaths and restarts. The further costs of a real system, for calls,
copies and caches, are measured on one (`daisy.distributed.pipeline.timeline.measure_costs`) or taken as zero. Workers'
messages to the source take no time.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from random import Random
from typing import Any

from daisy.distributed.pipeline.desk import Desk
from daisy.distributed.pipeline.run_report import RunEndedError, RunReport
from daisy.distributed.pipeline.simulated_machine import Event
from daisy.distributed.pipeline.simulated_workers import SimulatedWorkers
from daisy.distributed.pipeline.tasks import Task
from daisy.distributed.pipeline.timeline import Costs
from daisy.distributed.pipeline.topology import Topology
from daisy.distributed.pipeline.worker import Routes
from daisy.distributed.pipeline.workload import Wire, Workload
from daisy.errors import UsageError

NO_COSTS = Costs()


class Simulation(SimulatedWorkers):
    """One simulated run.

    Args:
        topology: the workers, sources and rules.
        workload: the utterances, taken in turn.
        rate: tasks per second of sources without a rate in the topology.
        level: initial exit level.
        seed: seed of all draws.
        wire: format of states on links.
        load: times in seconds, each with a factor on the rate from then on.
        even: whether tasks arrive at even intervals.
        kills: times in seconds and workers to kill.
        routes: with ``routed`` offloading, each worker's share of each stage.
        costs: costs of a real system.

    Raises:
        UsageError: if simpy is missing, workload and topology belong to different models, or a worker to kill does not
            exist.
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
        costs: Costs = NO_COSTS,
    ):
        try:
            import simpy
        except ModuleNotFoundError:
            raise UsageError("the simulator needs simpy", remedy="ray") from None
        if workload.num_layers != topology.num_layers:
            raise UsageError(
                f"the topology is for {topology.num_layers} layers, and the workload has {workload.num_layers}"
            )
        for when, name in kills:
            topology.worker(name)
            if not 0 <= when < float("inf"):
                raise UsageError(f"a worker is killed at seconds from 0 on, found {when:g}")
        self.kills = kills
        desk = Desk(
            topology,
            Random(f"{seed} source"),
            rate=rate,
            level=level,
            num_levels=workload.num_levels,
            load=load,
            even=even,
        )
        super().__init__(
            simpy.Environment(), topology, workload, desk, seed=seed, wire=wire, routes=routes, costs=costs
        )
        self._num_left = 0

    def run(self, *, num_tasks: int | None = None, seconds: float | None = None) -> RunReport:
        """Admit tasks, and continue until all are answered.

        Args:
            num_tasks: tasks to admit in all; or
            seconds: time for which to admit tasks.

        Raises:
            RunEndedError: if a stage has lost its last worker for good; the error has the report of the run so far.
            UsageError: if neither or both are given.
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
        try:
            self.env.run(until=self.env.all_of(arrivals))
            while self.desk.ledger.num_open:
                self.env.step()
        except UsageError as error:
            raise RunEndedError(self._report(str(error))) from None
        return self._report()

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
        self._end(name)

    def _start_anew(self, name: str, incarnation: int) -> Generator[Event, Any, None]:
        respawn_sec = self.topology.rules.respawn_sec
        assert respawn_sec is not None  # without it no worker restarts
        yield self.env.timeout(respawn_sec)
        self._start(name, incarnation)
        for worker in self.workers.values():
            worker.welcome(name, incarnation)
        self.env.process(self._tell(name, incarnation))
        self._begin(self.desk.welcome(name, incarnation, self.env.now))

    def _report(self, error: str = "") -> RunReport:
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
            error=error,
        )
