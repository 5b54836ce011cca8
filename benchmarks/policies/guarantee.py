"""Does the guarantee hold? Calibrated and tested on random halves of real audio, split by speaker, again and again.

    python benchmarks/guarantee.py daisy-mini

Runs of benchmarks/full_runs.py: dev and test audio of five sets. In each split half of the speakers calibrate (a third
of them learn the policy, two thirds certify it), the other half tests. A violation is a test risk, the mean over the
test speakers, above the target. With clean audio alone, and with all SNRs of recorded noise; and what a certificate
from clean audio is worth under noise. Beside it what the same audio would choose without certifying: the cheapest
setting whose mean loss is below the target.
"""

from __future__ import annotations

import argparse

import numpy
import torch
from common import guarded, write
from full_runs import calibration_runs, judged_runs
from rich.progress import Progress

from daisy.calibration import guarantee, traces
from daisy.calibration.traces import Traces

TARGETS = {"disagreement": (0.2, 0.3, 0.4), "kl_nats": (0.1, 0.2, 0.3)}
CEILING = {"disagreement": 1.0, "kl_nats": 4.0}
DELTA = 0.1
POLICIES = ("forecast", "entropy")


def group_losses(runs: Traces, exits: torch.Tensor, loss: str) -> numpy.ndarray:
    """(groups, S) losses of each speaker under each setting."""
    return guarantee.compute_risks(runs, exits, loss, CEILING[loss])


def uncertified(runs: Traces, exits: torch.Tensor, loss: str, alpha: float) -> int | None:
    """The cheapest setting whose mean loss on the certifying speakers is at most alpha in every condition."""
    means = [
        group_losses(part, exits[rows], loss).mean(0)
        for condition in dict.fromkeys(runs.conditions)
        for rows in [runs.rows_of(condition)]
        for part in [runs.select(rows)]
    ]
    fits = numpy.flatnonzero(numpy.stack(means).max(0) <= alpha)
    return int(fits[-1]) if len(fits) else None


def one_split(pool: Traces, noisy: Traces, policy: str, seed: int) -> list[dict]:
    """Chosen settings and their test risks, for every method, loss and target."""
    calibrate, test = pool.halves(seed)
    learn, judge = calibrate.split(guarantee.LEARN_SHARE, seed)
    noisy_test = noisy.of_groups(test.groups)
    rows = []
    for loss, targets in TARGETS.items():
        ladder_policies = guarantee.ladder(policy, learn, loss)
        exits = {name: guarantee.compute_exits(ladder_policies, runs) for name, runs in (("judge", judge), ("test", test))}
        noisy_exits = guarantee.compute_exits(ladder_policies, noisy_test)
        test_losses = {
            condition: group_losses(test.select(index), exits["test"][index], loss)
            for condition in dict.fromkeys(test.conditions)
            for index in [test.rows_of(condition)]
        }
        depths = exits["test"].double().mean(0).numpy() / pool.num_layers
        noisy_risk = group_losses(noisy_test, noisy_exits, loss).mean(0)
        for alpha in targets:
            plain = uncertified(judge, exits["judge"], loss, alpha)
            for method in guarantee.METHODS:
                chosen = guarantee.certify(
                    exits["judge"], judge, alpha, DELTA, method=method, loss=loss, ceiling=CEILING[loss], seed=seed
                )
                worst = max(of[:, chosen].mean() for of in test_losses.values()) if chosen is not None else 0.0
                rows.append(
                    {
                        "loss": loss,
                        "risk": alpha,
                        "method": method,
                        "test_risk": worst,
                        "noisy_test_risk": noisy_risk[chosen] if chosen is not None else 0.0,
                        "depth": depths[chosen] if chosen is not None else 1.0,
                        "none": not chosen,
                        "uncertified_depth": depths[plain] if plain is not None else 1.0,
                        "uncertified_risk": max(of[:, plain].mean() for of in test_losses.values())
                        if plain is not None
                        else 0.0,
                    }
                )
    return rows


def summarise(name: str, policy: str, rows: list[dict], splits: int) -> list[dict]:
    found = []
    for loss, targets in TARGETS.items():
        for alpha in targets:
            for method in guarantee.METHODS:
                chosen = [r for r in rows if (r["loss"], r["risk"], r["method"]) == (loss, alpha, method)]
                mean = lambda field, chosen=chosen: float(numpy.mean([row[field] for row in chosen]))  # noqa: E731
                found.append(
                    {
                        "audio": name,
                        "policy": policy,
                        "method": method,
                        "risk_name": loss,
                        "risk": alpha,
                        "delta": DELTA,
                        "splits": splits,
                        "violations": sum(row["test_risk"] > alpha for row in chosen) / splits,
                        "uncertified_violations": sum(row["uncertified_risk"] > alpha for row in chosen) / splits,
                        "violations_under_noise": sum(row["noisy_test_risk"] > alpha for row in chosen) / splits,
                        "mean_test_risk": mean("test_risk"),
                        "mean_risk_under_noise": mean("noisy_test_risk"),
                        "depth": mean("depth"),
                        "uncertified_depth": mean("uncertified_depth"),
                        "none_certified": mean("none"),
                    }
                )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--splits", type=int, default=300)
    parser.add_argument("--quick", action="store_true", help="a few splits; nothing is written")
    arguments = parser.parse_args()
    splits = 5 if arguments.quick else arguments.splits
    runs = traces.join_traces(
        [calibration_runs(arguments.model, parts=["recorded"]), judged_runs(arguments.model, parts=["recorded"])]
    )
    noisy_names = [c for c in dict.fromkeys(runs.conditions) if c.startswith("recorded")]
    noisy = traces.join_traces([runs.of_condition(name) for name in noisy_names])
    clean = runs.of_condition("clean")
    pools = {"clean": clean, "clean and recorded noise": traces.join_traces([clean, noisy])}
    measured = []
    with Progress() as bar:
        task = bar.add_task("splits", total=splits * len(pools) * len(POLICIES))
        for name, pool in pools.items():
            for policy in POLICIES:
                rows = []
                for seed in range(splits):
                    rows += one_split(pool, noisy, policy, seed)
                    bar.advance(task)
                measured += summarise(name, policy, rows, splits)
    for row in measured:
        print(
            f"{row['audio']:24} {row['policy']:9} {row['risk_name']:12} {row['risk']:.1f} {row['method']:18} "
            f"violations {row['violations']:.3f} (uncertified {row['uncertified_violations']:.3f}, under noise "
            f"{row['violations_under_noise']:.3f})  depth {row['depth']:.3f} "
            f"(uncertified {row['uncertified_depth']:.3f})"
        )
    if not arguments.quick:
        write("guarantee", measured)


if __name__ == "__main__":
    guarded(main)
