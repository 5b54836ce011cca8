"""A worker on a real machine: its state machine, a thread that computes, one for each link, and one for status.

Where the topology declares delay, rate or loss of a link, the sender emulates them: a task occupies its link for bytes
/ rate, once more for each loss, then waits for the delay, in addition to the time that the real network takes. A
declared speed is emulated too: after each stage the worker waits until the measured processor time would have passed at
that speed.
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
"""Tasks of a worker that may wait for a link's delay at the same time."""


class Peers(Protocol):
    """Communication of a worker with the others."""

    def send(self, sending: Sending, sender: str) -> Status:
        """Send a task to a neighbour, and return the neighbour's status.

        Raises:
            ConnectionError: if that incarnation of the neighbour does not answer.
        """

    def tell(self, status: Status, report: WorkerReport) -> None:
        """Send the status to neighbours and source, and the report so far to the source; the message may get lost."""

    def report_moved(self, sending: Sending) -> None:
        """Tell the source where a task is now."""

    def report_answer(self, answer: Answer) -> None:
        """Send a task's answer to the source."""

    def report_failure(self, reason: str) -> None:
        """Tell the source that a task cannot be computed, by this or any other worker."""


class Host:
    """Run a worker.

    Args:
        machine: the worker's queues and decisions.
        model: the worker's share of the model.
        stages: layers of each stage of the system.
        links: links to the worker's neighbours, by name.
        peers: communication with the others.
        speed: emulated speed, relative to one core; None: no emulation.
        random: generator for losses on links.
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
        """Replaced and never modified, so that threads can hand it out."""
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
        """End the threads; tasks in the queues are lost."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        for sender in self._senders.values():
            sender.put(None)
        self._couriers.shutdown(wait=False, cancel_futures=True)

    def accept(self, task: Task, sender: str = "", incarnation: int = 1) -> Status:
        """Take in a task from a neighbour or, without a sender, from the source; return the status."""
        self._note("accepted", task)
        self._change(lambda: self.machine.accept(task, sender, incarnation))
        with self._changed:
            return self.machine.status()

    def hear(self, status: Status) -> None:
        """Record a neighbour's status."""
        self._change(lambda: self.machine.hear(status))

    def lose(self, neighbour: str, incarnation: int) -> None:
        """Record that a neighbour is dead."""
        self._change(lambda: self.machine.lose(neighbour, incarnation))

    def welcome(self, neighbour: str, incarnation: int) -> None:
        """Record that a neighbour was restarted."""
        self._change(lambda: self.machine.welcome(neighbour, incarnation))

    def _change(self, change: Callable[[], None]) -> None:
        """Change the machine, and begin what is then possible."""
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
                # Report first: the machine itself may have failed, and may fail again as it is changed.
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
        """Run a task's stage at the emulated speed; return the seconds and the result."""
        begun, processor = time.perf_counter(), time.thread_time()
        outcome = self.model.run(task.payload, self.stages[task.stage], task.level)
        if self._speed is not None:
            rest = (time.thread_time() - processor) / self._speed - (time.perf_counter() - begun)
            time.sleep(max(rest, 0.0))
        return time.perf_counter() - begun, outcome

    def _transmit(self, neighbour: str) -> None:
        """Send tasks over a link, one after the other."""
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
        """Deliver a task after the link's delay."""
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
        """Send the status at intervals."""
        while not self._stopping:
            with self._changed:
                status, report = self.machine.status(), self._report
            self.peers.tell(status, report)
            time.sleep(self.machine.rules.status_sec)

    def get_report(self) -> WorkerReport:
        """Return the report so far."""
        return dataclasses.replace(self._report, events=list(self._events))

    def _count(self, **done: Any) -> None:
        """Add to the report; called by each link's thread."""
        with self._changed:
            self._report = self._report.add(WorkerReport(**done))

    def _note(self, kind: Literal["accepted", "begun", "computed", "sent"], task: Task, seconds: float = 0.0) -> None:
        self._events.append(Event(kind, task.number, task.attempt, task.stage, time.monotonic(), seconds))
