"""Model-distributed inference with exits against what it is compared with; the simulator against the real system.

    python -m benchmarks.distributed.mdi [--parts throughput fidelity loads simulator scale kills]

Needs the extra ray. Workers are Ray actors of one machine: their speeds are emulated (after each stage a worker waits
until the processor time that it took would be over at that speed), and delay, rate and loss of links are modelled in
the sender. So keep the sum of all speeds well below the number of cores.

- throughput: the rate follows the source's queue at a fixed exit level: how many utterances a second, at what fidelity;
- fidelity: the exit level follows the queue at a fixed rate: how much of the full model's output is kept;
- loads: both kinds of admission under a load that doubles and halves;
- simulator: the same runs simulated, with layer times measured before: throughput and median latency beside the real;
- scale: simulated only, 1 to 1,000 workers;
- kills: a worker is killed ten times under load, and every admitted utterance answered once.
"""

from __future__ import annotations

import dataclasses
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import daisy
from benchmarks.shared.recordings import read_utterances
from benchmarks.shared.results import Row, read_rows_of_this_machine, write_result
from benchmarks.shared.script import make_parser, run_script
from daisy.checkpoints import Model
from daisy.distributed.pipeline.baselines import SYSTEMS, make_system
from daisy.distributed.pipeline.joint import choose_jointly
from daisy.distributed.pipeline.preparation import Prepared, make_measured_workload, measure_seconds, prepare
from daisy.distributed.pipeline.run_report import RunReport
from daisy.distributed.pipeline.simulation import Simulation
from daisy.distributed.pipeline.system import System, measure_fidelity
from daisy.distributed.pipeline.topology import Topology, parse_topology
from daisy.distributed.pipeline.workload import Wire, Workload

NUM_LAYERS = 12
DEPTHS = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4)
"""Exit levels."""
LEVEL = 3
"""Of the part throughput."""
OVERHEAD_SEC = 0.004
"""Added to each stage in the simulator, for calls and copies on Ray. Assumed, not measured."""


def _link(one: str, other: str, rate_mbit: float) -> dict[str, Any]:
    return {"between": [one, other], "delay_ms": 5, "rate_mbit": rate_mbit}


