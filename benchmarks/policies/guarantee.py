"""Does the guarantee hold? Repeated calibration and test on random halves of real audio, split by speaker.

    python -m benchmarks.policies.guarantee daisy-mini

Uses the runs of benchmarks/shared/full_runs.py: dev and test audio of five sets. In each split, half of the speakers
calibrate (a third of them to learn the policy, two thirds to certify it), and the other half tests. A violation is a
test risk, the mean over the test speakers, above the target. Measured with clean audio alone, and with all SNRs of
recorded noise; and what a certificate from clean audio is worth under noise. For comparison: the choice from the same
audio without certification, the cheapest setting whose mean loss is below the target.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy
from numpy.typing import NDArray
from rich.progress import Progress
from torch import Tensor

from benchmarks.shared.full_runs import load_calibration_runs, load_test_runs
from benchmarks.shared.results import Row, write_result
from benchmarks.shared.script import make_parser, parse_positive, run_script
from daisy.calibration import guarantee, traces
from daisy.calibration.traces import Traces

TARGETS = {"disagreement": (0.2, 0.3, 0.4), "kl_nats": (0.1, 0.2, 0.3)}
CEILING = {"disagreement": 1.0, "kl_nats": 4.0}
DELTA = 0.1
POLICIES = ("forecast", "entropy")


def split_conditions(runs: Traces, exits: Tensor) -> Iterator[tuple[Traces, Tensor]]:
    """Yield the runs of each condition, and their rows of the exits (B, S)."""
    for condition in dict.fromkeys(runs.conditions):
        rows = runs.rows_of(condition)
        yield runs.select(rows), exits[rows]


def compute_losses(runs: Traces, exits: Tensor, loss: str) -> NDArray[numpy.floating[Any]]:
    """Compute the (groups, S) losses of each speaker, given the exits (B, S) of each setting."""
    return guarantee.compute_risks(runs, exits, loss, CEILING[loss])


def choose_uncertified(runs: Traces, exits: Tensor, loss: str, alpha: float) -> int | None:
    """Choose the cheapest setting whose mean loss on the certifying speakers is at most alpha in every condition."""
    means = [compute_losses(part, rows, loss).mean(0) for part, rows in split_conditions(runs, exits)]
    fits = numpy.flatnonzero(numpy.stack(means).max(0) <= alpha)
    return int(fits[-1]) if len(fits) else None


def measure_split(pool: Traces, noisy: Traces, policy: str, seed: int) -> list[Row]:
    """Measure one split: the chosen settings and their test risks, for every method, loss and target."""
    calibrating, test = pool.halves(seed)
    learning, certifying = calibrating.split(guarantee.LEARN_SHARE, seed)
    noisy_test = noisy.of_groups(test.groups)
    return [
        row for loss in TARGETS for row in _measure_loss(loss, policy, learning, certifying, test, noisy_test, seed)
    ]


def _measure_loss(
    loss: str, policy: str, learning: Traces, certifying: Traces, test: Traces, noisy_test: Traces, seed: int
) -> list[Row]:
    ladder = guarantee.make_ladder(policy, learning, loss)
    certifying_exits, test_exits, noisy_exits = (
        guarantee.compute_exits(ladder, runs) for runs in (certifying, test, noisy_test)
    )
    test_risks = numpy.stack(
        [compute_losses(part, rows, loss).mean(0) for part, rows in split_conditions(test, test_exits)]
    ).max(0)  # (S,), in the worst condition
    noisy_risks = compute_losses(noisy_test, noisy_exits, loss).mean(0)
    depths = test_exits.double().mean(0).numpy() / test.num_layers
    rows = []
    for alpha in TARGETS[loss]:
        uncertified = choose_uncertified(certifying, certifying_exits, loss, alpha)
        for method in guarantee.METHODS:
            chosen = guarantee.certify(
                certifying_exits, certifying, alpha, DELTA,
                method=method, loss=loss, ceiling=CEILING[loss], seed=seed,
            )  # fmt: skip
            rows.append(
                {
                    "loss": loss,
                    "risk": alpha,
                    "method": method,
                    "test_risk": 0.0 if chosen is None else test_risks[chosen],
                    "noisy_test_risk": 0.0 if chosen is None else noisy_risks[chosen],
                    "depth": 1.0 if chosen is None else depths[chosen],
                    "none": not chosen,
                    "uncertified_depth": 1.0 if uncertified is None else depths[uncertified],
                    "uncertified_risk": 0.0 if uncertified is None else test_risks[uncertified],
                }
            )
    return rows


def summarise(pool: str, policy: str, rows: list[Row], splits: int) -> list[Row]:
    """Summarise all splits of a pool of audio: one row of guarantee.json for each loss, target and method."""
    settings = ((loss, alpha, method) for loss in TARGETS for alpha in TARGETS[loss] for method in guarantee.METHODS)
    summaries = []
    for loss, alpha, method in settings:
        of_setting = [row for row in rows if (row["loss"], row["risk"], row["method"]) == (loss, alpha, method)]
        violations = {
            field: sum(row[field] > alpha for row in of_setting) / splits
            for field in ("test_risk", "uncertified_risk", "noisy_test_risk")
        }
        means = {
            field: float(numpy.mean([row[field] for row in of_setting]))
            for field in ("test_risk", "noisy_test_risk", "depth", "uncertified_depth", "none")
        }
        summaries.append(
            {
                "audio": pool,
                "policy": policy,
                "method": method,
                "risk_name": loss,
                "risk": alpha,
                "delta": DELTA,
                "splits": splits,
                "violations": violations["test_risk"],
                "uncertified_violations": violations["uncertified_risk"],
                "violations_under_noise": violations["noisy_test_risk"],
                "mean_test_risk": means["test_risk"],
                "mean_risk_under_noise": means["noisy_test_risk"],
                "depth": means["depth"],
                "uncertified_depth": means["uncertified_depth"],
                "none_certified": means["none"],
            }
        )
    return summaries


def main() -> None:
    parser = make_parser(__doc__, quick="a few splits; nothing is written")
    parser.add_argument("model")
    parser.add_argument("--splits", type=parse_positive, default=300)
    arguments = parser.parse_args()
    splits = 5 if arguments.quick else arguments.splits
    runs = traces.join_traces(
        [load(arguments.model, parts=["recorded"]) for load in (load_calibration_runs, load_test_runs)]
    )
    noisy_names = [name for name in dict.fromkeys(runs.conditions) if name.startswith("recorded")]
    noisy = traces.join_traces([runs.of_condition(name) for name in noisy_names])
    clean = runs.of_condition("clean")
    pools = {"clean": clean, "clean and recorded noise": traces.join_traces([clean, noisy])}
    summaries = []
    with Progress() as bar:
        task = bar.add_task("splits", total=splits * len(pools) * len(POLICIES))
        for name, pool in pools.items():
            for policy in POLICIES:
                rows = []
                for seed in range(splits):
                    rows += measure_split(pool, noisy, policy, seed)
                    bar.advance(task)
                summaries += summarise(name, policy, rows, splits)
    for row in summaries:
        print(
            f"{row['audio']:24} {row['policy']:9} {row['risk_name']:12} {row['risk']:.1f} {row['method']:18} "
            f"violations {row['violations']:.3f} (uncertified {row['uncertified_violations']:.3f}, under noise "
            f"{row['violations_under_noise']:.3f})  depth {row['depth']:.3f} "
            f"(uncertified {row['uncertified_depth']:.3f})"
        )
    if not arguments.quick:
        write_result("guarantee", summaries)


if __name__ == "__main__":
    run_script(main)
