"""The systems of `benchmarks.distributed.mdi`: topologies, and how to run, simulate and describe a system."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

import daisy
from benchmarks.shared.recordings import read_index, read_waveform, spread_evenly
from benchmarks.shared.results import Row, read_rows_beside
from daisy.checkpoints import Model
from daisy.distributed.pipeline.baselines import SYSTEMS, make_system
from daisy.distributed.pipeline.fidelity import measure_fidelity
from daisy.distributed.pipeline.joint import choose_jointly
from daisy.distributed.pipeline.preparation import Prepared, make_measured_workload, measure_seconds, prepare
from daisy.distributed.pipeline.run_report import RunReport
from daisy.distributed.pipeline.simulation import Simulation
from daisy.distributed.pipeline.system import System
from daisy.distributed.pipeline.topology import Topology
from daisy.distributed.pipeline.topology_file import parse_topology
from daisy.distributed.pipeline.workload import Wire, Workload

SET = "speechocean762"
NUM_UTTERANCES = 40
"""Number of utterances from the dev split, which has 80."""
DATA_BEFORE = "40 recordings c7537ebd"
"""Identifies the recordings that rows without a field ``data`` were measured on."""
NUM_LAYERS = 12
DEPTHS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4)
"""Mean depths that the exit levels are set for."""
LEVEL = 3
"""Exit level of the part throughput."""


def _link(one: str, other: str, rate_mbit: float) -> dict[str, Any]:
    return {"between": [one, other], "delay_ms": 5, "rate_mbit": rate_mbit}


TOPOLOGIES: dict[str, dict[str, Any]] = {
    "three": {  # three boards, one of them half as fast, in a good wireless network
        "source": "a",
        "workers": {
            "a": {"layers": "1-4", "speed": 0.2},
            "b": {"layers": "5-12", "speed": 0.2},
            "c": {"layers": "5-12", "speed": 0.1},
        },
        "links": [_link("a", "b", 20), _link("a", "c", 20)],
    },
    "five": {  # a pipeline of three stages, two of which have two workers each
        "source": "a",
        "workers": {
            "a": {"layers": "1-3", "speed": 0.2},
            "b": {"layers": "4-7", "speed": 0.1},
            "c": {"layers": "4-7", "speed": 0.05},
            "d": {"layers": "8-12", "speed": 0.1},
            "e": {"layers": "8-12", "speed": 0.05},
        },
        "links": [_link(one, other, 10) for one, other in ("ab", "ac", "bd", "be", "cd", "ce")],
    },
    "sensor": {  # a board with the front end and a layer, and four slower ones, on links that waveforms would saturate
        "source": "a",
        "workers": {
            "a": {"layers": "1", "speed": 0.1},
            **{name: {"layers": "2-12", "speed": 0.035} for name in "bcde"},
        },
        "links": [_link("a", name, 0.15) for name in "bcde"],
    },
}


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Data and settings that all parts share."""

    model: Model
    prepared: Prepared
    others: list[Tensor]
    """(N_b,) each: utterances of the same split that only the part levels uses."""
    data: str
    """Identifier of the prepared utterances."""
    quick: bool
    wire: Wire = "int8"

    @cached_property
    def workload(self) -> Workload:
        """The workload of these utterances, with layer times measured on this machine."""
        return make_measured_workload(self.model, self.prepared, measure_seconds(self.model, self.prepared))

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The topologies, and the systems that are compared on each."""
        if self.quick:
            return [("three", "mdi"), ("three", "one-worker")]
        return [(name, system) for name in TOPOLOGIES for system in SYSTEMS]

    def remember(self, key: Mapping[str, str], choose: Callable[[], float]) -> float:
        """Return the rate of earlier rows with these fields, so that all are at one rate; else choose one."""
        known = [] if self.quick else read_rows_beside("mdi")
        rates = [row["rate"] for row in known if all(row.get(name) == value for name, value in key.items())]
        return float(rates[0]) if rates else choose()

    def find_capacity(self, topology: Topology, level: int) -> float:
        """Find the throughput that a system with an adapting rate settles at, by a long simulation."""
        return steady_throughput(self.simulate(topology, num_tasks=600, rate=1.0, level=level))

    def make(self, name: str, system: str, **rules: Any) -> Topology:
        """Make the topology of a system."""
        topology = make_system(system, parse_topology(TOPOLOGIES[name], NUM_LAYERS))
        return dataclasses.replace(topology, rules=topology.rules.replace(**rules))

    def run(
        self, topology: Topology, *, watch: Callable[[System, int], None] | None = None, **options: Any
    ) -> RunReport:
        """Run the real system."""
        settings = dataclasses.replace(self.prepared.settings, wire=self.wire)
        options, routes = self._route(topology, options)
        with System(topology, self.model, settings, heads="units", routes=routes) as system:
            look = None if watch is None else lambda answered: watch(system, answered)
            report = system.run(self.prepared.waveforms, watch=look, **options)
        report.fidelity = measure_fidelity(report, self.prepared)
        return report

    def simulate(self, topology: Topology, **options: Any) -> RunReport:
        """Simulate the system."""
        options, routes = self._route(topology, options)
        num_tasks = options.pop("num_tasks")
        return Simulation(topology, self.workload, wire=self.wire, routes=routes, **options).run(num_tasks=num_tasks)

    def _route(self, topology: Topology, options: dict[str, Any]) -> tuple[dict[str, Any], Any]:
        if topology.rules.offloading != "routed":
            return options, None
        levels = None if "level" not in options else [options["level"]]
        choice = choose_jointly(topology, self.workload, options["rate"], levels=levels, wire=self.wire)
        return {**options, "level": max(choice.level, 0)}, choice.routes


def make_bench(quick: bool) -> Bench:
    """Load the model and the utterances, and set the exit levels."""
    model, split = daisy.load("daisy-mini"), read_index(SET, "dev")
    used = spread_evenly(split, 12 if quick else NUM_UTTERANCES)
    waveforms, others = (
        [read_waveform(SET, row["path"]) for row in rows] for rows in (used, [row for row in split if row not in used])
    )
    prepared = prepare(model, waveforms, list(map(str, range(len(waveforms)))), depths=DEPTHS)
    return Bench(model=model, prepared=prepared, others=others, data=identify(row["path"] for row in used), quick=quick)


def identify(names: Iterable[str]) -> str:
    """Identify recordings by their number and a digest of their names in this order."""
    known = list(names)
    return f"{len(known)} recordings {hashlib.sha256(chr(10).join(known).encode()).hexdigest()[:8]}"


def describe(report: RunReport, **more: Any) -> Row:
    """Make the row of a run."""
    table = report.to_json()
    return {
        "throughput": table["throughput"],
        "median_latency_sec": table["latency_sec"]["median"],
        "p90_latency_sec": table["latency_sec"]["p90"],
        "fidelity": table["fidelity"],
        "mean_exit_layer": table["mean_exit_layer"],
        "mean_level": table["mean_level"],
        "megabytes_sent": table["bytes_sent"] / 1e6,
        "utilisation": {name: worker["utilisation"] for name, worker in table["workers"].items()},
        "num_tasks": table["num_answered"],
        **more,
    }


def steady_throughput(report: RunReport) -> float:
    """Compute utterances per second in the last two thirds of the admissions, when an adapting rate has settled."""
    third = sorted(record.admitted for record in report.records)[len(report.records) // 3]
    last = max(record.admitted for record in report.records)
    inside = sum(third <= record.answered <= last for record in report.records)
    return inside / (last - third) if last > third else 0.0


def make_rows(num_workers: int) -> Topology:
    """Make a system of that many workers: one with the whole model, or rows of four workers with three layers each."""
    if num_workers == 1:
        return parse_topology({"workers": {"w": {"speed": 0.2}}, "rules": {"admission": "rate"}}, NUM_LAYERS)
    rows, size = num_workers // 4, NUM_LAYERS // 4
    workers, links = {}, []
    for row in range(rows):
        for stage in range(4):
            workers[f"r{row}s{stage}"] = {"layers": f"{stage * size + 1}-{(stage + 1) * size}", "speed": 0.2}
            for other in {row, (row + 1) % rows} if stage else ():
                links.append(_link(f"r{other}s{stage - 1}", f"r{row}s{stage}", 10))
    rules = {"admission": "rate", "status_sec": 0.5, "dead_after_sec": 5}
    sources = {f"r{row}s0": {"rate": 1.0} for row in range(rows)}
    return parse_topology({"workers": workers, "links": links, "sources": sources, "rules": rules}, NUM_LAYERS)
