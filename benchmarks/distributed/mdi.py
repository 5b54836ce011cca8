"""Model-distributed inference with exits, compared with other systems; the simulator, compared with the real system.

    python -m benchmarks.distributed.mdi                      # results/mdi.json
    python -m benchmarks.distributed.mdi --minutes 9          # for 9 minutes; the same command continues
    python -m benchmarks.distributed.mdi --parts kills        # one part
    python -m benchmarks.distributed.mdi --quick              # a few runs; no results file

Needs the extra ray. The utterances are 40 of the 80 in the dev split of speechocean762, 3.6 s long on average, repeated
again and again; the exit levels are set on them. The workers are Ray actors on one machine whose speeds are emulated:
after each stage a worker waits until the processor time that it took would be over at that speed. Delay, rate and loss
of the links are modelled in the sender. So keep the sum of all speeds well below the number of cores.

- levels: fidelity of each exit level on these utterances, and on the 40 others, from full runs;
- throughput: the rate follows the source's queue at a fixed exit level: utterances per second, and their fidelity;
- fidelity: the exit level follows the queue, at a low and a high rate: how much of the full model's output is kept;
- loads: both kinds of admission under a load that doubles and halves;
- simulator: the same runs simulated: throughput, median latency and where the time goes, compared with the real runs;
- scale: 1 to 1,000 workers, simulated only;
- wires: each utterance through the stages without workers: how much data travels, and what rounding it costs;
- kills: a worker is killed ten times under load, and every admitted utterance must be answered once.
"""

from __future__ import annotations

import dataclasses
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any, get_args

import torch

from benchmarks.distributed.levels import list_levels
from benchmarks.distributed.steps import Step, add_options, run_steps
from benchmarks.distributed.systems import (
    DATA_BEFORE,
    LEVEL,
    Bench,
    describe,
    make_bench,
    make_rows,
    steady_throughput,
)
from benchmarks.shared.results import Row
from benchmarks.shared.script import make_parser, run_script
from daisy.distributed.cluster import connect
from daisy.distributed.pipeline.model_parts import cut_model
from daisy.distributed.pipeline.rules import RUN_ALL
from daisy.distributed.pipeline.run_report import RunReport, mean
from daisy.distributed.pipeline.stages import Left, Package, StageModel
from daisy.distributed.pipeline.system import System
from daisy.distributed.pipeline.timeline import Costs, average_parts, break_down, measure_costs
from daisy.distributed.pipeline.wire import pack_waveform
from daisy.distributed.pipeline.workload import SAMPLE_RATE, Wire


def list_throughput(bench: Bench) -> Iterator[Step]:
    """List the part throughput: each system on each topology."""
    for name, system in bench.pairs:
        yield Step(
            key={"part": "throughput", "topology": name, "system": system},
            measure=lambda name=name, system=system: measure_throughput(bench, name, system),  # type: ignore[misc]
        )


def measure_throughput(bench: Bench, name: str, system: str) -> Iterator[Row]:
    """Let the rate follow the source's queues, starting from the system's capacity according to the simulator."""
    topology = bench.make(name, system, admission="rate")
    options: dict[str, Any] = {"num_tasks": 40 if bench.quick else 300, "level": LEVEL}
    options["rate"] = bench.find_capacity(topology, LEVEL)
    report, simulated = bench.run(topology, **options), bench.simulate(topology, **options)
    yield describe(
        report,
        steady_throughput=steady_throughput(report),
        simulated_steady_throughput=steady_throughput(simulated),
    )


def list_fidelity(bench: Bench) -> Iterator[Step]:
    """List the part fidelity: at a low and a high rate.

    The low rate is 1.2 times what the source's worker achieves alone at the deepest level; the high rate is nine tenths
    of what mdi achieves at the level of the part throughput.
    """
    for load in ("low", "high"):
        for name, system in bench.pairs:
            yield Step(
                key={"part": "fidelity", "load": load, "topology": name, "system": system},
                measure=lambda load=load, name=name, system=system: measure_fidelity(  # type: ignore[misc]
                    bench, load, name, system
                ),
            )


def measure_fidelity(bench: Bench, load: str, name: str, system: str) -> Iterator[Row]:
    """Let the exit level follow the source's queues."""
    share, by, level = (1.2, "one-worker", 0) if load == "low" else (0.9, "mdi", LEVEL)
    one = bench.make(name, by, admission="rate")
    key = {"part": "fidelity", "load": load, "topology": name}
    rate = bench.remember(key, lambda: share * bench.find_capacity(one, level))
    topology = bench.make(name, system, admission="threshold")
    yield describe(bench.run(topology, num_tasks=40 if bench.quick else 120, rate=rate), rate=rate)


