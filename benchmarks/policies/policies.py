"""Every policy at every depth: fidelity, compared with the static cut, chance, oracle and hindsight.

    python -m benchmarks.policies.policies daisy-mini

Also measures the variants of plateau, the window of the published code by batch size, and the cost of a decision. Times
cover the front end, the layers and the scores that a policy reads, on one core, relative to all layers without scores.
Policies are tuned on dev audio (librispeech, commands, keywords; clean and with noise of the train split) and judged on
test audio of five sets, clean and with recorded, white, pink and babble noise at 20 to -5 dB
(benchmarks/shared/full_runs.py).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy
import torch
from torch import Tensor

import daisy
from benchmarks.policies.plateau_forms import fit_plateau_forms
from benchmarks.policies.rows import LOSS, make_agreement_fields, make_gain_fields
from benchmarks.policies.windows import calibrate_threshold, exit_alone, exit_in_batches, fit_windows
from benchmarks.shared.cuts import mix_best
from benchmarks.shared.frontier import average_exits, average_time, cut_at_time, find_exits
from benchmarks.shared.full_runs import NOISE_KINDS, load_calibration_runs, load_test_runs
from benchmarks.shared.policy_times import measure_policy_times
from benchmarks.shared.recordings import TEST_SETS, read_utterances, spread_evenly
from benchmarks.shared.results import RESULTS, Row, write_result
from benchmarks.shared.script import make_parser, run_script
from daisy import policies
from daisy.calibration.depth import calibrate_depth, find_quantile
from daisy.calibration.families import FAMILIES, fit_family
from daisy.calibration.traces import Traces
from daisy.checkpoints import Model
from daisy.cli.demonstration import DEPTH
from daisy.cli.options import DEFAULT_POLICY
from daisy.evaluation import comparison, figures
from daisy.evaluation.captions import say_points
from daisy.evaluation.comparison import Evaluation
from daisy.evaluation.study import DEPTHS
from daisy.policies import Policy

BATCHES = (1, 8, 32)
TIMED_DECISIONS = 200
TIMED = 24
"""Number of recordings for timing the layers."""
CHANCE = f"chance, of {DEFAULT_POLICY}'s histogram"
DRAWN = (DEFAULT_POLICY, "entropy", "plateau", "confidence", "patience", "fixed", "hindsight", CHANCE)
"""The eight policies in the figure; the table has all."""


def select_noise(runs: Traces) -> Traces:
    """Select clean and noisy runs, without rooms and clipping."""
    kinds = ("clean", *NOISE_KINDS)
    return runs.select([index for index, name in enumerate(runs.conditions) if name.split()[0] in kinds])


def measure_frontier(tune: Traces, test: Traces, times: Mapping[str, Tensor]) -> list[Row]:
    """Measure every policy and the variants of plateau, tuned for each depth and judged on other runs.

    Args:
        tune: runs that policies learn and are set on.
        test: runs that they are judged on.
        times: time until the exit at each layer, by policy; see `measure_policy_times`.
    """
    families = {name: fit_family(name, tune, LOSS) for name in list_families(tune)}
    forms = {family.at(0.5).name: family for family in fit_plateau_forms(tune).values()}
    static, rows = average_exits(test, LOSS), []
    for name, family in {**families, "hindsight": None, **forms}.items():
        of_layers = times["plateau" if name in forms else name]  # the variants read the entropy too
        for target in DEPTHS:
            exits = find_exits(family, tune, test, target, LOSS)
            row = make_row(target, comparison.evaluate(name, exits, test))
            time = average_time(of_layers, exits, test, LOSS)
            row |= {
                "mixture_unit_agreement": 1 - mix_best(static.numpy(), float(exits.double().mean())),
                "time": time,
                "fixed_at_time_unit_agreement": 1 - cut_at_time(static, times["fixed"], time),
            }
            rows.append(row)
    return rows


def list_families(tune: Traces) -> list[str]:
    """List the policies that can be set on some runs."""
    return [name for name in FAMILIES if name in comparison.list_families(tune, LOSS)]


def time_layers(model: Model, tune: Traces, limit: int | None = None) -> dict[str, Tensor]:
    """Time the exit at each layer for each policy, on recordings of all test sets."""
    utterances = spread_evenly(read_utterances(TEST_SETS, "test"), limit or TIMED)
    waveforms = [utterance.waveform for utterance in utterances]
    return measure_policy_times(model.backbone, model.heads, waveforms, [*list_families(tune), "hindsight"], tune, LOSS)


def measure_on_dev(tune: Traces) -> list[Row]:
    """Measure what the default was chosen by: runs that policies are set on, cross-fitted for those that learn."""
    rows = []
    for name in FAMILIES:
        family = fit_family(name, tune)
        for target in DEPTHS:
            exits = family.exit_layers(find_quantile(family, tune, target))
            rows.append(make_row(target, comparison.evaluate(name, exits, tune)))
    return rows


def make_row(target: float, evaluation: Evaluation) -> Row:
    """Make a row of policies.json, policies_dev.json and windows.json."""
    loss = evaluation.losses[LOSS]
    return {
        "policy": evaluation.policy,
        "target_depth": target,
        "depth": evaluation.depth,
        "low": 1 - loss.high,
        "high": 1 - loss.low,
        **make_agreement_fields(evaluation),
        **make_gain_fields(evaluation),
        "clean_gain": evaluation.gain["clean_disagreement"].mean,
        "num_runs": evaluation.num_runs,
    }


def measure_windows(tune: Traces, test: Traces) -> list[Row]:
    """Compare the published form, one entropy threshold with one exit per batch, with exits of each utterance."""
    threshold = calibrate_threshold(tune, DEPTH)
    by_utterance = policies.Entropy(threshold=threshold).exit_layers(test.scores)
    single = comparison.evaluate("entropy", by_utterance, test)
    rows = [{"batch": size, "layers": "", "other_than_alone": 0.0, **make_row(DEPTH, single)} for size in BATCHES]
    for kind, window in fit_windows(threshold, tune).items():
        alone = exit_alone(window, test)
        for size in BATCHES:
            exits = exit_in_batches(window, test, size)
            row = make_row(DEPTH, comparison.evaluate(f"daisy_window, {kind}", exits, test))
            changed = float((exits != alone).float().mean())
            looked_at = f"{window.first} to {window.last}"
            rows.append({"batch": size, "layers": looked_at, "other_than_alone": changed, **row})
    return rows


def make_timed_policies(tune: Traces) -> dict[str, Policy]:
    """Make a policy of every kind for timing."""
    chosen = {name: calibrate_depth(name, tune, DEPTH).policy for name in FAMILIES if name != "oracle"}
    cost = (1.0, 1.0, 0.001)
    chosen["deadline"] = policies.Deadline(budget=1e3, front_cost=cost, layer_cost=cost)
    chosen["random"] = policies.Random(histogram=(1.0,) * tune.num_layers)
    chosen["daisy_window"] = policies.Window(threshold=chosen["entropy"].to_config()["threshold"], first=6, last=8)
    return chosen


def time_decisions(tune: Traces, num_utterances: int = 32) -> list[Row]:
    """Time the decisions at all layers, in microseconds per utterance, by batch size; heads not included."""
    rows = []
    for name, policy in make_timed_policies(tune).items():
        for size in (1, num_utterances):
            scores = {score: values[:size] for score, values in tune.scores.items()}
            seconds = []
            for _ in range(TIMED_DECISIONS):
                start = time.perf_counter()
                for layer in range(1, tune.num_layers):
                    policy.decide({score: scores[score][:, :layer] for score in policy.reads}, layer)
                seconds.append((time.perf_counter() - start) / size)
            low, median, high = numpy.quantile(seconds, [0.25, 0.5, 0.75]) * 1e6
            rows.append({"policy": name, "batch": size, "decision_us": median, "low_us": low, "high_us": high})
    return rows


def draw(rows: Sequence[Row], path: Path = RESULTS / "policies.png") -> None:
    """Draw fidelity against depth."""
    curves: dict[str, list[tuple[float, float]]] = {}
    bands: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        curves.setdefault(row["policy"], []).append((row["depth"], row["unit_agreement"]))
        bands.setdefault(row["policy"], []).append((row["low"], row["high"]))
    curves[CHANCE] = [(row["depth"], row["random_unit_agreement"]) for row in rows if row["policy"] == DEFAULT_POLICY]
    (spoken,) = (row for row in rows if (row["policy"], row["target_depth"]) == (DEFAULT_POLICY, DEPTH))
    kept = [
        (name, spoken[field])
        for name, field in (
            (DEFAULT_POLICY, "unit_agreement"),
            ("static cut", "fixed_unit_agreement"),
            ("chance", "random_unit_agreement"),
        )
    ]
    figure = figures.draw_lines(
        {name: curves[name] for name in DRAWN},
        across="executed share of the layers",
        up="share of units that are the full model's",
        title=say_points("of the layers, share of the full model's units:", spoken["depth"], kept, ".2f"),
        black=(CHANCE,),
        bands=bands,
    )
    figures.save(figure, path)


def main() -> None:
    parser = make_parser(__doc__, quick="a few utterances of each set; nothing is written")
    parser.add_argument("model")
    arguments = parser.parse_args()
    limit = 6 if arguments.quick else None
    tune, test = load_calibration_runs(arguments.model, limit), select_noise(load_test_runs(arguments.model, limit))
    torch.set_num_threads(1)
    rows = measure_frontier(tune, test, time_layers(daisy.load(arguments.model), tune, limit))
    for row in rows:
        print(
            f"{row['policy']:32} {row['target_depth']:.0%}  depth {row['depth']:.3f}  agreement "
            f"{row['unit_agreement']:.4f}  fixed {row['fixed_unit_agreement']:.4f}  chance "
            f"{row['random_unit_agreement']:.4f}  gain {row['gain']:+.4f} [{row['gain_low']:+.4f}, "
            f"{row['gain_high']:+.4f}]  time {row['time']:.3f}, cut in it {row['fixed_at_time_unit_agreement']:.4f}  "
            f"clean {row['clean_unit_agreement']:.4f} {row['clean_gain']:+.4f}"
        )
    by_batch, costs = measure_windows(tune, test), time_decisions(tune)
    for row in by_batch:
        print(
            f"{row['policy']:28} batch {row['batch']:2}  layers {row['layers']:8}  depth {row['depth']:.3f}  "
            f"agreement {row['unit_agreement']:.4f}  gain {row['gain']:+.4f}  exits unlike alone "
            f"{row['other_than_alone']:.3f}"
        )
    for row in costs:
        print(f"{row['policy']:20} batch {row['batch']:2}  {row['decision_us']:.1f} us an utterance")
    if not arguments.quick:
        write_result("policies", rows)
        write_result("policies_dev", measure_on_dev(tune))
        write_result("windows", by_batch)
        write_result("decisions", costs)
        draw(rows)


if __name__ == "__main__":
    run_script(main)
