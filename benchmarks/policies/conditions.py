"""The default policy at every depth, on clean audio and at each ratio of recorded noise, by two kinds of units.

    python -m benchmarks.policies.conditions daisy-mini

The units are the full model's on the same input, and those that it gives the clean recording. Static cut and chance
have the policy's depth and histogram in that condition. The policy is set as in `benchmarks.policies.policies`, and
judged on the same test audio.
"""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.policies.ideas import judge
from benchmarks.policies.rows import LOSS
from benchmarks.shared.frontier import find_exits
from benchmarks.shared.full_runs import load_calibration_runs, load_test_runs
from benchmarks.shared.results import Row, write_result
from benchmarks.shared.script import make_parser, run_script
from daisy.calibration.families import fit_family
from daisy.calibration.traces import Traces
from daisy.cli.options import DEFAULT_POLICY
from daisy.evaluation.study import DEPTHS


def measure_conditions(tune: Traces, test: Traces) -> Iterator[Row]:
    """Judge the default policy's exits, condition by condition.

    Args:
        tune: runs that the policy learns and is set on.
        test: runs that it is judged on.
    """
    family = fit_family(DEFAULT_POLICY, tune, LOSS)
    for target in DEPTHS:
        exits = find_exits(family, tune, test, target, LOSS)
        for condition in dict.fromkeys(test.conditions):
            indices = [index for index, name in enumerate(test.conditions) if name == condition]
            row: Row = {"policy": DEFAULT_POLICY, "target_depth": target, "condition": condition}
            yield row | {"num_runs": len(indices)} | judge(exits[indices].numpy(), test.select(indices))


def main() -> None:
    parser = make_parser(__doc__, quick="a few utterances of each set; nothing is written")
    parser.add_argument("model")
    arguments = parser.parse_args()
    limit = 6 if arguments.quick else None
    test = load_test_runs(arguments.model, limit, ("recorded",))
    rows = []
    for row in measure_conditions(load_calibration_runs(arguments.model, limit), test):
        print(
            f"{row['target_depth']:.0%} {row['condition']:16} depth {row['depth']:.3f}  {row['agreement']:.3f} cut "
            f"{row['over_static']:+.3f} chance {row['over_random']:+.3f}  clean {row['clean_agreement']:.3f} cut "
            f"{row['clean_over_static']:+.3f} chance {row['clean_over_random']:+.3f}"
        )
        rows.append(row)
    if not arguments.quick:
        write_result("policy_conditions", rows)


if __name__ == "__main__":
    run_script(main)