def list_loads(bench: Bench) -> Iterator[Step]:
    """List the part loads: the rate doubles after a third of the time and falls to a quarter of that after two thirds.

    If the rate adapts, the load is a factor of the source's rate.
    """
    for admission in ("rate", "threshold"):
        yield Step(
            key={"part": "loads", "topology": "three", "system": "mdi", "admission": admission},
            measure=lambda admission=admission: measure_load(bench, admission),  # type: ignore[misc]
        )


def measure_load(bench: Bench, admission: str) -> Iterator[Row]:
    """Make a row for each third of the time; the rate is 60 % of the system's capacity at the deepest level."""
    capable = bench.make("three", "mdi", admission="rate")
    key = {"part": "loads", "topology": "three"}
    rate = bench.remember(key, lambda: 0.6 * bench.find_capacity(capable, 0))
    seconds = 8.0 if bench.quick else 45.0
    topology = bench.make("three", "mdi", admission=admission)
    load = [(seconds, 2.0), (2 * seconds, 0.5)]
    report = bench.run(topology, seconds=3 * seconds, rate=rate, load=load)
    for window in report.windows(seconds)[:3]:  # utterances still in progress then are answered in further windows
        yield {"rate": rate, **window}


def list_simulator(bench: Bench) -> Iterator[Step]:
    """List the part simulator: three set-ups."""
    for name, system in [("three", "mdi"), ("five", "mdi"), ("three", "data-exits")][: 1 if bench.quick else 3]:
        yield Step(
            key={"part": "simulator", "topology": name, "system": system},
            measure=lambda name=name, system=system: measure_simulator(bench, name, system),  # type: ignore[misc]
        )


def measure_simulator(bench: Bench, name: str, system: str) -> Iterator[Row]:
    """Run at a fixed rate, 70 % of a system's capacity according to the simulator, and simulate that run.

    The costs of calls, copies and caches are measured in an earlier run with each utterance once ("simulated"), and in
    the run itself ("in_place"); "plain" ignores these costs.
    """
    topology = bench.make(name, system)
    calm: dict[str, Any] = {"rate": 0.3, "level": LEVEL, "num_tasks": 12 if bench.quick else 60}
    before = measure_costs(bench.run(topology, **calm), topology, bench.workload)
    most = bench.simulate(
        bench.make(name, system, admission="rate"), num_tasks=600, rate=1.0, level=LEVEL, costs=before
    )
    options: dict[str, Any] = {"rate": 0.7 * steady_throughput(most), "level": LEVEL}
    options["num_tasks"] = 40 if bench.quick else 250
    real = bench.run(topology, **options)
    inside = measure_costs(real, topology, bench.workload)
    row: Row = {"rate": options["rate"], "num_tasks": options["num_tasks"]}
    for kind, costs in (("real", None), ("simulated", before), ("in_place", inside), ("plain", Costs())):
        report = real if costs is None else bench.simulate(topology, costs=costs, **options)
        row |= describe_times(kind, report)
        if costs is not None:
            row[f"{kind}_median_latency_ratio"] = row[f"{kind}_median_latency_sec"] / row["real_median_latency_sec"]
            row[f"{kind}_throughput_ratio"] = row[f"{kind}_throughput"] / row["real_throughput"]
            row |= {f"{kind}_{what}_sec": getattr(costs, f"{what}_sec") for what in ("admission", "hop", "answer")}
            row[f"{kind}_slowdown"] = {f"{name}, stage {stage}": x for (name, stage), x in costs.slowdown.items()}
    yield row


def describe_times(kind: str, report: RunReport) -> Row:
    """Make the fields of a row: throughput, median latency, utilisation, and the parts of the mean latency."""
    table = report.to_json()
    parts = average_parts(break_down(report))
    return {
        f"{kind}_throughput": table["throughput"],
        f"{kind}_median_latency_sec": table["latency_sec"]["median"],
        f"{kind}_utilisation": {name: worker["utilisation"] for name, worker in table["workers"].items()},
        f"{kind}_mean_parts_sec": parts,
    }


def list_scale(bench: Bench) -> Iterator[Step]:
    """List the part scale: rows of four stages, each worker linked to the next stage in its own and the next row."""
    for num_workers in (1, 4, 20, 100) if bench.quick else (1, 4, 20, 100, 400, 1000):
        yield Step(
            key={"part": "scale", "num_workers": num_workers},
            measure=lambda num_workers=num_workers: measure_scale(bench, num_workers),  # type: ignore[misc]
        )


