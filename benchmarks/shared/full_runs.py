"""Full runs of the shared recordings under noise, made once for a checkpoint and kept in runs/traces.

    python benchmarks/full_runs.py daisy-mini [--parts recorded white]      # in several processes, if there are cores

Calibration: dev splits of librispeech, commands and keywords, clean and with noise of the train split. Judged: the test
splits of all five sets, clean, with noise of the test split, white, pink and babble, in rooms and clipped. Groups are
speakers, or the clusters of recordings that stand for them.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

from common import HERE, guarded, noises, utterances
from rich.progress import Progress

import daisy
from daisy import checkpoints
from daisy.audio import conditions
from daisy.audio.conditions import Condition
from daisy.calibration import trace_conditions, traces
from daisy.calibration.trace_conditions import Speech
from daisy.calibration.traces import Traces

CALIBRATION_SETS = ("librispeech", "commands", "keywords")
TEST_SETS = (*CALIBRATION_SETS, "digits", "mboshi")
SNRS_DB = (None, 20.0, 10.0, 5.0, 0.0, -5.0)
KINDS = ("recorded", *conditions.GENERATED)
CACHE = HERE.parent / "runs" / "traces"
PARTS: dict[str, list[Condition]] = {
    "recorded": conditions.make_conditions(("recorded",), SNRS_DB),
    **{kind: conditions.make_conditions((kind,), SNRS_DB[1:]) for kind in conditions.GENERATED},
    "rooms": conditions.make_conditions((), (), (0.3, 0.6), (1.0, 10.0)),
}


def calibration_runs(model: Path | str, limit: int | None = None, parts: Iterable[str] = KINDS) -> Traces:
    """Dev audio, clean and with noise of some of `PARTS`; recorded noise is of the train split."""
    return traces.join_traces([_runs(model, CALIBRATION_SETS, "dev", "train", part, limit) for part in parts])


def judged_runs(model: Path | str, limit: int | None = None, parts: Iterable[str] = tuple(PARTS)) -> Traces:
    """Test audio under all conditions, or those of some of `PARTS`."""
    return traces.join_traces([_runs(model, TEST_SETS, "test", "test", part, limit) for part in parts])


def _runs(model: Path | str, sets, split: str, noise_split: str, part: str, limit: int | None) -> Traces:
    path = CACHE / f"{checkpoints.digest(model)[:12]}-{split}-{part}.csv"
    if path.is_file() and limit is None:
        return traces.read_traces(path)
    spoken = utterances(sets, split, limit)
    speech = Speech(
        waveforms=[utterance.waveform for utterance in spoken],
        names=[f"{utterance.set}/{index}" for index, utterance in enumerate(spoken)],
        groups=[utterance.speaker for utterance in spoken],
        failed={},
    )
    heard = PARTS[part]
    with Progress() as bar:
        task = bar.add_task(f"{split}, {part}", total=len(spoken) * len({conditions.CLEAN, *heard}))
        bank = {"recorded": noises(noise_split)}
        found = trace_conditions.run_conditions(daisy.load(model), speech, heard, bank, progress=lambda n: bar.advance(task, n))
    if limit is None:
        traces.write_traces(found, path)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    arguments = parser.parse_args()
    calibration_runs(arguments.model)
    for part in arguments.parts:
        found = _runs(arguments.model, TEST_SETS, "test", "test", part, None)
        print(f"{part}: {len(found)} runs")


if __name__ == "__main__":
    guarded(main)
