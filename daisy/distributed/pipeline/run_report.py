"""The results of a run of the simulator or of the real system, as numbers."""

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
    """Statistics of a worker, or of one of its incarnations."""

    busy_sec: float = 0.0
    num_computed: int = 0
    """Stages computed."""
    num_exits: int = 0
    """Tasks that exited here."""
    num_sent: int = 0
    bytes_sent: int = 0
    num_deaths: int = 0
    events: list[Event] = field(default_factory=list)
    """The latest events, in order; for a real worker, those of its last incarnation."""

    def add(self, later: WorkerReport) -> WorkerReport:
        """Return the sum with a later incarnation's report, with the events of the later one."""
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
    """Records in the order of their answers."""
    workers: dict[str, WorkerReport]
    fidelity: list[float]
    """Fidelity of each record; empty if it was not measured."""
    work: list[float]
    """Seconds of audio of each record."""
    num_admitted: int
    num_restarts: int = 0
    num_late: int = 0
    """Answers to tasks that had one already."""
    began: float = 0.0
    """The time from which records count, by the clock of the workers' events."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""
    """Why the run could not continue, if so; the other fields then cover the run up to that point."""

    @property
    def throughput(self) -> float:
        """Answered tasks per second."""
        return len(self.records) / self.seconds if self.seconds else 0.0

    def latencies(self) -> list[float]:
        """Return the seconds from admission to answer, in ascending order."""
        return sorted(record.answered - record.admitted for record in self.records)

    def to_json(self) -> dict[str, Any]:
        """Return everything except the individual records."""
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
        """Divide the run into windows by time of answer; return throughput, latency, level and fidelity of each."""
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
    """A run that could not continue.

    Args:
        report: report of the run up to that point; its ``error`` gives the reason.
    """

    def __init__(self, report: RunReport):
        super().__init__(report.error)
        self.report = report


PERCENTILES = {"median": 0.5, "p90": 0.9, "p99": 0.99}


def percentile(rising: Sequence[float], share: float) -> float:
    """Return the smallest of ascending values that at least a share of them do not exceed; 0 if there are none."""
    if not rising:
        return 0.0
    return rising[min(len(rising) - 1, max(0, -int(-share * len(rising) // 1) - 1))]


def mean(values: Sequence[float]) -> float:
    """Return the average; 0 if there are no values."""
    return sum(values) / len(values) if values else 0.0
