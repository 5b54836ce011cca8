"""Unit error rate, bitrate and time against depth, for every policy; and the guarantee on unit errors.

    python -m benchmarks.units.policies daisy-mini

Policies are set on dev audio, clean and with noise of the train split, for 30 to 100 % of the layers, and judged on
test audio of five sets, clean and with noise of the test split. Errors are insertions, deletions and substitutions that
turn the units of the exit into those of all layers (daisy units --policy never), both without repetitions, per unit of
the latter. The same error against HuBERT's own prediction head is also measured. Bitrates are of units without
repetitions. Times cover the front end, the layers and the scores that a policy reads, on one core, relative to all
layers without scores. Depths and times weight recordings as the errors do, by their number of units.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

import daisy
from benchmarks.recognition.guarantee import measure_split, summarise
from benchmarks.shared.cuts import mix_best
from benchmarks.shared.frontier import average_exits, average_time, cut_at_time, find_exits
from benchmarks.shared.policy_times import measure_policy_times
from benchmarks.shared.recordings import TEST_SETS, TRAINING_SETS, read_utterances, spread_evenly
from benchmarks.shared.results import RESULTS, Row, write_result
from benchmarks.shared.script import make_parser, parse_positive, run_script
from benchmarks.units.runs import LOSSES, UnitRuns, run_units
from daisy.calibration.families import FAMILIES, fit_family
from daisy.calibration.traces import Traces
from daisy.cli.demonstration import DEPTH
from daisy.evaluation import comparison, figures
from daisy.evaluation.captions import say_points
from daisy.policies import DEFAULT_POLICY
from daisy.units import bitrate

DEPTHS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
LOSS = "unit_errors"
TARGETS = (0.1, 0.2, 0.3)
"""Target unit error rates of the guarantee."""
TIMED = 12
"""Number of recordings for timing the layers."""


def measure_frontier(tune: Traces, test: UnitRuns, families: Iterable[str]) -> list[tuple[Row, Tensor]]:
    """Tune policies to depths, and return a row for each, with the exits (B,) of the runs."""
    measured = []
    for name in families:
        family = None if name == "hindsight" else fit_family(name, tune, LOSS)
        for target in DEPTHS:
            exits = find_exits(family, tune, test.traces, target, LOSS)
            measured.append((make_row(name, target, exits, test), exits))
    return measured


def make_row(policy: str, target: float, exits: Tensor, runs: UnitRuns) -> Row:
    """Make a row of discrete_units.json."""
    evaluation = comparison.evaluate(policy, exits, runs.traces)
    row = {
        "policy": policy,
        "target_depth": target,
        "depth": evaluation.depths[LOSS],
        "exit_layer": evaluation.mean_exit_layer.mean,
        "num_runs": evaluation.num_runs,
        "bitrate": bitrate(runs.of_exits(exits.tolist()), runs.seconds),
    }
    for loss in LOSSES:
        row[loss], row[f"{loss}_low"], row[f"{loss}_high"] = evaluation.losses[loss]
        row[f"{loss}_static"], row[f"{loss}_random"] = evaluation.fixed[loss], evaluation.random[loss]
        layers = evaluation.depths[loss] * runs.traces.num_layers
        row[f"{loss}_mixture"] = mix_best(average_exits(runs.traces, loss).numpy(), layers)
        gain, low, high = evaluation.gain[loss]
        row |= {f"{loss}_gain": gain, f"{loss}_gain_low": low, f"{loss}_gain_high": high}
    return row


def measure_guarantee(pool: Traces, num_splits: int) -> list[Row]:
    """Certify unit error rates on halves of the speakers, and measure them on the other half."""
    rows = []
    for policy in ("forecast", "entropy"):
        splits = [measure_split(pool, LOSS, seed, targets=TARGETS, policy=policy) for seed in range(num_splits)]
        rows += summarise(policy, LOSS, pool, splits)
    return rows


def draw(rows: Sequence[Row], path: Path = RESULTS / "discrete_units.png") -> None:
    """Draw the unit error rate against the time."""
    curves: dict[str, list[tuple[float, float]]] = {}
    bands: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        curves.setdefault(row["policy"], []).append((row["time"], row[LOSS]))
        bands.setdefault(row["policy"], []).append((row[f"{LOSS}_low"], row[f"{LOSS}_high"]))
    spoken = min((row for row in rows if row["policy"] == DEFAULT_POLICY), key=lambda row: abs(row["depth"] - DEPTH))
    values = [(DEFAULT_POLICY, spoken[LOSS]), ("static cut in that time", spoken[f"{LOSS}_static_at_time"])]
    figure = figures.draw_lines(
        curves,
        across="time, relative to all layers",
        up="edit distance to the full model's units, per unit",
        title=say_points("of the time, errors per unit:", spoken["time"], values),
        bands=bands,
    )
    figures.save(figure, path)


def main() -> None:
    parser = make_parser(__doc__, quick="a few utterances of each set; nothing is written")
    parser.add_argument("model")
    parser.add_argument("--splits", type=parse_positive, default=200, help="number of splits for the guarantee")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    limit = 4 if arguments.quick else None
    model = daisy.load(arguments.model)
    tune = run_units(model, TRAINING_SETS, "dev", "train", limit)
    test = run_units(model, TEST_SETS, "test", "test", limit)
    families = [*comparison.list_families(tune.traces, LOSS), "hindsight"]
    families = [name for name in (*FAMILIES, "hindsight") if name in families]
    measured = measure_frontier(tune.traces, test, families)
    utterances = spread_evenly(read_utterances(TEST_SETS, "test"), limit or TIMED)
    sample = [utterance.waveform for utterance in utterances]
    times = measure_policy_times(model.backbone, model.heads, sample, families, tune.traces, LOSS)
    static = average_exits(test.traces, LOSS)
    rows = []
    for row, exits in measured:
        time = average_time(times[row["policy"]], exits, test.traces, LOSS)
        rows.append({**row, "time": time, f"{LOSS}_static_at_time": cut_at_time(static, times["fixed"], time)})
    for row in rows:
        print(
            f"{row['policy']:18} {row['target_depth']:.0%}  depth {row['depth']:.3f}  time {row['time']:.3f}  errors "
            f"{row['unit_errors']:.4f}  static {row['unit_errors_static']:.4f}  gain {row['unit_errors_gain']:+.4f} "
            f"[{row['unit_errors_gain_low']:+.4f}, {row['unit_errors_gain_high']:+.4f}]  own head "
            f"{row['final_head_unit_errors']:.4f}  {row['bitrate']:.0f} bits a second"
        )
    clean = [runs.traces.of_condition("clean") for runs in (tune, test)]
    guaranteed = measure_guarantee(daisy.calibration.traces.join_traces(clean), 5 if limit else arguments.splits)
    for row in guaranteed:
        print(
            f"{row['system']:18} at most {row['target']:.2f}  violations {row['violations']:.3f}  test risk "
            f"{row['mean_test_risk']:.4f}  depth {row['depth']:.3f}  none certified {row['none_certified']:.2f}"
        )
    if not arguments.quick:
        write_result("discrete_units", rows)
        write_result("discrete_units_guarantee", guaranteed)
        draw(rows)


if __name__ == "__main__":
    run_script(main)
