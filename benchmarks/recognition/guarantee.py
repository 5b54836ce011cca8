"""Does the guarantee on error rates hold? Repeated calibration and test on halves of the speakers.

    python -m benchmarks.recognition.guarantee

Uses dev and test audio together, clean. In each split, half of the speakers calibrate and the other half tests; a
violation is a test risk above the target. The risk is each recording's error rate above the last exit's, clipped to 0
to 1, or, without labels, the edit distance to the last exit's text. Few speakers certify little, hence the larger
targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy
from rich.progress import Progress

from benchmarks.recognition.errors import sort_systems
from benchmarks.recognition.full_runs import load_runs
from benchmarks.recognition.policies import JUDGED
from benchmarks.recognition.train import FOLDER
from benchmarks.shared.results import Row, read_rows_beside, replace_rows, write_result
from benchmarks.shared.script import make_parser, parse_positive, run_script
from daisy.calibration import guarantee, risk
from daisy.calibration.traces import Traces, join_traces

LOSSES = ("character_errors", "text_disagreement")
TARGETS = (0.02, 0.05, 0.1, 0.3, 0.4)
DELTA = 0.1
POLICY = "entropy"


def measure_split(
    pool: Traces, loss: str, seed: int, *, targets: Sequence[float] = TARGETS, policy: str = POLICY
) -> list[Row]:
    """Certify on half of the speakers, and measure on the others, for each target."""
    calibrating, test = pool.halves(seed)
    learning, certifying = calibrating.split(guarantee.LEARN_SHARE, seed)
    ladder = guarantee.make_ladder(policy, learning, loss)
    certifying_exits, test_exits = (guarantee.compute_exits(ladder, runs) for runs in (certifying, test))
    risks = guarantee.compute_risks(test, test_exits, loss, 1.0).mean(0)  # (S,)
    depths = (test.costs[test_exits - 1] / test.costs[-1]).double().mean(0)
    rows = []
    for target in targets:
        chosen = guarantee.certify(certifying_exits, certifying, target, DELTA, loss=loss, seed=seed)
        nothing = not chosen  # the first setting runs all layers
        rows.append(
            {
                "target": target,
                "risk": float(risks[chosen or 0]),
                "depth": float(depths[chosen or 0]),
                "nothing": nothing,
                "certifying": len(set(certifying.groups)),
            }
        )
    return rows


def find_least_target(num_speakers: int) -> float:
    """Find, in steps of 0.005, the least target that so many speakers can certify when none has any loss."""
    targets = numpy.arange(0.005, 1.0, 0.005)
    return next((float(t) for t in targets if risk.betting(numpy.zeros(num_speakers), t, DELTA) <= DELTA), 1.0)


def summarise(system: str, loss: str, pool: Traces, splits: Sequence[list[Row]]) -> list[Row]:
    """Summarise all splits: a row for each target."""
    certifying = min(split[0]["certifying"] for split in splits)
    least = find_least_target(certifying)
    rows = []
    for place, target in enumerate(split["target"] for split in splits[0]):
        of_target = [split[place] for split in splits]
        rows.append(
            {
                "system": system,
                "risk_name": loss,
                "target": target,
                "delta": DELTA,
                "splits": len(splits),
                "speakers": len(set(pool.groups)),
                "certifying": certifying,
                "least_target": least,
                "violations": float(numpy.mean([row["risk"] > target for row in of_target])),
                "mean_test_risk": float(numpy.mean([row["risk"] for row in of_target])),
                "depth": float(numpy.mean([row["depth"] for row in of_target])),
                "none_certified": float(numpy.mean([row["nothing"] for row in of_target])),
            }
        )
    return rows


def measure_system(system: str, num_splits: int, limit: int | None = None, folder: Path = FOLDER) -> list[Row]:
    """Measure a recogniser's guarantee."""
    pool = join_traces([load_runs(system, split, limit, folder).of_condition("clean") for split in ("dev", "test")])
    rows = []
    with Progress() as bar:
        task = bar.add_task(system, total=num_splits * len(LOSSES))
        for loss in LOSSES:
            splits = []
            for seed in range(num_splits):
                splits.append(measure_split(pool, loss, seed))
                bar.advance(task)
            rows += summarise(system, loss, pool, splits)
    return rows


def main() -> None:
    parser = make_parser(__doc__, quick="a few splits; nothing is written")
    parser.add_argument("--only", nargs="+", metavar="SYSTEM", default=list(JUDGED))
    parser.add_argument("--splits", type=parse_positive, default=200)
    arguments = parser.parse_args()
    if not arguments.quick:
        read_rows_beside("early_exit_asr_guarantee", timed=False)  # raises errors before anything is measured
    rows = []
    for system in arguments.only:
        rows += measure_system(system, 5 if arguments.quick else arguments.splits)
    for row in rows:
        print(
            f"{row['system']:24} {row['risk_name']:18} {row['target']:.2f}  violations {row['violations']:.3f}  test "
            f"risk {row['mean_test_risk']:.4f}  depth {row['depth']:.3f}  none certified {row['none_certified']:.2f}"
        )
    if not arguments.quick:
        name = "early_exit_asr_guarantee"
        write_result(name, sort_systems(replace_rows(rows, name, ("system",), timed=False)), ())


if __name__ == "__main__":
    run_script(main)
