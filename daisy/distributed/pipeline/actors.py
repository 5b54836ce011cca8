"""The Ray actors: one for each worker, and the source's desk.

Plain classes: Ray is imported where they are started (`daisy.distributed.pipeline.system`).
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

import numpy
from numpy.typing import NDArray

from daisy.distributed.pipeline.desk import Begin, Death, Desk
from daisy.distributed.pipeline.host import Host
from daisy.distributed.pipeline.run_report import WorkerReport
from daisy.distributed.pipeline.stages import ExitSettings, ModelPart, Package, StageModel
from daisy.distributed.pipeline.tasks import Answer, Status, Task
from daisy.distributed.pipeline.topology import Topology
from daisy.distributed.pipeline.worker import Routes, Sending, Worker

Handle = Any
"""Of a Ray actor."""
SAMPLE_RATE = 16000
SEND_TIMEOUT_SEC = 30.0
"""After which a neighbour counts as not answering."""


@dataclass(frozen=True, kw_only=True)
class WorkerSetup:
    """What a worker's actor needs."""

    name: str
    incarnation: int
    topology: Topology
    settings: ExitSettings
    seed: int
    routes: Routes | None = None
    device: str = "cpu"
    keep_states: bool = False


@dataclass(frozen=True, kw_only=True)
class RunSetup:
    """What the desk's actor needs."""

    topology: Topology
    num_levels: int
    num_tasks: int
    rate: float
    level: int
    seed: int
    load: Sequence[tuple[float, float]] = ()
    even: bool = False


class WorkerActor:
    """A worker's process.

    Args:
        setup: who it is.
        part: its layers.
    """

    def __init__(self, setup: WorkerSetup, part: ModelPart):
        import torch

        place = setup.topology.worker(setup.name)
        torch.set_num_threads(place.threads)
        self.setup, self._handles = setup, dict[str, tuple[int, Handle]]()
        self._desk: Handle = None
        self._model = StageModel(part, setup.settings, setup.device, keep_states=setup.keep_states)
        stages = setup.topology.stages
        links = {
            neighbour.name: link
            for neighbour in setup.topology.neighbours_of(setup.name)
            if (link := setup.topology.link(setup.name, neighbour.name)) is not None
        }
        machine = Worker(
            setup.name,
            setup.topology.stages_of(setup.name),
            setup.topology.neighbours_of(setup.name),
            setup.topology.rules,
            Random(f"{setup.seed} {setup.name} {setup.incarnation}"),
            service_sec=self._measure(stages, place.speed or 1.0),
            routes=setup.routes,
            incarnation=setup.incarnation,
        )
        self._host = Host(
            machine,
            self._model,
            stages,
            links,
            self,
            speed=place.speed,
            random=Random(f"{setup.seed} {setup.name} {setup.incarnation} links"),
        )

    def describe(self) -> dict[str, Any]:
        """Return the process's number, and how many bytes of weights it holds."""
        return {"pid": os.getpid(), "weight_bytes": self._model.num_bytes}

    def connect(self, handles: Mapping[str, tuple[int, Handle]], desk: Handle) -> None:
        """Learn where the others are, and begin."""
        self._handles.update(handles)
        starts = self._desk is None
        self._desk = desk
        for name, (incarnation, _) in handles.items():
            self._host.welcome(name, incarnation)
        if starts:
            self._host.start()

    def receive(self, task: Task, sender: str, incarnation: int) -> Status | None:
        """Take a task in; None where it was meant for an earlier incarnation."""
        return self._host.accept(task, sender) if incarnation == self.setup.incarnation else None

    def hear(self, status: Status) -> None:
        """Note what a neighbour says of itself."""
        self._host.hear(status)

    def lose(self, neighbour: str, incarnation: int) -> None:
        """Note that a neighbour is dead."""
        self._host.lose(neighbour, incarnation)

    def get_report(self) -> WorkerReport:
        """Return what was done so far."""
        return self._host.get_report()

    def send(self, sending: Sending, sender: str) -> Status:
        """See `daisy.distributed.pipeline.host.Peers`."""
        import ray

        incarnation, handle = self._handles.get(sending.neighbour, (0, None))
        if handle is None or incarnation != sending.incarnation:
            raise ConnectionError(sending.neighbour)
        try:
            call = handle.receive.remote(sending.task, sender, sending.incarnation)
            status: Status | None = ray.get(call, timeout=SEND_TIMEOUT_SEC)
        except (ray.exceptions.RayError, TimeoutError):
            raise ConnectionError(sending.neighbour) from None
        if status is None:
            raise ConnectionError(sending.neighbour)
        return status

    def tell(self, status: Status) -> None:
        """See `daisy.distributed.pipeline.host.Peers`."""
        for neighbour in self.setup.topology.neighbours_of(self.setup.name):
            if neighbour.name in self._handles:
                self._handles[neighbour.name][1].hear.remote(status)
        self._desk.hear.remote(status)

    def report_moved(self, sending: Sending) -> None:
        """See `daisy.distributed.pipeline.host.Peers`."""
        self._desk.moved.remote(sending.task.replace(payload=None), sending.neighbour, sending.incarnation)

    def report_answer(self, answer: Answer) -> None:
        """See `daisy.distributed.pipeline.host.Peers`."""
        self._desk.answer.remote(answer)

    def _measure(self, stages: Sequence[range], speed: float) -> dict[int, float]:
        """Time each held stage on a second of silence, to begin with."""
        package: Any = Package(waveform=numpy.zeros(SAMPLE_RATE, dtype=numpy.float32))
        held = self.setup.topology.stages_of(self.setup.name)
        if held.start > 0:
            return {}
        seconds = {}
        for stage in held:
            if not isinstance(package, Package):
                break
            self._model.run(package, stages[stage], -1)  # the first time is slow
            begun = time.thread_time()
            package = self._model.run(package, stages[stage], -1)
            seconds[stage] = (time.thread_time() - begun) / speed
        return seconds


