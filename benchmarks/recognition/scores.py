"""What scores of recognisers tell: the errors at an exit, or the errors that deeper exits would save?

    python -m benchmarks.recognition.scores

An exit pays off where depth saves errors, so a policy needs a score that ranks recordings by what they would save.
Rank correlations over the test audio, clean and with noise of the test split. Intervals resample speakers; ranks are
those among all recordings.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy
from scipy.stats import rankdata

from benchmarks.recognition.errors import sort_systems
from benchmarks.recognition.full_runs import load_runs
from benchmarks.recognition.policies import JUDGED, LOSS
from benchmarks.recognition.train import FOLDER
from benchmarks.shared.results import Row, read_rows_beside, replace_rows, write_result
from benchmarks.shared.script import make_parser, run_script
from daisy.calibration.intervals import DRAWS, Estimate, Resample
from daisy.calibration.traces import Traces

RESULT = "early_exit_asr_scores"
SIGNS = {"entropy": 1, "confidence": -1, "sentence_confidence": -1, "text_change": 1}
"""Of scores, such that higher should mean more errors."""
LAYERS = (4, 8)
"""Exits that are looked at."""


def correlate_ranks(one: Sequence[float], other: Sequence[float], resample: Resample) -> Estimate:
    """Compute Spearman's correlation of two values of the runs, with its interval from resampling groups."""
    x, y = (rankdata(values) for values in (one, other))
    x, y = x - x.mean(), y - y.mean()
    count, *sums = (resample.sums(values) for values in (numpy.ones_like(x), x, y, x * x, y * y, x * y))
    of_x, of_y, of_xx, of_yy, of_xy = (values / count for values in sums)
    with numpy.errstate(invalid="ignore", divide="ignore"):
        return resample.estimate((of_xy - of_x * of_y) / numpy.sqrt((of_xx - of_x**2) * (of_yy - of_y**2)))


def measure_scores(runs: Traces, draws: int = DRAWS) -> list[Row]:
    """Measure how scores at some exits go with the errors there, and with the errors that the last exit saves."""
    resample = Resample(runs.groups, draws)
    errors = runs.losses[LOSS].double().numpy()
    rows = []
    for score, sign in SIGNS.items():
        for layer in LAYERS:
            place = runs.layers.index(layer)
            values = sign * runs.scores[score][:, place].double().numpy()
            row: Row = {"score": score, "exit_layer": layer}
            targets = {"errors": errors[:, place], "saved": errors[:, place] - errors[:, -1]}
            for name, target in targets.items():
                row[name], row[f"{name}_low"], row[f"{name}_high"] = correlate_ranks(values, target, resample)
            rows.append(row)
    return rows


def measure_system(system: str, limit: int | None = None, folder: Path = FOLDER) -> list[Row]:
    """Measure a recogniser's scores."""
    return [{"system": system, **row} for row in measure_scores(load_runs(system, "test", limit, folder))]


def main() -> None:
    parser = make_parser(__doc__, quick="a few recordings of each set; nothing is written")
    parser.add_argument("--only", nargs="+", metavar="SYSTEM", default=list(JUDGED))
    arguments = parser.parse_args()
    if not arguments.quick:
        read_rows_beside(RESULT, timed=False)  # raises errors before anything is measured
    rows = []
    for system in arguments.only:
        rows += measure_system(system, 4 if arguments.quick else None)
    for row in rows:
        print(
            f"{row['system']:24} {row['score']:20} exit {row['exit_layer']}  with errors {row['errors']:+.2f} "
            f"[{row['errors_low']:+.2f}, {row['errors_high']:+.2f}]  with errors saved {row['saved']:+.2f} "
            f"[{row['saved_low']:+.2f}, {row['saved_high']:+.2f}]"
        )
    if not arguments.quick:
        write_result(RESULT, sort_systems(replace_rows(rows, RESULT, ("system",), timed=False)), ())


if __name__ == "__main__":
    run_script(main)
