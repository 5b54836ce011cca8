"""Full runs of the shared recordings under noise, made once for a checkpoint and kept in runs/traces.

Calibration: dev splits of librispeech, commands and keywords, clean and with noise of the train split. Test: the test
splits of all five sets, clean, with noise of the test split, white, pink and babble, in rooms and clipped. Groups are
speakers, or the clusters of recordings that stand for them.
"""

from __future__ import annotations

from pathlib import Path

from common import HERE, noises, utterances
from rich.progress import Progress

import daisy
from daisy import checkpoint, conditions, noise_curve, traces
from daisy.noise_curve import Speech
from daisy.traces import Traces

CALIBRATION_SETS = ("librispeech", "commands", "keywords")
TEST_SETS = (*CALIBRATION_SETS, "digits", "mboshi")
SNRS_DB = (None, 20.0, 10.0, 5.0, 0.0, -5.0)
KINDS = ("recorded", *conditions.GENERATED)
CACHE = HERE.parent / "runs" / "traces"


def calibration_runs(model: Path | str, limit: int | None = None) -> Traces:
    """Dev audio, clean and with recorded noise."""
    return _runs(model, CALIBRATION_SETS, "dev", "train", conditions.grid(("recorded",), SNRS_DB), limit)


def judged_runs(model: Path | str, limit: int | None = None) -> Traces:
    """Test audio under all conditions."""
    return _runs(model, TEST_SETS, "test", "test", conditions.grid(KINDS, SNRS_DB, (0.3, 0.6), (1.0, 10.0)), limit)


def _runs(model: Path | str, sets, split: str, noise_split: str, heard, limit: int | None) -> Traces:
    path = CACHE / f"{checkpoint.digest(model)[:12]}-{split}.csv"
    if path.is_file() and limit is None:
        return traces.read(path)
    spoken = utterances(sets, split, limit)
    speech = Speech(
        waveforms=[utterance.waveform for utterance in spoken],
        names=[f"{utterance.set}/{index}" for index, utterance in enumerate(spoken)],
        groups=[utterance.speaker for utterance in spoken],
        failed={},
    )
    with Progress() as bar:
        task = bar.add_task(split, total=len(spoken) * len(heard))
        found = noise_curve.run(
            daisy.load(model), speech, heard, {"recorded": noises(noise_split)}, progress=lambda n: bar.advance(task, n)
        )
    if limit is None:
        traces.write(found, path)
    return found
