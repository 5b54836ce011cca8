"""Break down the time from an utterance's admission to its answer, and measure the costs that a simulation needs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from daisy.distributed.pipeline.ledger import Record
    from daisy.distributed.pipeline.run_report import RunReport
    from daisy.distributed.pipeline.topology import Topology
    from daisy.distributed.pipeline.workload import Workload

MAX_EVENTS = 50_000
"""Number of latest events that a worker keeps: some megabytes."""
PARTS = ("admission", "queued", "computing", "waiting_to_send", "link", "hop", "answering")
"""Parts of a latency: from the desk to the first worker; in queues for a processor; computing; waiting for a link; on
the link, as declared in the topology; further time of the transfer; from the last worker to the desk."""


class Event(NamedTuple):
    """Something that a worker did with a task."""

    kind: Literal["accepted", "begun", "computed", "sent"]
    number: int
    """Number of the task."""
    attempt: int
    stage: int
    at: float
    """Seconds of the machine's monotonic clock; not comparable between machines."""
    seconds: float = 0.0
    """For ``computed`` the seconds that it took, for ``sent`` those that the declared link takes."""


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Measured costs of a real system in addition to the workload's times and the links; or none."""

    admission_sec: float = 0.0
    """Seconds from the desk to a worker."""
    hop_sec: float = 0.0
    """Seconds from worker to worker, in addition to the link."""
    answer_sec: float = 0.0
    """Seconds from a worker to the desk."""
    slowdown: Mapping[tuple[str, int], float] = field(default_factory=dict)
    """Factor by which a worker takes longer for a stage than the workload says, by (worker, stage)."""


class Division(NamedTuple):
    """A latency divided into its parts."""

    seconds: dict[str, float]
    """Seconds of each of `PARTS`, which sum to the latency."""
    num_hops: int


def break_down(report: RunReport) -> list[Division]:
    """Divide latencies into their parts.

    Args:
        report: report of a run on machines that share a clock, or of a simulation.

    Returns:
        A division for each record that the workers' events cover completely.
    """
    events: dict[tuple[int, int], list[Event]] = defaultdict(list)
    for worker in report.workers.values():
        for event in worker.events:
            events[event.number, event.attempt].append(event)
    divisions = []
    for record in report.records:
        mine = sorted(events[record.answer.number, record.answer.attempt], key=_order)
        if mine and mine[0].kind == "accepted" and mine[-1].kind == "computed":
            divisions.append(_divide(record, mine, report.began))
    return divisions


def _order(event: Event) -> tuple[float, int, int]:
    """Sort by time; put simultaneous events in causal order."""
    return event.at, event.stage, ("sent", "accepted", "begun", "computed").index(event.kind)


def _divide(record: Record, events: Iterable[Event], began: float) -> Division:
    parts = dict.fromkeys(PARTS, 0.0)
    last, link_sec, num_hops = began + record.admitted, 0.0, 0
    was_sent = False
    for event in events:
        seconds, last = event.at - last, event.at
        if event.kind == "begun":
            parts["queued"] += seconds
        elif event.kind == "computed":
            parts["computing"] += seconds
        elif event.kind == "sent":
            parts["waiting_to_send"] += seconds
            was_sent, link_sec = True, event.seconds
        elif was_sent:
            parts["link"] += link_sec
            parts["hop"] += seconds - link_sec
            num_hops += 1
        else:
            parts["admission"] += seconds
    parts["answering"] = began + record.answered - last
    return Division(parts, num_hops)


def average_parts(divisions: Sequence[Division]) -> dict[str, float]:
    """Average each part; return {} if there are no divisions."""
    return {part: sum(one.seconds[part] for one in divisions) / len(divisions) for part in PARTS if divisions}


def measure_costs(report: RunReport, topology: Topology, workload: Workload) -> Costs:
    """Measure the costs of a run for its simulation: medians, and workers' times relative to the workload's.

    Args:
        report: report of a real run.
        topology: topology of the run.
        workload: workload of the run, whose n-th task was utterance n modulo their number.
    """
    divisions = break_down(report)
    return Costs(
        admission_sec=_median(one.seconds["admission"] for one in divisions),
        hop_sec=_median(one.seconds["hop"] / one.num_hops for one in divisions if one.num_hops),
        answer_sec=_median(one.seconds["answering"] for one in divisions),
        slowdown=_measure_slowdown(report, topology, workload),
    )


def _measure_slowdown(report: RunReport, topology: Topology, workload: Workload) -> dict[tuple[str, int], float]:
    """For each worker and stage, divide its total seconds by the workload's."""
    levels = {record.answer.number: record.task.level for record in report.records}
    real: dict[tuple[str, int], float] = defaultdict(float)
    said: dict[tuple[str, int], float] = defaultdict(float)
    for name, worker in report.workers.items():
        speed = topology.worker(name).speed or 1.0
        for event in worker.events:
            if event.kind == "computed" and event.number in levels:
                utterance = event.number % len(workload.names)
                exit_layer = workload.exit_layer(levels[event.number], utterance)
                real[name, event.stage] += event.seconds
                said[name, event.stage] += (
                    workload.stage_seconds(utterance, topology.stages[event.stage], exit_layer) / speed
                )
    return {key: real[key] / said[key] for key in real if said[key] > 0}


def _median(values: Iterable[float]) -> float:
    """Return the median; 0 if there are no values, or if it is negative because clocks differ."""
    known = list(values)
    return max(median(known), 0.0) if known else 0.0
