"""What leaving early costs a downstream probe, and how far each layer agrees with the last: by network and noise.

    python -m benchmarks.training.exits daisy-mini=daisy-mini all=runs/all.safetensors

Each layer has a linear probe (keywords, digits, their speakers) on the mean over time of its states, fitted on the
clean train split, its regularisation by cross-validation there. A policy is set once, on dev audio, clean and noisy
(training noise), to a mean depth. Then every test recording is read at its exit, clean and with test noise. Beside it
stand the static cut at the same mean depth (between two layers their mean, weighted), exits drawn at random from the
same histogram, and the last layer. Agreement is the share of frames whose unit, by the layer's exit head, is that of
the last layer's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy
import torch
from numpy.typing import NDArray
from rich.progress import Progress

import daisy
from benchmarks.shared.recordings import (
    SAMPLE_RATE,
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
from daisy import audio, calibration
from daisy.calibration import intervals, tracing
from daisy.calibration.traces import Traces, join_traces
from daisy.checkpoints import Model
from daisy.encoder import EarlyExitEncoder
from daisy.evaluation.figures import format_snr
from daisy.policies import Never, Policy
from daisy.policies.scores import HeadOutputs, available_scores

SNRS_DB: tuple[float | None, ...] = (None, 10.0, 0.0)
POLICIES = ("forecast", "entropy", "plateau")
DEPTHS = (0.4, 0.5, 0.6, 0.7, 0.8)
DEV_LIMIT, TEST_LIMIT = 60, 100
BATCH_SAMPLES = 30 * SAMPLE_RATE
Floats = NDArray[numpy.float64]


@dataclass(frozen=True)
class FullRun:
    """What all layers make of B recordings in one condition."""

    pooled: NDArray[numpy.float32]
    """(B, L, D) means over time."""
    traces: Traces
    """Scores, and as ``disagreement`` the share of frames whose unit is not the last layer's."""


@torch.no_grad()
def run_layers(
    model: Model, utterances: Sequence[Utterance], snr_db: float | None, noises: Any, advance: Callable[[int], None]
) -> FullRun:
    """Run every layer of every recording, and the heads."""
    waveforms = tracing.mix_noise([utterance.waveform for utterance in utterances], noises, snr_db)
    encoder = EarlyExitEncoder(model.backbone, model.heads, Never(), keep="last", scores=available_scores(model.heads))
    config = model.backbone.config
    size = (len(waveforms), config.num_layers)
    pooled, disagreement = torch.zeros(*size, config.width), torch.zeros(size)
    scores = {name: torch.zeros(size) for name in encoder.score_names}
    for indices in audio.batch_by_length([len(waveform) for waveform in waveforms], BATCH_SAMPLES):
        layers: list[HeadOutputs] = []
        out = encoder([waveforms[index] for index in indices], observe=layers.append)
        for name, values in out.scores.items():
            scores[name][indices] = values
        for index, outputs in enumerate(layers):
            pooled[indices, index] = outputs.layout.mean(outputs.features)
            disagreement[indices, index] = outputs.mean((outputs.units != layers[-1].units).float())
        advance(len(indices))
    traces = Traces(
        utterances=tuple(map(str, range(len(waveforms)))),
        groups=tuple(utterance.speaker for utterance in utterances),
        conditions=(format_snr(snr_db),) * len(waveforms),
        scores=scores,
        losses={"disagreement": disagreement},
        weights=torch.ones(len(waveforms)),
        costs=torch.arange(1, config.num_layers + 1).float(),
        layers=tuple(range(1, config.num_layers + 1)),
    )
    return FullRun(pooled=pooled.numpy(), traces=traces)


def measure(name: str, model: Model, split: str, quick: bool, bar: Progress) -> list[Row]:
    """Measure a network: rows of exits.json."""
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
    """Average each layer's agreement with the last: rows of one condition."""
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
    """Fit a probe for each layer on the clean train split, and read the split's recordings at every layer and exit."""
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
        gains: (B, L) of each condition: whether a layer's answer is right, or the share of it that is.
        traces: of the same runs.
        settings: policies by name and depth.
    """
    together, gain = join_traces(traces), numpy.concatenate(gains)
    num_layers = together.num_layers
    rows: list[Row] = []
    for (kind, target), policy in settings.items():
        exits = policy.exit_layers(together.scores).numpy()
        depth = float(exits.mean())
        at_exit = gain[numpy.arange(len(gain)), exits - 1]
        below, share = int(depth), depth - int(depth)
        static = gain[:, below - 1] * (1 - share) + gain[:, min(below, num_layers - 1)] * share
        chance = gain @ (numpy.bincount(exits, minlength=num_layers + 1)[1:] / len(exits))
        row: Row = {"policy": kind, "target_depth": target, "depth": depth / num_layers}
        for system, values in (("exit", at_exit), ("static", static), ("random", chance), ("full", gain[:, -1])):
            row[system] = float(values.mean())
            row |= average_by_condition(values, together.conditions, system)
        row |= average_by_condition(exits, together.conditions, "layers")
        for other, values in (("static", static), ("random", chance), ("full", gain[:, -1])):
            row |= to_fields(intervals.bootstrap((at_exit - values).tolist(), together.groups), f"over_{other}")
        rows.append(row)
    return rows


def average_by_condition(values: Floats, conditions: Sequence[str], name: str) -> Row:
    """Average (B,) values of each condition: fields of a row."""
    which = numpy.asarray(conditions)
    return {f"{name}_{c.replace(' ', '_')}": float(values[which == c].mean()) for c in dict.fromkeys(conditions)}


def to_fields(estimate: intervals.Estimate, name: str = "value") -> Row:
    """Turn an estimate into fields of a row."""
    return {name: estimate.mean, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


def print_rows(rows: list[Row]) -> None:
    """Print tables to read while it runs."""
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
    """Measure checkpoints, by name: rows of the result."""
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
        "--split", choices=("dev", "test"), default="test", help="dev: to choose by; nothing is written"
    )
    arguments = parser.parse_args()
    rows = measure_networks(dict(parse_pairs(arguments.models)), arguments.split, arguments.quick)
    if not arguments.quick and arguments.split == "test":
        write_result("exits", rows)


if __name__ == "__main__":
    run_script(main)
