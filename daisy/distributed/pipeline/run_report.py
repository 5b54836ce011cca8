"""What a run of the simulator or of the real system has shown, as numbers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from daisy.distributed.pipeline.ledger import Record
from daisy.distributed.pipeline.timeline import Event
from daisy.errors import UsageError


@dataclass(kw_only=True)
class WorkerReport:
    """What a worker did, or one of its incarnations."""

    busy_sec: float = 0.0
    num_computed: int = 0
    """Stages of tasks."""
    num_exits: int = 0
    """Tasks that left here."""
    num_sent: int = 0
    bytes_sent: int = 0
    num_deaths: int = 0
    events: list[Event] = field(default_factory=list)
    """The latest ones, in their order; of a real worker, of its last incarnation."""

    def add(self, later: WorkerReport) -> WorkerReport:
        """Return what was done together with what a later incarnation did, whose events it has."""
        return WorkerReport(
            busy_sec=self.busy_sec + later.busy_sec,
            num_computed=self.num_computed + later.num_computed,
            num_exits=self.num_exits + later.num_exits,
            num_sent=self.num_sent + later.num_sent,
            bytes_sent=self.bytes_sent + later.bytes_sent,
            num_deaths=self.num_deaths + later.num_deaths,
            events=later.events,
        )


@dataclass(kw_only=True)
class RunReport:
    """A run: T seconds from the first admission to the last answer."""

    seconds: float
    records: list[Record]
    """In the order of the answers."""
    workers: dict[str, WorkerReport]
    fidelity: list[float]
    """Of each record; empty where it was not measured."""
    work: list[float]
    """Seconds of audio of each record."""
    num_admitted: int
    num_restarts: int = 0
    num_late: int = 0
    """Answers that came when the task had one already."""
    began: float = 0.0
    """The moment from which records count, of the clock of the workers' events."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""
    """Why the run could not go on, where it could not: then the rest is what was done until then."""

    @property
    def throughput(self) -> float:
        """Answered tasks a second."""
        return len(self.records) / self.seconds if self.seconds else 0.0

    def latencies(self) -> list[float]:
        """List the seconds from admission to answer, rising."""
        return sorted(record.answered - record.admitted for record in self.records)

    def to_json(self) -> dict[str, Any]:
        """Return everything but the single records."""
        exits = Counter(record.answer.exit_layer for record in self.records)
        latencies = self.latencies()
        return {
            **self.settings,
            **({"error": self.error} if self.error else {}),
            "seconds": self.seconds,
            "num_admitted": self.num_admitted,
            "num_answered": len(self.records),
            "num_restarts": self.num_restarts,
            "num_late_answers": self.num_late,
            "throughput": self.throughput,
            "audio_sec_per_sec": sum(self.work) / self.seconds if self.seconds else 0.0,
            "latency_sec": {name: percentile(latencies, share) for name, share in PERCENTILES.items()},
            "mean_exit_layer": mean([record.answer.exit_layer for record in self.records]),
            "exit_layers": {str(layer): exits[layer] for layer in sorted(exits)},
            "mean_level": mean([record.task.level for record in self.records]),
            "fidelity": mean(self.fidelity) if self.fidelity else None,
            "by_priority": self._by_priority(),
            "bytes_sent": sum(worker.bytes_sent for worker in self.workers.values()),
            "answer_bytes": sum(record.answer.num_bytes for record in self.records),
            "workers": {
                name: {
                    "utilisation": worker.busy_sec / self.seconds if self.seconds else 0.0,
                    "num_computed": worker.num_computed,
                    "num_exits": worker.num_exits,
                    "num_sent": worker.num_sent,
                    "bytes_sent": worker.bytes_sent,
                    "num_deaths": worker.num_deaths,
                }
                for name, worker in self.workers.items()
            },
        }

    def windows(self, seconds: float) -> list[dict[str, float]]:
        """Cut the run into windows by the time of the answer, with throughput, latency, level and fidelity of each."""
        rows = []
        last = self.records[-1].answered if self.records else 0.0
        count = max(1, math.ceil(last / seconds))
        numbers = [min(int(record.answered / seconds), count - 1) for record in self.records]
        for index in range(count):
            inside = [i for i, number in enumerate(numbers) if number == index]
            covered = min(seconds, last - index * seconds)  # the last answer ends the run
            latencies = sorted(self.records[i].answered - self.records[i].admitted for i in inside)
            rows.append(
                {
                    "begin_sec": index * seconds,
                    "throughput": len(inside) / covered if covered else 0.0,
                    "median_latency_sec": percentile(latencies, 0.5),
                    "mean_level": mean([self.records[i].task.level for i in inside]),
                    "fidelity": mean([self.fidelity[i] for i in inside]) if self.fidelity else 0.0,
                }
            )
        return rows

    def _by_priority(self) -> dict[str, dict[str, float]]:
        priorities = sorted({record.task.priority for record in self.records})
        if len(priorities) < 2:
            return {}
        table = {}
        for priority in priorities:
            mine = [record for record in self.records if record.task.priority == priority]
            latencies = sorted(record.answered - record.admitted for record in mine)
            table[str(priority)] = {"num_answered": len(mine), "median_latency_sec": percentile(latencies, 0.5)}
        return table


class RunEndedError(UsageError):
    """A run that could not go on.

    Args:
        report: of what was done until then; its ``error`` says why.
    """

    def __init__(self, report: RunReport):
        super().__init__(report.error)
        self.report = report


PERCENTILES = {"median": 0.5, "p90": 0.9, "p99": 0.99}


def percentile(rising: Sequence[float], share: float) -> float:
    """Return the smallest of rising values that at least a share of them do not pass; 0 of none."""
    if not rising:
        return 0.0
    return rising[min(len(rising) - 1, max(0, -int(-share * len(rising) // 1) - 1))]


def mean(values: Sequence[float]) -> float:
    """Average; 0 of none."""
    return sum(values) / len(values) if values else 0.0
