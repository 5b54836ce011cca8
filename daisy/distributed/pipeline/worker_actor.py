"""The Ray actor of a worker.

A plain class: Ray is imported where the actor is started (`daisy.distributed.pipeline.system`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy

from daisy.distributed.pipeline.host import Host
from daisy.distributed.pipeline.model_parts import ModelPart
from daisy.distributed.pipeline.run_report import WorkerReport
from daisy.distributed.pipeline.stages import ExitSettings, Package, StageModel
from daisy.distributed.pipeline.tasks import Answer, Status, Task
from daisy.distributed.pipeline.topology import Topology
from daisy.distributed.pipeline.worker import Routes, Sending, Worker
from daisy.distributed.pipeline.workload import SAMPLE_RATE

Handle = Any
"""Handle of a Ray actor."""
SEND_TIMEOUT_SEC = 30.0
"""Seconds after which a neighbour counts as not answering."""


@dataclass(frozen=True, kw_only=True)
class WorkerSetup:
    """Settings of a worker's actor."""

    name: str
    incarnation: int
    topology: Topology
    settings: ExitSettings
    seed: int
    routes: Routes | None = None
    device: str = "cpu"
    keep_states: bool = False


class WorkerActor:
    """A worker's process.

    Args:
        setup: settings of the worker.
        part: the worker's layers.
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
        """Return the process ID, and the number of bytes of weights."""
        return {"pid": os.getpid(), "weight_bytes": self._model.num_bytes}

    def connect(self, handles: Mapping[str, tuple[int, Handle]], desk: Handle) -> None:
        """Receive the handles of the others, and begin."""
        self._handles.update(handles)
        starts = self._desk is None
        self._desk = desk
        for name, (incarnation, _) in handles.items():
            self._host.welcome(name, incarnation)
        if starts:
            self._host.start()

    def receive(self, task: Task, incarnation: int, sender: str = "", sender_incarnation: int = 1) -> Status | None:
        """Take in a task, from the source if no sender is given; return None if it was for an earlier incarnation."""
        if incarnation != self.setup.incarnation:
            return None
        return self._host.accept(task, sender, sender_incarnation)

    def hear(self, status: Status) -> None:
        """Record a neighbour's status."""
        self._host.hear(status)

    def lose(self, neighbour: str, incarnation: int) -> None:
        """Record that a neighbour is dead."""
        self._host.lose(neighbour, incarnation)

    def get_report(self) -> WorkerReport:
        """Return the report so far."""
        return self._host.get_report()

    def send(self, sending: Sending, sender: str) -> Status:
        """See `daisy.distributed.pipeline.host.Peers`."""
        import ray

        incarnation, handle = self._handles.get(sending.neighbour, (0, None))
        if handle is None or incarnation != sending.incarnation:
            raise ConnectionError(sending.neighbour)
        try:
            call = handle.receive.remote(sending.task, sending.incarnation, sender, self.setup.incarnation)
            status: Status | None = ray.get(call, timeout=SEND_TIMEOUT_SEC)
        except (ray.exceptions.RayError, TimeoutError):
            raise ConnectionError(sending.neighbour) from None
        if status is None:
            raise ConnectionError(sending.neighbour)
        return status

    def tell(self, status: Status, report: WorkerReport) -> None:
        """See `daisy.distributed.pipeline.host.Peers`."""
        for neighbour in self.setup.topology.neighbours_of(self.setup.name):
            if neighbour.name in self._handles:
                self._handles[neighbour.name][1].hear.remote(status)
        self._desk.hear.remote(status, report)

    def report_moved(self, sending: Sending) -> None:
        """See `daisy.distributed.pipeline.host.Peers`."""
        self._desk.moved.remote(sending.task.replace(payload=None), sending.neighbour, sending.incarnation)

    def report_answer(self, answer: Answer) -> None:
        """See `daisy.distributed.pipeline.host.Peers`."""
        self._desk.answer.remote(answer)

    def report_failure(self, reason: str) -> None:
        """See `daisy.distributed.pipeline.host.Peers`."""
        self._desk.refuse.remote(reason)

    def _measure(self, stages: Sequence[range], speed: float) -> dict[int, float]:
        """Time each held stage on one second of silence, as a first estimate."""
        package: Any = Package(waveform=numpy.zeros(SAMPLE_RATE, dtype=numpy.float32))
        held = self.setup.topology.stages_of(self.setup.name)
        if held.start > 0:
            return {}
        seconds = {}
        for stage in held:
            if not isinstance(package, Package):
                break
            self._model.run(package, stages[stage], -1)  # the first run is slow
            begun = time.thread_time()
            package = self._model.run(package, stages[stage], -1)
            seconds[stage] = (time.thread_time() - begun) / speed
        return seconds