TOPOLOGIES: dict[str, dict[str, Any]] = {
    "three": {  # three boards, one of half the speed, on a good wireless network
        "source": "a",
        "workers": {
            "a": {"layers": "1-4", "speed": 0.2},
            "b": {"layers": "5-12", "speed": 0.2},
            "c": {"layers": "5-12", "speed": 0.1},
        },
        "links": [_link("a", "b", 20), _link("a", "c", 20)],
    },
    "narrow": {  # a stronger board at the source and two weak ones, on links of 1 Mbit/s, which waveforms fill
        "source": "a",
        "workers": {
            "a": {"layers": "1-3", "speed": 0.3},
            "b": {"layers": "4-12", "speed": 0.1},
            "c": {"layers": "4-12", "speed": 0.1},
        },
        "links": [_link("a", "b", 1), _link("a", "c", 1)],
    },
    "five": {  # a pipeline of three stages, two of them held twice
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
}
PARTS = ("throughput", "fidelity", "loads", "simulator", "scale", "kills")


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What all parts share."""

    model: Model
    prepared: Prepared
    workload: Workload
    quick: bool
    wire: Wire = "int8"

    @property
    def topologies(self) -> list[str]:
        """Names of those that are run."""
        return ["three"] if self.quick else list(TOPOLOGIES)

    @property
    def systems(self) -> list[str]:
        """Names of those that are compared."""
        return ["mdi", "one-worker"] if self.quick else list(SYSTEMS)

    def make(self, name: str, system: str, **rules: Any) -> Topology:
        """Make a system of a topology."""
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
        report.fidelity = measure_fidelity(report, self.prepared.units)
        return report

    def simulate(self, topology: Topology, **options: Any) -> RunReport:
        """Simulate it."""
        options, routes = self._route(topology, options)
        num_tasks = options.pop("num_tasks")
        simulation = Simulation(
            topology, self.workload, wire=self.wire, routes=routes, overhead_sec=OVERHEAD_SEC, **options
        )
        return simulation.run(num_tasks=num_tasks)

    def _route(self, topology: Topology, options: dict[str, Any]) -> tuple[dict[str, Any], Any]:
        if topology.rules.offloading != "routed":
            return options, None
        levels = None if "level" not in options else [options["level"]]
        choice = choose_jointly(topology, self.workload, options["rate"], levels=levels, wire=self.wire)
        return {**options, "level": max(choice.level, 0)}, choice.routes


def describe(part: str, topology: str, system: str, report: RunReport, **more: Any) -> Row:
    """Make a row of a run."""
    table = report.to_json()
    return {
        "part": part,
        "topology": topology,
        "system": system,
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
    """Utterances a second in the second half of the admissions, when an adapting rate has found its place."""
    half = sorted(record.admitted for record in report.records)[len(report.records) // 2]
    last = max(record.admitted for record in report.records)
    inside = sum(half <= record.answered <= last for record in report.records)
    return inside / (last - half) if last > half else 0.0


def measure_throughput(bench: Bench) -> Iterator[Row]:
    """Part throughput."""
    num_tasks = 60 if bench.quick else 400
    for name in bench.topologies:
        for system in bench.systems:
            topology = bench.make(name, system, admission="rate")
            options: dict[str, Any] = {"num_tasks": num_tasks, "rate": 2.0, "level": LEVEL}
            report, simulated = bench.run(topology, **options), bench.simulate(topology, **options)
            yield describe(
                "throughput",
                name,
                system,
                report,
                steady_throughput=steady_throughput(report),
                simulated_steady_throughput=steady_throughput(simulated),
            )


def measure_fidelity_at_rate(bench: Bench) -> Iterator[Row]:
    """Part fidelity: at 1.2 times what one worker does at the deepest level."""
    alone = bench.make("three", "one-worker", admission="rate")
    rate = 1.2 * steady_throughput(bench.simulate(alone, num_tasks=400, rate=1.0, level=0))
    num_tasks = 60 if bench.quick else 400
    for name in bench.topologies:
        for system in bench.systems:
            topology = bench.make(name, system, admission="threshold")
            report = bench.run(topology, num_tasks=num_tasks, rate=rate)
            yield describe("fidelity", name, system, report, rate=rate)


def measure_loads(bench: Bench) -> Iterator[Row]:
    """Part loads: the rate doubles after a third of the time and falls to a quarter of that after two thirds.

    With an adapting rate, the load is what the source's rate is multiplied by.
    """
    seconds = 8.0 if bench.quick else 45.0
    load = [(seconds, 2.0), (2 * seconds, 0.5)]
    base = 0.6 * steady_throughput(
        bench.simulate(bench.make("three", "mdi", admission="rate"), num_tasks=600, rate=1.0, level=0)
    )
    for admission in ("rate", "threshold"):
        topology = bench.make("three", "mdi", admission=admission)
        report = bench.run(topology, num_tasks=int(3.5 * base * seconds), rate=base, load=load)
        for window in report.windows(seconds)[:3]:
            yield {
                "part": "loads",
                "topology": "three",
                "system": "mdi",
                "admission": admission,
                "rate": base,
                **window,
            }


def measure_simulator(bench: Bench) -> Iterator[Row]:
    """Part simulator: at a fixed rate of 70 % of what the simulator says that a system can do."""
    for name, system in (
        [("three", "mdi")] if bench.quick else [("three", "mdi"), ("five", "mdi"), ("three", "data-exits")]
    ):
        most = bench.simulate(bench.make(name, system, admission="rate"), num_tasks=600, rate=1.0, level=LEVEL)
        options: dict[str, Any] = {"rate": 0.7 * steady_throughput(most), "level": LEVEL}
        options["num_tasks"] = 40 if bench.quick else 300
        topology = bench.make(name, system)
        real, simulated = bench.run(topology, **options).to_json(), bench.simulate(topology, **options).to_json()
        yield {
            "part": "simulator",
            "topology": name,
            "system": system,
            "rate": options["rate"],
            "throughput": real["throughput"],
            "simulated_throughput": simulated["throughput"],
            "median_latency_sec": real["latency_sec"]["median"],
            "simulated_median_latency_sec": simulated["latency_sec"]["median"],
            "utilisation": {name: worker["utilisation"] for name, worker in real["workers"].items()},
            "simulated_utilisation": {name: worker["utilisation"] for name, worker in simulated["workers"].items()},
        }


def measure_scale(bench: Bench) -> Iterator[Row]:
    """Part scale: rows of four stages, each worker linked to its own row's next and the neighbouring row's."""
    for num_workers in (1, 4, 20, 100) if bench.quick else (1, 4, 20, 100, 400, 1000):
        topology = make_rows(num_workers)
        num_tasks = 200 if bench.quick else 20 * max(num_workers, 20)
        begun = time.perf_counter()
        report = bench.simulate(topology, num_tasks=num_tasks, rate=1.0, level=LEVEL)
        row = describe("scale", f"{num_workers} workers", "mdi", report, steady_throughput=steady_throughput(report))
        del row["utilisation"]
        yield {**row, "num_workers": num_workers, "simulation_sec": time.perf_counter() - begun}


def make_rows(num_workers: int) -> Topology:
    """Make a system of that many workers: one with the whole model, or rows of four with three layers each."""
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


def measure_kills(bench: Bench) -> Iterator[Row]:
    """Part kills: workers in turn, each after it has been started anew."""
    num_kills = 2 if bench.quick else 10
    killed: list[str] = []
    last = [0.0]
    draw = random.Random(0)

    def kill(system: System, num_answered: int) -> None:
        if len(killed) < num_kills and num_answered >= 5 and time.monotonic() - last[0] > 12.0:
            victim = draw.choice(sorted(system.pids))
            try:
                os.kill(system.pids[victim], signal.SIGKILL)
            except ProcessLookupError:  # it is still being replaced
                return
            killed.append(victim)
            last[0] = time.monotonic()

    topology = bench.make("three", "mdi", dead_after_sec=2.0, respawn_sec=0.1)
    rate = 1.5
    report = bench.run(topology, num_tasks=int(rate * 14 * (num_kills + 1)), rate=rate, level=LEVEL, watch=kill)
    numbers = [record.answer.number for record in report.records]
    yield describe(
        "kills",
        "three",
        "mdi",
        report,
        num_kills=len(killed),
        num_admitted=report.num_admitted,
        num_answered_once=len(set(numbers)),
        num_answers_twice=len(numbers) - len(set(numbers)),
        num_restarts=report.num_restarts,
        num_late_answers=report.num_late,
    )


MEASURES: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "throughput": measure_throughput,
    "fidelity": measure_fidelity_at_rate,
    "loads": measure_loads,
    "simulator": measure_simulator,
    "scale": measure_scale,
    "kills": measure_kills,
}


def main() -> None:
    """Measure, print and write."""
    parser = make_parser(__doc__, quick="one topology, two systems, few utterances; nothing is written")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    arguments = parser.parse_args()
    model = daisy.load("daisy-mini")
    utterances = read_utterances(["librispeech"], "dev", 12 if arguments.quick else 60)
    waveforms = [utterance.waveform for utterance in utterances]
    prepared = prepare(model, waveforms, list(map(str, range(len(waveforms)))), depths=DEPTHS)
    workload = make_measured_workload(model, prepared, measure_seconds(model, prepared))
    bench = Bench(model=model, prepared=prepared, workload=workload, quick=arguments.quick)
    rows = [] if arguments.quick else read_rows_of_this_machine("mdi")
    for part in arguments.parts:
        rows = [row for row in rows if row["part"] != part]
        for row in MEASURES[part](bench):
            print(row, flush=True)
            rows.append(row)
        if not arguments.quick:
            write_result("mdi", rows, [])


if __name__ == "__main__":
    run_script(main)