def measure_scale(bench: Bench, num_workers: int) -> Iterator[Row]:
    """Measure a system of that many workers, simulated only."""
    num_tasks = 200 if bench.quick else 20 * max(num_workers, 20)
    begun = time.perf_counter()
    report = bench.simulate(make_rows(num_workers), num_tasks=num_tasks, rate=1.0, level=LEVEL)
    row = describe(report, steady_throughput=steady_throughput(report))
    del row["utilisation"]
    yield {**row, "simulation_sec": time.perf_counter() - begun}


def list_wires(bench: Bench) -> Iterator[Step]:
    """List the part wires."""
    for name in ("three",) if bench.quick else ("three", "five"):
        for wire in get_args(Wire):
            yield Step(
                key={"part": "wires", "topology": name, "wire": wire},
                measure=lambda name=name, wire=wire: measure_wire(bench, name, wire),  # type: ignore[misc]
            )


def measure_wire(bench: Bench, name: str, wire: Wire) -> Iterator[Row]:
    """Run all layers, so that every utterance passes over every link."""
    settings = dataclasses.replace(bench.prepared.settings, wire=wire)
    topology = bench.make(name, "no-exits")
    stages = [
        StageModel(cut_model(bench.model, layers[0], layers[-1], "units"), settings) for layers in topology.stages
    ]
    kept, num_bytes, audio_sec = [], 0, 0.0
    for waveform, units in zip(bench.prepared.waveforms, bench.prepared.units, strict=True):
        package: Package | Left = Package(waveform=pack_waveform(waveform, wire))
        for stage, layers in zip(stages, topology.stages, strict=True):
            assert isinstance(package, Package)
            package = stage.run(package, layers, RUN_ALL)
            num_bytes += package.num_bytes if isinstance(package, Package) else 0
        assert isinstance(package, Left)
        assert package.units is not None
        kept.append(float((package.units == units.numpy()).mean()))
        audio_sec += len(waveform) / SAMPLE_RATE
    yield {
        "num_links": len(topology.stages) - 1,
        "kbit_per_audio_sec": 8e-3 * num_bytes / audio_sec / (len(topology.stages) - 1),
        "fidelity": mean(kept),
        "num_utterances": len(kept),
    }


def list_kills(bench: Bench) -> Iterator[Step]:
    """List the part kills."""
    yield Step(key={"part": "kills", "topology": "three", "system": "mdi"}, measure=lambda: measure_kills(bench))


def measure_kills(bench: Bench) -> Iterator[Row]:
    """Kill random workers one at a time, at least 12 s apart."""
    num_kills = 2 if bench.quick else 10
    killed: list[str] = []
    last = [0.0]
    draw = random.Random(0)

    def kill(system: System, num_answered: int) -> None:
        if len(killed) < num_kills and num_answered >= 5 and time.monotonic() - last[0] > 12.0:
            victim = draw.choice(sorted(system.pids))
            try:
                os.kill(system.pids[victim], signal.SIGKILL)
            except ProcessLookupError:  # the worker is still being replaced
                return
            killed.append(victim)
            last[0] = time.monotonic()

    topology = bench.make("three", "mdi", dead_after_sec=2.0, respawn_sec=0.1)
    rate = 1.5
    report = bench.run(topology, num_tasks=int(rate * 14 * (num_kills + 1)), rate=rate, level=LEVEL, watch=kill)
    yield describe(
        report,
        num_kills=len(killed),
        num_admitted=report.num_admitted,
        num_answered_once=len(report.records),
        num_restarts=report.num_restarts,
        num_late_answers=report.num_late,
    )


MEASURES: dict[str, Callable[[Bench], Iterator[Step]]] = {
    "levels": list_levels,
    "throughput": list_throughput,
    "fidelity": list_fidelity,
    "loads": list_loads,
    "simulator": list_simulator,
    "scale": list_scale,
    "wires": list_wires,
    "kills": list_kills,
}
WITHOUT_WORKERS = {"levels", "scale", "wires"}


def main() -> None:
    """Measure, print and write."""
    parser = make_parser(__doc__, quick="one topology, two systems, few utterances; nothing is written")
    add_options(parser, list(MEASURES))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    bench = make_bench(arguments.quick)
    steps = (step for part in arguments.parts for step in MEASURES[part](bench))
    with nullcontext() if WITHOUT_WORKERS.issuperset(arguments.parts) else connect(None):  # one cluster for all runs
        run_steps("mdi", steps, arguments, data=bench.data, data_before=DATA_BEFORE)


if __name__ == "__main__":
    run_script(main)
