"""The Ray actor of the source's desk.

A plain class: Ray is imported where the actor is started (`daisy.distributed.pipeline.system`).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

from numpy.typing import NDArray

from daisy.distributed.pipeline.desk import Begin, Death, Desk
from daisy.distributed.pipeline.ledger import Record
from daisy.distributed.pipeline.run_report import WorkerReport
from daisy.distributed.pipeline.stages import Package
from daisy.distributed.pipeline.tasks import Answer, Status, Task
from daisy.distributed.pipeline.topology import Topology
from daisy.distributed.pipeline.workload import SAMPLE_RATE
from daisy.errors import UsageError

Handle = Any
"""Handle of a Ray actor."""


@dataclass(frozen=True, kw_only=True)
class RunSetup:
    """Settings of the desk's actor."""

    topology: Topology
    admission: Mapping[str, Any]
    """Arguments of `daisy.distributed.pipeline.admission.make_admissions`."""
    num_tasks: int | None
    """Tasks to admit in all; None: as many as arrive in ``seconds``."""
    seconds: float | None
    seed: int


@dataclass(kw_only=True)
class Progress:
    """Progress of a run."""

    num_answered: int
    is_done: bool
    deaths: list[Death] = field(default_factory=list)
    error: str = ""


@dataclass(frozen=True, kw_only=True)
class Collected:
    """Records and counts of a run."""

    records: list[Record]
    num_admitted: int
    num_restarts: int
    num_late: int
    done: Mapping[str, Mapping[int, WorkerReport]]
    """Last report of each incarnation of a worker."""
    began: float
    """Start time, by the clock of the desk's machine."""


class DeskActor:
    """The source's process: admits utterances, tracks them, and notices deaths.

    Args:
        setup: settings of the run.
        waveforms: waveforms, (N,) each, packed for links and taken in turn.
    """

    def __init__(self, setup: RunSetup, waveforms: Sequence[NDArray[Any]]):
        self.setup, self._waveforms = setup, list(waveforms)
        self._desk = Desk(
            setup.topology,
            Random(f"{setup.seed} source"),
            **setup.admission,
        )
        self._lock = threading.Lock()
        self._handles: dict[str, tuple[int, Handle]] = {}
        self._num_left = setup.num_tasks
        self._deaths: list[Death] = []
        self._done: dict[str, dict[int, WorkerReport]] = {worker.name: {} for worker in setup.topology.workers}
        self._error = ""
        self._began = time.monotonic()

    def start(self, handles: Mapping[str, tuple[int, Handle]]) -> None:
        """Start admitting tasks."""
        with self._lock:
            self._handles.update(handles)
            self._began = time.monotonic()
            self._desk.begin_watch(self._now())
        for source in range(len(self.setup.topology.sources)):
            threading.Thread(target=self._guard, args=(self._arrive, source), daemon=True).start()
        threading.Thread(target=self._guard, args=(self._watch,), daemon=True).start()

    def _guard(self, work: Callable[..., None], *arguments: int) -> None:
        """Run a thread's work; if that fails, end the run, which would otherwise be waited for in vain."""
        try:
            work(*arguments)
        except Exception as error:
            self.refuse(f"the source broke down: {error!r}")

    def hear(self, status: Status, report: WorkerReport) -> None:
        """Record a worker's status and report."""
        with self._lock:
            self._done[status.worker][status.incarnation] = report
            self._desk.hear(status, self._now())

    def moved(self, task: Task, worker: str, incarnation: int) -> None:
        """Record where a task is now."""
        with self._lock:
            self._begin(self._desk.moved(task, worker, incarnation, self._now()))

    def answer(self, answer: Answer) -> None:
        """Record an answer."""
        with self._lock:
            self._desk.answer(answer, self._now())

    def refuse(self, reason: str) -> None:
        """Record why the run cannot continue."""
        with self._lock:
            self._error = self._error or reason

    def welcome(self, worker: str, incarnation: int, handle: Handle) -> None:
        """Record that a worker was restarted."""
        with self._lock:
            self._handles[worker] = (incarnation, handle)
            self._begin(self._desk.welcome(worker, incarnation, self._now()))

    def give_up(self, worker: str, reason: str) -> None:
        """Record that a worker could not be restarted; others do its work, if there are any."""
        with self._lock:
            self._desk.give_up(worker)
            try:
                self._desk.refuse_if_stuck()
            except UsageError as error:
                self._error = self._error or f"{error}; {reason}"

    def poll(self) -> Progress:
        """Return the progress of the run, and the deaths noticed since the last call."""
        with self._lock:
            deaths, self._deaths = self._deaths, []
            ledger = self._desk.ledger
            return Progress(
                num_answered=len(ledger.records),
                is_done=self._has_admitted_all() and not ledger.num_open,
                deaths=deaths,
                error=self._error,
            )

    def collect(self) -> Collected:
        """Return the records of the ledger."""
        with self._lock:
            ledger = self._desk.ledger
            records = [replace(record, task=replace(record.task, payload=None)) for record in ledger.records.values()]
            return Collected(
                records=sorted(records, key=lambda record: record.answered),
                num_admitted=ledger.num_admitted,
                num_restarts=ledger.num_restarts,
                num_late=ledger.num_late,
                done={worker: dict(told) for worker, told in self._done.items()},
                began=self._began,
            )

    def _has_admitted_all(self) -> bool:
        return self._num_left == 0 or (self.setup.seconds is not None and self._now() >= self.setup.seconds)

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
        """Admit each task of a source at its time, however long the previous one took."""
        due = self._now()
        while True:
            with self._lock:
                due += self._desk.next_interval(source, self._now())
            time.sleep(max(due - self._now(), 0.0))
            with self._lock:
                if self._has_admitted_all():
                    return
                if self._num_left is not None:
                    self._num_left -= 1
                self._begin(self._desk.admit(source, self._make_task, self._now()))

    def _begin(self, begins: Sequence[Begin]) -> None:
        for begin in begins:
            incarnation, handle = self._handles[begin.worker]
            if incarnation == begin.incarnation:  # otherwise it is begun again when the death is noticed
                handle.receive.remote(begin.task, begin.incarnation)

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
                    except UsageError as error:
                        self._error = self._error or str(error)
