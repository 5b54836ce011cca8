"""Ideas for new policies, and the maximum possible gain: exits judged by two losses.

    python -m benchmarks.policies.ideas runs/exits.safetensors

Losses are shares of frames whose unit differs from the full model's: on the same input, or on the clean recording. Each
idea learns one of them, or their mean, from dev audio, clean and with training noise; the price for each mean depth is
set on dev recordings of speakers not used for learning. Exits are judged by both losses on test audio of seven sets,
clean and with four kinds of noise at 20, 10 and 0 dB; clean runs together weigh as much as those of one ratio.
`hindsight` makes the best possible exits. With --dry, dev audio is judged, each speaker by what was learnt from others,
and nothing is written: this is for development, as the test audio is for final figures.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr

from benchmarks.policies.idea_learners import Decisions, Floats, Learner, list_ideas
from benchmarks.policies.idea_runs import CONDITIONS, LIMIT, NOISE_KINDS, SNRS_DB, Runs, load_runs
from benchmarks.shared.cuts import mix_best
from benchmarks.shared.results import Row, write_result
from benchmarks.shared.script import make_parser, run_script
from daisy.calibration import forecast
from daisy.calibration.traces import Traces
from daisy.evaluation import comparison
from daisy.evaluation.study import DEPTHS

STEPS = 40
TARGETS = {
    "same input": {"disagreement": 1.0},
    "clean recording": {"clean_disagreement": 1.0},
    "both": {"disagreement": 0.5, "clean_disagreement": 0.5},
}
"""Targets of learning: weights of losses."""
FIELDS = {"disagreement": "", "clean_disagreement": "clean_"}
"""Prefixes of a row's fields, by judging loss."""


def get_target(runs: Runs, name: str) -> Floats:
    """Return the loss (B, L) of `TARGETS`."""
    losses = runs.traces.losses
    return sum(weight * losses[loss].double().numpy() for loss, weight in TARGETS[name].items())  # type: ignore[return-value]


def balance(runs: Runs) -> Runs:
    """Repeat clean runs until they are as many as those of one ratio with all kinds of noise."""
    times = [len(NOISE_KINDS) if condition == "clean" else 1 for condition in runs.traces.conditions]
    return runs.select(numpy.repeat(numpy.arange(len(runs)), times))


def cross_fit(learner: Learner, runs: Runs, loss: Floats) -> Decisions:
    """Decide for each run with what was learnt from runs of other speakers."""
    folds = [fold.numpy() for fold in forecast.split_folds(runs.traces.groups)]
    parts = []
    for fold in folds:
        rest = numpy.setdiff1d(numpy.arange(len(runs)), fold)
        parts.append(learner(runs.select(rest), runs.select(fold), loss[rest]))

    def exits(price: float) -> NDArray[numpy.int64]:
        together = numpy.zeros(len(runs), dtype=numpy.int64)
        for fold, part in zip(folds, parts, strict=True):
            together[fold] = part.exits(price)
        return together

    return Decisions(exits, min(part.low for part in parts), max(part.high for part in parts))


def find_price(decisions: Decisions, target: float, num_layers: int) -> float:
    """Find, by bisection, the price at which runs have a given mean depth."""
    low, high = decisions.low, decisions.high
    for _ in range(STEPS):
        price = (low + high) / 2
        if decisions.exits(price).mean() / num_layers > target:
            low = price
        else:
            high = price
    return high


def judge(exits: NDArray[numpy.int64], runs: Traces) -> Row:
    """Judge exits (B,) by each loss: agreement, and that of the static cut, chance and the best mixture of cuts."""
    evaluation = comparison.evaluate("idea", torch.from_numpy(exits), runs)
    layers = evaluation.depth * runs.num_layers
    fields: Row = {"depth": evaluation.depth}
    for loss, prefix in FIELDS.items():
        by_layer = runs.losses[loss].double().mean(0).numpy()
        fields[f"{prefix}agreement"] = 1 - evaluation.losses[loss].mean
        fields[f"{prefix}mixture"] = 1 - mix_best(by_layer, layers)
        for name, other, gain in (
            ("static", evaluation.fixed, evaluation.gain),
            ("random", evaluation.random, evaluation.gain_over_random),
        ):
            fields[f"{prefix}{name}"] = 1 - other[loss]
            fields[f"{prefix}over_{name}"] = gain[loss].mean
            fields[f"{prefix}over_{name}_low"], fields[f"{prefix}over_{name}_high"] = gain[loss].low, gain[loss].high
    return fields


