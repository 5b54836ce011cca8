"""Part levels of `benchmarks.distributed.mdi`: fidelity of exit levels, also on recordings not used to set them."""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.distributed.steps import Step
from benchmarks.distributed.systems import DEPTHS, Bench
from benchmarks.shared.results import Row
from daisy.distributed.pipeline.preparation import prepare
from daisy.distributed.pipeline.rules import RUN_ALL
from daisy.distributed.pipeline.run_report import mean
from daisy.distributed.pipeline.workload import make_workload


def list_levels(bench: Bench) -> Iterator[Step]:
    """Part levels: the utterances that all parts use, and those of the split that no part uses."""
    for recordings in ("set on", "held out"):
        yield Step(
            key={"part": "levels", "recordings": recordings},
            measure=lambda recordings=recordings: measure_levels(bench, recordings),  # type: ignore[misc]
        )


def measure_levels(bench: Bench, recordings: str) -> Iterator[Row]:
    """Make a row for each exit level, and one without exits, from full runs without workers and with float32 states."""
    levels, traces = bench.prepared.settings.levels, bench.prepared.traces
    if recordings == "held out":
        names = list(map(str, range(len(bench.others))))
        traces = prepare(bench.model, bench.others, names, levels=levels).traces
    workload = make_workload(traces, levels, width=bench.model.backbone.config.width)
    everyone = range(len(workload.names))
    for level, depth in enumerate(DEPTHS):
        yield {
            "level": level,
            "depth": depth,
            "mean_exit_layer": mean([workload.exit_layer(level, utterance) for utterance in everyone]),
            "fidelity": workload.mean_fidelity(level),
            "num_utterances": len(everyone),
        }
    yield {
        "level": RUN_ALL,
        "depth": 1.0,
        "mean_exit_layer": float(workload.num_layers),
        "fidelity": workload.mean_fidelity(RUN_ALL),
        "num_utterances": len(everyone),
    }
