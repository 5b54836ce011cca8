"""Word and character error rates of every recogniser at every exit, by set, clean and under noise.

    python -m benchmarks.recognition.errors
    python -m benchmarks.recognition.errors --only "daisy-mini, frozen"   # the others' rows stay

The systems of benchmarks/recognition/train.py must be trained. Uses the test splits; intervals resample speakers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy

from benchmarks.recognition.corpora import find_sets
from benchmarks.recognition.full_runs import load_runs
from benchmarks.recognition.systems import ON_CPUS, SYSTEMS
from benchmarks.recognition.train import FOLDER, find_model
from benchmarks.shared.results import Row, read_rows_beside, replace_rows, write_result
from benchmarks.shared.script import make_parser, run_script
from daisy import checkpoints
from daisy.calibration.intervals import DRAWS, Resample
from daisy.calibration.traces import Traces

LOSSES = {"wer": "word_errors", "cer": "character_errors"}


def measure_exits(runs: Traces, draws: int = DRAWS) -> list[Row]:
    """Measure the error rates of some runs at every exit, with intervals if there are several speakers."""
    resample = Resample(runs.groups, draws)
    rows: list[Row] = [{"exit_layer": layer} for layer in runs.layers]
    is_one = len(set(runs.groups)) == 1
    for field, loss in LOSSES.items():
        weights = runs.weights_of(loss).double().numpy()
        of_exits = resample.sums(runs.losses[loss].double().numpy() * weights[:, None])  # (R, E)
        rates = of_exits / resample.sums(weights)[:, None]
        for place, row in enumerate(rows):
            estimate = resample.estimate(rates[:, place])
            low, high = (None, None) if is_one else (estimate.low, estimate.high)
            row |= {field: estimate.mean, f"{field}_low": low, f"{field}_high": high}
    return rows


def measure_system(name: str, limit: int | None = None, folder: Path = FOLDER) -> list[Row]:
    """Measure a recogniser on each set of the test split, and on all together, in each condition."""
    runs = load_runs(name, "test", limit, folder)
    sets = numpy.array(find_sets(runs.utterances))
    conditions = numpy.array(runs.conditions)
    size = sum(parameter.numel() for parameter in checkpoints.load(find_model(name, folder)).parameters())
    rows = []
    for set_name in ("all", *dict.fromkeys(sets.tolist())):
        for condition in dict.fromkeys(runs.conditions):
            chosen = numpy.flatnonzero((conditions == condition) & ((sets == set_name) | (set_name == "all")))
            part = runs.select(chosen.tolist())
            fields = {"system": name, "set": set_name, "condition": condition, "num_utterances": len(part)}
            rows += [{**fields, **row, "parameters": size} for row in measure_exits(part)]
    return rows


def sort_systems(rows: Sequence[Row]) -> list[Row]:
    """Sort rows by system, in the order of `SYSTEMS`."""
    return sorted(rows, key=lambda row: list(SYSTEMS).index(row["system"]))


def main() -> None:
    parser = make_parser(__doc__, quick="a few recordings of each set; nothing is written")
    parser.add_argument("--only", nargs="+", metavar="SYSTEM", default=ON_CPUS)
    arguments = parser.parse_args()
    if not arguments.quick:
        read_rows_beside("early_exit_asr", timed=False)  # raises errors before anything is measured
    rows = []
    for name in arguments.only:
        rows += measure_system(name, 4 if arguments.quick else None)
        for row in rows:
            if (row["system"], row["set"], row["condition"]) == (name, "all", "clean"):
                print(f"{name:45} exit {row['exit_layer']:2}  WER {row['wer']:.3f}  CER {row['cer']:.3f}")
    if not arguments.quick:
        write_result("early_exit_asr", sort_systems(replace_rows(rows, "early_exit_asr", ("system",), timed=False)), ())


if __name__ == "__main__":
    run_script(main)
