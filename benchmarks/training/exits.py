"""Cost of early exits for a downstream probe, and each layer's agreement with the last: by network and noise.

    python -m benchmarks.training.exits daisy-mini=daisy-mini all=runs/all.safetensors

Each layer has a linear probe (keywords, digits, their speakers) on the mean over time of its states, fitted on the
clean train split, with its regularisation chosen there by cross-validation. A policy is set once, on clean and noisy
dev audio (training noise), to a mean depth. Then every test recording is classified at its exit, clean and with test
noise. It is compared with the static cut at the same mean depth (between two layers, their weighted mean), random exits
drawn from the same histogram, and the last layer. Agreement is the share of frames where the layer's exit head predicts
the full model's unit: that of HuBERT's own prediction head, or of the last exit head if there is none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy
import torch
from numpy.typing import NDArray
from rich.progress import Progress

import daisy
from benchmarks.shared.recordings import (
    TEST_SETS,
    TRAINING_SETS,
    Utterance,
    read_index,
    read_noises,
    read_utterances,
)
from benchmarks.shared.results import Row, write_result
from benchmarks.shared.script import make_parser, parse_pairs, run_script
from benchmarks.training.probes import TASKS, fit_classifier
from daisy import calibration
from daisy.calibration import intervals, tracing
from daisy.calibration.traces import Traces, join_traces
from daisy.checkpoints import Model
from daisy.evaluation import comparison
from daisy.evaluation.figures import format_snr
from daisy.policies import Policy
from daisy.policies.scores import HeadOutputs
from daisy.runtime.exit_output import ExitOutput

SNRS_DB: tuple[float | None, ...] = (None, 10.0, 0.0)
POLICIES = ("forecast", "entropy", "plateau")
DEPTHS = (0.4, 0.5, 0.6, 0.7, 0.8)
DEV_LIMIT, TEST_LIMIT = 60, 100
Floats = NDArray[numpy.float64]


@dataclass(frozen=True)
class FullRun:
    """Outputs of all layers for B recordings in one condition."""

    pooled: NDArray[numpy.float32]
    """(B, L, D) means over time."""
    traces: Traces
    """Scores, and losses against the full model."""


def run_layers(
    model: Model, utterances: Sequence[Utterance], snr_db: float | None, noises: Any, advance: Callable[[int], None]
) -> FullRun:
    """Run every layer and the heads on every recording."""
    config = model.backbone.config
    pooled = torch.zeros(len(utterances), config.num_layers, config.width)

    def observe(indices: list[int], out: ExitOutput, layers: list[HeadOutputs]) -> None:
        for index, outputs in enumerate(layers):
            pooled[indices, index] = outputs.layout.mean(outputs.all_features)

    traces, _ = tracing.trace(
        model,
        tracing.mix_noise([utterance.waveform for utterance in utterances], noises, snr_db),
        [str(index) for index in range(len(utterances))],
        [utterance.speaker for utterance in utterances],
        condition=format_snr(snr_db),
        progress=advance,
        observe=observe,
    )
    return FullRun(pooled=pooled.numpy(), traces=traces)


def measure(name: str, model: Model, split: str, quick: bool, bar: Progress) -> list[Row]:
    """Measure a network, and return rows of exits.json."""
    dev = read_utterances(TRAINING_SETS, "dev", 8 if quick else DEV_LIMIT)
    test = dev if split == "dev" else read_utterances(TEST_SETS, "test", 8 if quick else TEST_LIMIT)
    noises = {"train": read_noises("train"), "test": read_noises("test" if split == "test" else "train")}
    task = bar.add_task(f"{name}: agreement", total=len(SNRS_DB) * (len(dev) + len(test)))
    advance = partial(bar.advance, task)
    on_dev = [run_layers(model, dev, snr_db, noises["train"], advance).traces for snr_db in SNRS_DB]
    on_test = [run_layers(model, test, snr_db, noises["test"], advance).traces for snr_db in SNRS_DB]
    settings = {
        (kind, depth): calibration.calibrate_depth(kind, join_traces(on_dev), depth).policy
        for kind in POLICIES
        for depth in DEPTHS
    }
    rows = [{"network": name, **row} for traces in on_test for row in average_agreement(traces)]
    is_right = [(1 - traces.losses["disagreement"]).double().numpy() for traces in on_test]
    rows += [{"network": name, "task": "agreement", **row} for row in compare_exits(is_right, on_test, settings)]
    for kind, (set_name, column) in TASKS.items():
        if read_index(set_name, split, 1):
            of_task = probe(model, set_name, column, split, noises["test"], settings, quick, bar)
            rows += [{"network": name, "task": kind, **row} for row in of_task]
    return rows


def average_agreement(traces: Traces) -> list[Row]:
    """Average each layer's agreement with the full model, and return rows of one condition."""
    agreement = 1 - traces.losses["disagreement"]
    return [
        {
            "task": "agreement",
            "condition": traces.conditions[0],
            "layer": layer,
            **to_fields(intervals.bootstrap(agreement[:, layer - 1].tolist(), traces.groups)),
        }
        for layer in traces.layers
    ]


