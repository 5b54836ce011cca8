"""Full runs with progress shown, for the commands that decide from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from daisy.cli.progress import track

if TYPE_CHECKING:
    from daisy.audio import Condition, NoiseBank
    from daisy.calibration.trace_conditions import Speech
    from daisy.calibration.traces import Traces
    from daisy.checkpoints import Model


def run_speech(
    description: str,
    model: Model,
    speech: Speech,
    conditions: Sequence[Condition],
    recorded: Mapping[str, NoiseBank],
    *,
    score_stride: int = 1,
    seed: int,
) -> Traces:
    """Run all layers for every recording and condition; see `daisy.calibration.trace_conditions.run_conditions`."""
    from daisy.audio.conditions import CLEAN
    from daisy.calibration.trace_conditions import run_conditions

    num_runs = len(speech.waveforms) * len({CLEAN, *conditions})
    with track(description, num_runs) as advance:
        return run_conditions(
            model, speech, conditions, recorded, score_stride=score_stride, seed=seed, progress=advance
        )
