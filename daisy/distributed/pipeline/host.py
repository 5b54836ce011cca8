"""A worker on a real machine: its state machine with a thread that computes, one for each link, and one that tells.

Links are modelled in the sender where the topology declares delay, rate or loss: a task occupies its link for bytes /
rate, once more for each loss, then waits for the delay, beside the time that the real network takes. A declared speed
is modelled too: after each stage the worker waits until the processor time that it took would be over at that speed.
"""

from __future__ import annotations

import dataclasses
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from random import Random
from typing import Any, Literal, Protocol

from daisy.distributed.pipeline.run_report import WorkerReport
from daisy.distributed.pipeline.stages import Left, Package, StageModel
from daisy.distributed.pipeline.tasks import Answer, Status, Task
from daisy.distributed.pipeline.timeline import MAX_EVENTS, Event
from daisy.distributed.pipeline.topology import Link
from daisy.distributed.pipeline.worker import Sending, Worker

MAX_ON_THE_WAY = 64
"""Tasks of a worker that wait for a link's delay at a time."""


class Peers(Protocol):
    """How a worker reaches the others."""

    def send(self, sending: Sending, sender: str) -> Status:
        """Hand a task to a neighbour, and return what that says of itself.

        Raises:
            ConnectionError: where that incarnation of the neighbour does not answer.
        """

    def tell(self, status: Status, report: WorkerReport) -> None:
        """Tell neighbours and source how things stand, and the source what was done so far; it may get lost."""

    def report_moved(self, sending: Sending) -> None:
        """Tell the source where a task is now."""

    def report_answer(self, answer: Answer) -> None:
        """Tell the source what came of a task."""

    def report_failure(self, reason: str) -> None:
        """Tell the source that a task cannot be computed: no other worker could do better."""


