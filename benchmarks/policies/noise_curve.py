"""Mean exit layer against signal-to-noise ratio, by policy, kind of noise and set.

    python -m benchmarks.policies.noise_curve daisy-mini

Policies are set for 60 % depth on dev audio, clean and with all kinds of noise, and judged on test audio of five
sets (benchmarks/shared/full_runs.py). Intervals resample speakers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from benchmarks.policies.rows import make_agreement_fields
from benchmarks.shared.full_runs import NOISE_KINDS, NOISY_SNRS_DB, load_calibration_runs, load_test_runs
from benchmarks.shared.recordings import TEST_SETS
from benchmarks.shared.results import RESULTS, Row, write_result
from benchmarks.shared.script import make_parser, run_script
from daisy.calibration.depth import calibrate_depth
from daisy.calibration.intervals import Estimate
from daisy.calibration.traces import Traces
from daisy.cli.demonstration import DEPTH
from daisy.cli.options import DEFAULT_POLICY, SNRS_DB
from daisy.evaluation import comparison, figures, study
from daisy.evaluation.captions import say_exits
from daisy.evaluation.comparison import Evaluation

POLICIES = ("forecast", "plateau", "entropy", "regressed", "confidence", "margin", "patience", "agreement", "oracle")
DRAWN = ("forecast", "plateau", "entropy")


def measure_sets(policy: str, runs: Traces, exits: Tensor) -> list[Row]:
    """Measure a policy's exits (B,) in each condition, on all sets and on each."""
    rows = []
    for set_name in ("all", *TEST_SETS):
        of_set = [index for index, name in enumerate(runs.utterances) if set_name in ("all", name.split("/")[0])]
        evaluations = comparison.evaluate_by_condition(policy, exits[of_set], runs.select(of_set))
        rows += [make_row(policy, set_name, evaluation) for evaluation in evaluations[1:]]
    return rows


def make_row(policy: str, set_name: str, evaluation: Evaluation) -> Row:
    """Make a row of noise_curve.json."""
    kind, _, level = evaluation.condition.partition(" ")
    layer = evaluation.mean_exit_layer
    return {
        "policy": policy,
        "set": set_name,
        "noise": "none" if kind == "clean" else kind,
        "snr_db": float(level.split()[0]) if level.endswith("dB") else None,
        "condition": evaluation.condition,
        "num_utterances": evaluation.num_runs,
        "mean_exit_layer": layer.mean,
        "low": layer.low,
        "high": layer.high,
        **make_agreement_fields(evaluation),
        "histogram": list(evaluation.histogram),
    }


def measure_regimes(runs: Traces) -> list[Row]:
    """Measure where depth still helps: fidelity of the layers, and where hindsight would exit at `DEPTH`."""
    exits = {loss: comparison.find_best_exits(runs, DEPTH, loss) for loss in ("disagreement", "clean_disagreement")}
    rows = []
    for condition in dict.fromkeys(runs.conditions):
        indices = runs.rows_of(condition)
        part = runs.select(indices)
        same, clean = (1 - part.losses[name].mean(0) for name in exits)
        rows.append(
            {
                "condition": condition,
                "unit_agreement_first": float(same[0]),
                "unit_agreement_last": float(same[-1]),
                "clean_unit_agreement_first": float(clean[0]),
                "clean_unit_agreement_best": float(clean.max()),
                "clean_unit_agreement_best_layer": int(clean.argmax()) + 1,
                "clean_unit_agreement_after_layer_6": float(clean.max() - clean[5]),
                "hindsight_exit_layer": float(exits["disagreement"][indices].double().mean()),
                "hindsight_clean_exit_layer": float(exits["clean_disagreement"][indices].double().mean()),
            }
        )
    return rows


def correlate(policy: str, evaluations: Sequence[Evaluation]) -> list[Row]:
    """Correlate a policy's exits with the ratio, for each kind of noise: rows of adaptivity.json."""
    layer_in = {evaluation.condition: evaluation.mean_exit_layer for evaluation in evaluations}
    rows = []
    for kind in NOISE_KINDS:
        rho = study.correlate_with_snr(evaluations, policy, kind, NOISY_SNRS_DB)
        curve = [layer_in["clean"], *(layer_in[f"{kind} {snr_db:g} dB"] for snr_db in NOISY_SNRS_DB)]
        rise = layer_in[f"{kind} 0 dB"].mean - layer_in["clean"].mean
        rows.append({"policy": policy, "noise": kind, "spearman": rho, "rise_clean_to_0_db": rise})
        layers = (f"{layer.mean:5.2f} [{layer.low:.2f}, {layer.high:.2f}]" for layer in curve)
        print(f"{policy:10} {kind:9} rho {rho:+.2f} ", *layers)
    return rows


def draw(rows: Sequence[Row], path: Path = RESULTS / "noise_curve.png") -> None:
    """Draw the mean exit layer against the ratio of recorded noise."""
    of_all = [row for row in rows if row["set"] == "all" and row["noise"] in ("none", "recorded")]
    curves = {
        policy: [
            Estimate(row["mean_exit_layer"], row["low"], row["high"])
            for snr_db in SNRS_DB
            for row in of_all
            if (row["policy"], row["snr_db"]) == (policy, snr_db)
        ]
        for policy in DRAWN
    }
    figure = figures.draw_exit_layers_by_snr(
        SNRS_DB,
        curves,
        num_layers=len(of_all[0]["histogram"]),
        title=say_exits(DEFAULT_POLICY, curves[DEFAULT_POLICY], [figures.format_snr(snr_db) for snr_db in SNRS_DB]),
    )
    figures.save(figure, path)


def main() -> None:
    parser = make_parser(__doc__, quick="a few utterances of each set; nothing is written")
    parser.add_argument("model")
    arguments = parser.parse_args()
    limit = 6 if arguments.quick else None
    tune, test = load_calibration_runs(arguments.model, limit), load_test_runs(arguments.model, limit)
    rows, correlations = [], []
    for policy in POLICIES:
        exits = calibrate_depth(policy, tune, DEPTH).policy.exit_layers(test.scores)
        rows += measure_sets(policy, test, exits)
        correlations += correlate(policy, comparison.evaluate_by_condition(policy, exits, test))
    regimes = measure_regimes(test)
    for row in regimes:
        print(row)
    if not arguments.quick:
        write_result("noise_curve", rows)
        write_result("adaptivity", correlations)
        write_result("regimes", regimes)
        draw(rows)


if __name__ == "__main__":
    run_script(main)