@dataclass(kw_only=True)
class Progress:
    """How far a run is."""

    num_answered: int
    is_done: bool
    deaths: list[Death] = field(default_factory=list)
    error: str = ""


class DeskActor:
    """The source's process: admits utterances, follows them, and notices deaths.

    Args:
        setup: of the run.
        waveforms: (N,) each, taken in turn.
    """

    def __init__(self, setup: RunSetup, waveforms: Sequence[NDArray[numpy.float32]]):
        self.setup, self._waveforms = setup, list(waveforms)
        self._desk = Desk(
            setup.topology,
            Random(f"{setup.seed} source"),
            rate=setup.rate,
            level=setup.level,
            num_levels=setup.num_levels,
            load=setup.load,
            even=setup.even,
        )
        self._lock = threading.Lock()
        self._handles: dict[str, tuple[int, Handle]] = {}
        self._num_left = setup.num_tasks
        self._deaths: list[Death] = []
        self._error = ""
        self._began = 0.0

    def start(self, handles: Mapping[str, tuple[int, Handle]]) -> None:
        """Begin to admit."""
        self._handles.update(handles)
        self._began = time.monotonic()
        for source in range(len(self.setup.topology.sources)):
            threading.Thread(target=self._arrive, args=(source,), daemon=True).start()
        threading.Thread(target=self._watch, daemon=True).start()

    def hear(self, status: Status) -> None:
        """Note what a worker says of itself."""
        with self._lock:
            self._desk.hear(status, self._now())

    def moved(self, task: Task, worker: str, incarnation: int) -> None:
        """Note where a task is now."""
        with self._lock:
            self._begin(self._desk.moved(task, worker, incarnation, self._now()))

    def answer(self, answer: Answer) -> None:
        """Note an answer."""
        with self._lock:
            self._desk.answer(answer, self._now())

    def welcome(self, worker: str, incarnation: int, handle: Handle) -> None:
        """Note that a worker was started anew."""
        with self._lock:
            self._handles[worker] = (incarnation, handle)
            self._begin(self._desk.welcome(worker, incarnation, self._now()))

    def poll(self) -> Progress:
        """Say how far the run is, and which deaths were noticed since the last time."""
        with self._lock:
            deaths, self._deaths = self._deaths, []
            ledger = self._desk.ledger
            return Progress(
                num_answered=len(ledger.records),
                is_done=self._num_left <= 0 and not ledger.num_open,
                deaths=deaths,
                error=self._error,
            )

    def collect(self) -> tuple[list[Any], int, int, int]:
        """Return the records, and how many were admitted, begun again, and answered late."""
        with self._lock:
            ledger = self._desk.ledger
            records = sorted(ledger.records.values(), key=lambda record: record.answered)
            return records, ledger.num_admitted, ledger.num_restarts, ledger.num_late

    def _now(self) -> float:
        return time.monotonic() - self._began

    def _make_task(self, number: int, level: int, priority: int) -> Task:
        waveform = self._waveforms[number % len(self._waveforms)]
        package = Package(waveform=waveform)
        return Task(
            number=number,
            work=len(waveform) / SAMPLE_RATE,
            num_bytes=package.num_bytes,
            level=level,
            priority=priority,
            payload=package,
        )

    def _arrive(self, source: int) -> None:
        """Admit a source's tasks, each at its time whatever the last one took."""
        due = self._now()
        while True:
            with self._lock:
                due += self._desk.next_interval(source, self._now())
            time.sleep(max(due - self._now(), 0.0))
            with self._lock:
                if self._num_left <= 0:
                    return
                self._num_left -= 1
                self._begin(self._desk.admit(source, self._make_task, self._now()))

    def _begin(self, begins: Sequence[Begin]) -> None:
        for begin in begins:
            incarnation, handle = self._handles[begin.worker]
            if incarnation == begin.incarnation:  # else it will be begun again when the death is noticed
                handle.receive.remote(begin.task, "", begin.incarnation)

    def _watch(self) -> None:
        """Look for deaths and overdue tasks."""
        while True:
            time.sleep(self.setup.topology.rules.status_sec)
            with self._lock:
                now = self._now()
                deaths, begins = self._desk.check(now)
                for death in deaths:
                    for name, (_, handle) in self._handles.items():
                        if name != death.worker:
                            handle.lose.remote(death.worker, death.incarnation)
                self._deaths += deaths
                self._begin(begins)
                if deaths:
                    try:
                        self._desk.refuse_if_stuck()
                    except ValueError as error:
                        self._error = str(error)
