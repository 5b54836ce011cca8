"""Mean exit layer against signal-to-noise ratio, by policy, kind of noise and set.

    python benchmarks/noise_curve.py daisy-mini

Policies are set for 60 % depth on dev audio, clean and with all kinds of noise, and judged on test audio of five
sets (benchmarks/full_runs.py). Intervals resample speakers.
"""

from __future__ import annotations

import argparse

import torch
from common import RESULTS, guarded, write
from full_runs import KINDS, SNRS_DB, TEST_SETS, calibration_runs, judged_runs

from daisy.calibration.depth import calibrate_depth
from daisy.calibration.traces import Traces
from daisy.evaluation import comparison, figures, study

DEPTH = 0.6
POLICIES = ("forecast", "plateau", "entropy", "regressed", "confidence", "margin", "patience", "agreement", "oracle")
SHOWN = ("forecast", "plateau", "entropy")


def rows_of(policy: str, runs: Traces, exits: torch.Tensor) -> list[dict]:
    measured = []
    for set_name in ("all", *TEST_SETS):
        mine = [i for i, name in enumerate(runs.utterances) if set_name in ("all", name.split("/")[0])]
        for verdict in comparison.evaluate_by_condition(policy, exits[mine], runs.select(mine))[1:]:
            kind, _, level = verdict.condition.partition(" ")
            layer = verdict.mean_exit_layer
            measured.append(
                {
                    "policy": policy,
                    "set": set_name,
                    "noise": "none" if kind == "clean" else kind,
                    "snr_db": float(level.split()[0]) if level.endswith("dB") else None,
                    "condition": verdict.condition,
                    "num_utterances": verdict.num_runs,
                    "mean_exit_layer": layer.mean,
                    "low": layer.low,
                    "high": layer.high,
                    "unit_agreement": 1 - verdict.losses["disagreement"].mean,
                    "fixed_unit_agreement": 1 - verdict.fixed["disagreement"],
                    "random_unit_agreement": 1 - verdict.random["disagreement"],
                    "clean_unit_agreement": 1 - verdict.losses["clean_disagreement"].mean,
                    "kl_nats": verdict.losses["kl_nats"].mean,
                    "histogram": list(verdict.histogram),
                }
            )
    return measured


def regimes(runs: Traces) -> list[dict]:
    """Where depth still buys something: what layers keep, and where hindsight would leave at 60 % depth overall."""
    exits = {loss: comparison.find_best_exits(runs, DEPTH, loss) for loss in ("disagreement", "clean_disagreement")}
    found = []
    for condition in dict.fromkeys(runs.conditions):
        rows = runs.rows_of(condition)
        part = runs.select(rows)
        same, clean = (1 - part.losses[name].mean(0) for name in exits)
        found.append(
            {
                "condition": condition,
                "unit_agreement_first": float(same[0]),
                "unit_agreement_last": float(same[-1]),
                "clean_unit_agreement_first": float(clean[0]),
                "clean_unit_agreement_best": float(clean.max()),
                "clean_unit_agreement_best_layer": int(clean.argmax()) + 1,
                "clean_unit_agreement_after_layer_6": float(clean.max() - clean[5]),
                "hindsight_exit_layer": float(exits["disagreement"][rows].double().mean()),
                "hindsight_clean_exit_layer": float(exits["clean_disagreement"][rows].double().mean()),
            }
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--quick", action="store_true", help="a few utterances of each set; nothing is written")
    arguments = parser.parse_args()
    limit = 6 if arguments.quick else None
    tune, test = calibration_runs(arguments.model, limit), judged_runs(arguments.model, limit)
    measured, correlations, curves = [], [], {}
    ratios = [snr for snr in SNRS_DB if snr is not None]
    for name in POLICIES:
        exits = calibrate_depth(name, tune, DEPTH).policy.exit_layers(test.scores)
        measured += rows_of(name, test, exits)
        verdicts = comparison.evaluate_by_condition(name, exits, test)
        of = {verdict.condition: verdict.mean_exit_layer for verdict in verdicts}
        for kind in KINDS:
            rho = study.correlate_with_snr(verdicts, name, kind, ratios)
            layers = [of["clean"], *(of[f"{kind} {snr:g} dB"] for snr in ratios)]
            rise = layers[4].mean - layers[0].mean
            correlations.append({"policy": name, "noise": kind, "spearman": rho, "rise_clean_to_0_db": rise})
            print(
                f"{name:10} {kind:9} rho {rho:+.2f} ", *(f"{e.mean:5.2f} [{e.low:.2f}, {e.high:.2f}]" for e in layers)
            )
            if kind == KINDS[0] and name in SHOWN:
                curves[name] = layers
    where = regimes(test)
    for line in where:
        print(line)
    if not arguments.quick:
        write("noise_curve", measured)
        write("adaptivity", correlations)
        write("regimes", where)
        figure = figures.draw_exit_layers_by_snr(
            SNRS_DB,
            curves,
            num_layers=test.num_layers,
            title=f"{len(set(test.utterances))} utterances, recorded noise; set for {DEPTH:.0%} depth on others",
        )
        figures.save(figure, RESULTS / "noise_curve.png")


if __name__ == "__main__":
    guarded(main)