def probe(
    model: Model,
    set_name: str,
    column: str,
    split: str,
    noises: Any,
    settings: dict[tuple[str, float], Policy],
    quick: bool,
    bar: Progress,
) -> list[Row]:
    """Fit a probe per layer on the clean train split, and classify the split's recordings at all layers and exits."""
    limit = 120 if quick else None
    speech = {name: read_utterances((set_name,), name, limit) for name in ("train", split)}
    labels = {name: [row[column] for row in read_index(set_name, name, limit)] for name in speech}
    task = bar.add_task(f"{set_name}: {column}", total=len(speech["train"]) + len(SNRS_DB) * len(speech[split]))
    advance = partial(bar.advance, task)
    train = run_layers(model, speech["train"], None, noises, advance)
    probes = [fit_classifier(train.pooled[:, layer], labels["train"]) for layer in range(train.traces.num_layers)]
    runs = [run_layers(model, speech[split], snr_db, noises, advance) for snr_db in SNRS_DB]
    wanted = numpy.asarray(labels[split])
    is_right = [
        numpy.stack([fitted.predict(run.pooled[:, layer]) == wanted for layer, fitted in enumerate(probes)], 1).astype(
            float
        )
        for run in runs
    ]
    traces = [run.traces for run in runs]
    rows: list[Row] = [
        {
            "condition": of_condition.conditions[0],
            "layer": layer,
            **to_fields(intervals.bootstrap(right[:, layer - 1].tolist(), of_condition.groups)),
        }
        for right, of_condition in zip(is_right, traces, strict=True)
        for layer in of_condition.layers
    ]
    return rows + compare_exits(is_right, traces, settings)


def compare_exits(
    gains: Sequence[Floats], traces: Sequence[Traces], settings: dict[tuple[str, float], Policy]
) -> list[Row]:
    """Compare exits with the static cut, random exits and the last layer, over all conditions together.

    Args:
        gains: (B, L) for each condition: whether a layer's answer is right, or the share of it that is.
        traces: full runs of the same recordings.
        settings: policies by name and depth.
    """
    gain = numpy.concatenate(gains)
    runs = replace(join_traces(traces), losses={"error": torch.from_numpy(1 - gain)})
    costs = numpy.arange(1, runs.num_layers + 1) / runs.num_layers
    rows: list[Row] = []
    for (kind, target), policy in settings.items():
        exits = policy.exit_layers(runs.scores)
        evaluation = comparison.evaluate(kind, exits, runs)
        at_exit = gain[numpy.arange(len(gain)), exits.numpy() - 1]
        row: Row = {"policy": kind, "target_depth": target, "depth": evaluation.depth, "exit": float(at_exit.mean())}
        row |= {"static": 1 - evaluation.fixed["error"], "random": 1 - evaluation.random["error"]}
        row["full"] = float(gain[:, -1].mean())
        for condition in dict.fromkeys(runs.conditions):
            of = runs.rows_of(condition).numpy()
            by_layer, end = gain[of].mean(0), f"_{condition.replace(' ', '_')}"
            row[f"exit{end}"], row[f"full{end}"] = float(at_exit[of].mean()), float(by_layer[-1])
            row[f"static{end}"] = float(
                comparison.cut_at_depth(by_layer[None], costs, numpy.array([evaluation.depth]))[0]
            )
            row[f"random{end}"] = float(by_layer @ evaluation.histogram) / len(gain)
            row[f"layers{end}"] = float(exits[of].double().mean())
        over_full = intervals.bootstrap((at_exit - gain[:, -1]).tolist(), runs.groups)
        for name, estimate in (
            ("static", evaluation.gain["error"]),
            ("random", evaluation.gain_over_random["error"]),
            ("full", over_full),
        ):
            row |= to_fields(estimate, f"over_{name}")
        rows.append(row)
    return rows


def to_fields(estimate: intervals.Estimate, name: str = "value") -> Row:
    """Turn an estimate into fields of a row."""
    return {name: estimate.mean, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


def print_rows(rows: list[Row]) -> None:
    """Print tables as progress."""
    for row in rows:
        if "policy" in row:
            systems = " ".join(f"{system} {row[system]:.3f}" for system in ("exit", "static", "random", "full"))
            layers, exits = (
                " ".join(f"{row[f'{name}_{c}']:.3g}" for c in ("clean", "10_dB", "0_dB")) for name in ("layers", "exit")
            )
            print(
                f"{row['network']:12} {row['task']:14} {row['policy']:8} {row['depth']:.2f} {systems} over static "
                f"{row['over_static_low']:+.3f} {row['over_static_high']:+.3f} by noise: layers {layers} exit {exits}"
            )
    curves = [row for row in rows if "layer" in row]
    for key in dict.fromkeys((row["network"], row["task"], row["condition"]) for row in curves):
        values = [row["value"] for row in curves if (row["network"], row["task"], row["condition"]) == key]
        print(f"{key[0]:12} {key[1]:14} {key[2]:6}", " ".join(f"{value:.3f}" for value in values))


def measure_networks(paths: Mapping[str, Path | str], split: str = "test", quick: bool = False) -> list[Row]:
    """Measure checkpoints, given by name, and return the rows of the result."""
    rows = []
    for name, path in paths.items():
        with Progress() as bar:
            measured = measure(name, daisy.load(path), split, quick, bar)
        print_rows(measured)
        rows += measured
    return rows


def main() -> None:
    parser = make_parser(__doc__, quick="a few recordings; nothing is written")
    parser.add_argument("models", nargs="+", metavar="NAME=CHECKPOINT")
    parser.add_argument(
        "--split", choices=("dev", "test"), default="test", help="dev: for making choices; nothing is written"
    )
    arguments = parser.parse_args()
    rows = measure_networks(dict(parse_pairs(arguments.models)), arguments.split, arguments.quick)
    if not arguments.quick and arguments.split == "test":
        write_result("exits", rows)


if __name__ == "__main__":
    run_script(main)