class Host:
    """Runs a worker.

    Args:
        machine: the worker's queues and decisions.
        model: its share of the model.
        stages: layers of each stage of the system.
        links: to its neighbours, by name.
        peers: how it reaches them.
        speed: emulated, of one core; None: as fast as it is.
        random: of losses on links.
    """

    def __init__(
        self,
        machine: Worker,
        model: StageModel,
        stages: Sequence[range],
        links: Mapping[str, Link],
        peers: Peers,
        *,
        speed: float | None = None,
        random: Random,
    ):
        self.machine, self.model, self.stages, self.peers = machine, model, stages, peers
        self._report = WorkerReport()
        """Replaced and never changed: threads hand it out as it was."""
        self._events: deque[Event] = deque(maxlen=MAX_EVENTS)
        self._links, self._speed, self._random = links, speed, random
        self._changed = threading.Condition()
        self._stopping = False
        self._senders: dict[str, queue.Queue[Sending | None]] = {name: queue.Queue() for name in links}
        self._couriers = ThreadPoolExecutor(MAX_ON_THE_WAY, thread_name_prefix="courier")
        self._threads = [
            threading.Thread(target=self._compute, name="compute", daemon=True),
            threading.Thread(target=self._tell, name="tell", daemon=True),
            *(
                threading.Thread(target=self._transmit, args=(name,), name=f"link to {name}", daemon=True)
                for name in links
            ),
        ]

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End the threads; what is in the queues is lost."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        for sender in self._senders.values():
            sender.put(None)
        self._couriers.shutdown(wait=False, cancel_futures=True)

    def accept(self, task: Task, sender: str = "", incarnation: int = 1) -> Status:
        """Take a task in, of an incarnation of a neighbour or, without one, of the source; say how things stand."""
        self._note("accepted", task)
        self._change(lambda: self.machine.accept(task, sender, incarnation))
        with self._changed:
            return self.machine.status()

    def hear(self, status: Status) -> None:
        """Note what a neighbour says of itself."""
        self._change(lambda: self.machine.hear(status))

    def lose(self, neighbour: str, incarnation: int) -> None:
        """Note that a neighbour is dead."""
        self._change(lambda: self.machine.lose(neighbour, incarnation))

    def welcome(self, neighbour: str, incarnation: int) -> None:
        """Note that a neighbour was started anew."""
        self._change(lambda: self.machine.welcome(neighbour, incarnation))

    def _change(self, change: Callable[[], None]) -> None:
        """Change the machine, and go on with what can be begun then."""
        with self._changed:
            change()
            self._go_on()

    def _go_on(self) -> None:
        for sending in self.machine.choose():
            self._senders[sending.neighbour].put(sending)
        self._changed.notify_all()

    def _compute(self) -> None:
        """Compute stage after stage."""
        while True:
            with self._changed:
                task = None
                while not self._stopping and (task := self.machine.take()) is None:
                    self._changed.wait()
                if task is None:
                    return
            try:
                self._run_stage(task)
            except Exception as error:  # whatever it was, this task's answer would be waited for in vain
                # First of all: what failed may be the machine itself, and fail again as it is changed.
                self.peers.report_failure(f"worker {self.machine.name}, task {task.number}: {error!r}")
                self._change(self.machine.abandon)

    def _run_stage(self, task: Task) -> None:
        begun = time.perf_counter()
        self._note("begun", task)
        seconds, outcome = self.run_paced(task)
        self._note("computed", task, seconds)
        answer, after = None, None
        if isinstance(outcome, Left):
            answer = Answer(
                number=task.number,
                attempt=task.attempt,
                exit_layer=outcome.exit_layer,
                worker=self.machine.name,
                num_bytes=outcome.num_bytes,
                payload=outcome,
            )
        else:
            after = task.replace(stage=task.stage + 1, num_bytes=outcome.num_bytes, payload=outcome)
        self._count(busy_sec=time.perf_counter() - begun, num_computed=1, num_exits=int(answer is not None))
        self._change(lambda: self.machine.finish(seconds, after))
        if answer is not None:
            self.peers.report_answer(answer)

    def run_paced(self, task: Task) -> tuple[float, Package | Left]:
        """Run a task's stage at the emulated speed; return the seconds and what came of it."""
        begun, processor = time.perf_counter(), time.thread_time()
        outcome = self.model.run(task.payload, self.stages[task.stage], task.level)
        if self._speed is not None:
            rest = (time.thread_time() - processor) / self._speed - (time.perf_counter() - begun)
            time.sleep(max(rest, 0.0))
        return time.perf_counter() - begun, outcome

    def _transmit(self, neighbour: str) -> None:
        """Put one task after the other on a link."""
        link = self._links[neighbour]
        while (sending := self._senders[neighbour].get()) is not None:
            repeats = 1
            while link.loss and self._random.random() < link.loss:
                repeats += 1
            begun, size = time.perf_counter(), repeats * sending.task.num_bytes
            self._note("sent", sending.task, size / link.bytes_per_sec + link.delay_sec)
            time.sleep(size / link.bytes_per_sec)
            self._count(num_sent=1, bytes_sent=size)
            arrives = time.perf_counter() + link.delay_sec
            if not self._stopping:
                self._couriers.submit(self._deliver, sending, begun, arrives)
            self._change(lambda: self.machine.free_link(neighbour))

    def _deliver(self, sending: Sending, begun: float, arrives: float) -> None:
        """Hand a task over after the link's delay."""
        time.sleep(max(arrives - time.perf_counter(), 0.0))
        try:
            status = self.peers.send(sending, self.machine.name)
        except Exception as error:  # nobody reads a courier's future, and the task would be waited for in vain
            if not isinstance(error, ConnectionError):
                task = f"task {sending.task.number} to {sending.neighbour}"
                self.peers.report_failure(f"worker {self.machine.name}, {task}: {error!r}")
            self._change(lambda: self.machine.failed(sending))
            return
        seconds = time.perf_counter() - begun

        def note() -> None:
            self.machine.delivered(sending.neighbour, sending.task.num_bytes, seconds)
            self.machine.hear(status)

        self._change(note)
        self.peers.report_moved(sending)

    def _tell(self) -> None:
        """Say at intervals how things stand."""
        while not self._stopping:
            with self._changed:
                status, report = self.machine.status(), self._report
            self.peers.tell(status, report)
            time.sleep(self.machine.rules.status_sec)

    def get_report(self) -> WorkerReport:
        """Return what was done so far."""
        return dataclasses.replace(self._report, events=list(self._events))

    def _count(self, **done: Any) -> None:
        """Add to the report; each link's thread does."""
        with self._changed:
            self._report = self._report.add(WorkerReport(**done))

    def _note(self, kind: Literal["accepted", "begun", "computed", "sent"], task: Task, seconds: float = 0.0) -> None:
        self._events.append(Event(kind, task.number, task.attempt, task.stage, time.monotonic(), seconds))
