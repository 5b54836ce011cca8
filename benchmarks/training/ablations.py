"""What each part of the pre-training recipe is worth: short trainings that differ in one thing, from the same start.

    python -m benchmarks.training.ablations runs

Every variant goes on from iteration 1 for the same number of updates of 64 s on one CPU core (a stopped run goes on),
then is judged by what it did not choose:

- masked prediction on 60 dev recordings: a new linear classifier of its last layer's masked frames, fitted on 150
  training recordings, on MFCC units and on those of iteration 2;
- agreement with the clean audio's units (of iteration 2) on the same dev recordings at each layer and SNR: linear
  classifiers as exit heads are, fitted on the same 150, a quarter of them clean and the others with training noise;
- the cross-validated accuracy of a keyword probe on the train split, groups of recordings held out whole.

One run each, but for further seeds of the recipe and of clean audio, which show how far two runs differ by chance.
"""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.shared.results import write_result
from benchmarks.shared.script import make_parser, parse_positive, run_script
from benchmarks.training.judging import judge
from benchmarks.training.variants import START, VARIANTS, find_iteration1, name_folder, train_variant
from daisy import _files
from daisy.checkpoints import Model
from daisy.errors import UsageError, unknown_name
from fairseq_plugins.model import read_backbone


def conclude(name: str, updates: int, model: Model, runs: Path) -> None:
    """Judge a variant, once, and write its verdict."""
    path = name_folder(name, runs) / "verdict.json"
    if path.is_file() and json.loads(path.read_text(encoding="utf-8"))["updates"] == updates:
        return
    verdict = {"variant": name, "updates": updates, **judge(model, runs)}
    _files.write_json(path, verdict)
    print(name, *(f"{key} {value:.3f}" for key, value in verdict.items() if isinstance(value, float)))
    print(*(f"{key}: {' '.join(f'{share:.2f}' for share in shares)}" for key, shares in verdict["agreement"].items()))


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("runs", type=Path, help="folder of benchmarks/real_run.sh")
    parser.add_argument("--only", nargs="*", default=list(VARIANTS), metavar="VARIANT", help="none: only the table")
    parser.add_argument("--updates", type=parse_positive, default=250)
    arguments = parser.parse_args()
    if wrong := [name for name in arguments.only if name not in VARIANTS]:
        raise UsageError(unknown_name("variant", wrong[0], VARIANTS))
    runs = arguments.runs.resolve()
    conclude(START, 0, read_backbone(str(find_iteration1(runs))), runs)
    for name in arguments.only:
        checkpoint = train_variant(name, runs, arguments.updates)
        conclude(name, arguments.updates, read_backbone(str(checkpoint)), runs)
    verdicts = [name_folder(name, runs) / "verdict.json" for name in (START, *VARIANTS)]
    write_result("ablations", [json.loads(path.read_text(encoding="utf-8")) for path in verdicts if path.is_file()])


if __name__ == "__main__":
    run_script(main)