def follow_noise(exits: NDArray[numpy.int64], runs: Runs) -> Row:
    """Average the exit layer by ratio, and rank-correlate the two for each kind of noise, with clean as the highest."""
    conditions = numpy.asarray(runs.traces.conditions)
    layer_in = {condition.name: float(exits[conditions == condition.name].mean()) for condition in CONDITIONS}
    fields: Row = {"layers_clean": layer_in["clean"]}
    for snr_db in SNRS_DB:
        fields[f"layers_{snr_db:g}_db"] = float(numpy.mean([layer_in[f"{kind} {snr_db:g} dB"] for kind in NOISE_KINDS]))
    for kind in NOISE_KINDS:
        layers = [layer_in["clean"], *(layer_in[f"{kind} {snr_db:g} dB"] for snr_db in SNRS_DB)]
        # A constant exit layer has no rank correlation.
        rho = spearmanr([numpy.inf, *SNRS_DB], layers).statistic if len(set(layers)) > 1 else None
        fields[f"spearman_{kind}"] = rho if rho is None else float(rho)
    return fields


def make_row(idea: str, learnt: str, target: float, exits: NDArray[numpy.int64], runs: Runs) -> Row:
    """Make a row of ideas.json."""
    row: Row = {"idea": idea, "learnt": learnt, "target_depth": target, "num_runs": len(runs)}
    return row | judge(exits, runs.traces) | follow_noise(exits, runs)


def measure(dev: Runs, test: Runs | None, quick: bool) -> Iterator[Row]:
    """Measure hindsight and each idea at each depth, on test runs, or on dev runs if there are none."""
    judged = dev if test is None else test
    for loss, learnt in (("disagreement", "same input"), ("clean_disagreement", "clean recording")):
        for target in DEPTHS:
            best = comparison.find_best_exits(judged.traces, target, loss).numpy()
            yield make_row("hindsight", learnt, target, best, judged)
    for idea, (learner, learns) in list_ideas(dev, quick).items():
        for learnt in TARGETS if learns else ("nothing",):
            wanted = get_target(dev, learnt if learns else "same input")
            on_dev = cross_fit(learner, dev, wanted)
            on_judged = on_dev if test is None else learner(dev, test, wanted)
            for target in DEPTHS:
                price = find_price(on_dev, target, dev.traces.num_layers)
                yield make_row(idea, learnt, target, on_judged.exits(price), judged)


def print_row(row: Row) -> None:
    """Print a row as progress."""
    cells = [
        f"{row[f'{prefix}agreement']:.3f} over {other} {row[f'{prefix}over_{other}']:+.3f} "
        f"({row[f'{prefix}over_{other}_low']:+.3f} {row[f'{prefix}over_{other}_high']:+.3f})"
        for prefix in FIELDS.values()
        for other in ("static", "random")
    ]
    layers = " ".join(f"{row[name]:.1f}" for name in row if name.startswith("layers"))
    rho = " ".join("nan" if row[name] is None else f"{row[name]:+.1f}" for name in row if name.startswith("spearman"))
    print(f"{row['idea']:28} {row['learnt']:16} {row['depth']:.3f} ", *cells, f"layers {layers} rho {rho}", flush=True)


def main() -> None:
    parser = make_parser(__doc__, quick="a few recordings of dev audio, no network; nothing is written")
    parser.add_argument("model")
    parser.add_argument("--dry", action="store_true", help="judge dev audio, and write nothing")
    arguments = parser.parse_args()
    limit = 3 if arguments.quick else LIMIT
    is_final = not (arguments.quick or arguments.dry)
    dev = balance(load_runs(arguments.model, "dev", limit))
    test = balance(load_runs(arguments.model, "test", limit)) if is_final else None
    rows = []
    for row in measure(dev, test, arguments.quick):
        print_row(row)
        rows.append(row)
    if is_final:
        write_result("ideas", rows)


if __name__ == "__main__":
    run_script(main)
