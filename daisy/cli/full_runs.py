"""Full runs with a progress display, for commands that decide from them; kept on disk until these are done."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import typer

from daisy.cli.console import warn
from daisy.cli.progress import track

if TYPE_CHECKING:
    from daisy.audio import Condition
    from daisy.calibration.kept_runs import KeptRuns
    from daisy.calibration.text_tracing import TextTask
    from daisy.calibration.trace_conditions import Noises, Speech
    from daisy.calibration.traces import Traces
    from daisy.checkpoints import Model


SHOWN = 60
"""Characters of an output's name in that of its full runs: few enough for file systems, endings included."""


def name_full_runs(out: Path) -> Path:
    """Name the file beside an output in which its full runs are kept until the output is written."""
    return out.with_name(f"{out.name[:SHOWN]}.full-runs")


class FullRuns(AbstractContextManager["FullRuns"]):
    """Full runs that a command makes and uses.

    They are kept as they are made. If the command is stopped, or rejects what was requested of them, they stay, and the
    same command resumes from them; when the command has done its work, they are deleted unless they are to stay for
    good. Ctrl-C prints one line on the progress, and exits with status 130.

    Args:
        stay: keep the files for good.
    """

    def __init__(self, *, stay: bool = False):
        self.stay = stay
        self._files = ExitStack()
        self._kept: list[KeptRuns] = []
        self._num_wanted = 0

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None and not self.stay:
            for kept in self._kept:
                kept.discard()
        self._files.close()
        if isinstance(error, KeyboardInterrupt):
            warn(self._describe())
            raise typer.Exit(130) from None

    def run(
        self,
        description: str,
        model: Model,
        speech: Speech,
        conditions: Sequence[Condition],
        noises: Noises,
        *,
        path: Path,
        checkpoint: str,
        score_stride: int = 1,
        task: TextTask | None = None,
        seed: int,
    ) -> Traces:
        """Run all layers for every recording and condition; see `daisy.calibration.trace_conditions.run_conditions`.

        Args:
            description: text beside the progress.
            model: model with exit heads.
            speech: clean recordings.
            conditions: conditions in which they are run.
            noises: recorded noises.
            path: path of the file in which the runs are kept.
            checkpoint: digest of the model's checkpoint.
            score_stride: the heads look at every ``score_stride``-th frame.
            task: task of a recogniser; None: units are compared.
            seed: seed of excerpts, talkers and rooms.

        Raises:
            OutputError: if the file holds other runs, or cannot be written.
        """
        from daisy.audio.conditions import CLEAN
        from daisy.calibration.trace_conditions import open_kept_runs, run_conditions

        kept = open_kept_runs(path, checkpoint, model, speech, scores=None, score_stride=score_stride, task=task)
        self._kept.append(self._files.enter_context(kept))
        self._num_wanted = len(speech.waveforms) * len({CLEAN, *conditions})
        if len(kept):
            warn(f"note: {path} holds {len(kept)} full runs that were made before; they are not made again")
        with track(description, self._num_wanted) as advance:
            return run_conditions(
                model,
                speech,
                conditions,
                noises.recorded,
                score_stride=score_stride,
                task=task,
                seed=seed,
                kept=kept,
                progress=advance,
            )

    def _describe(self) -> str:
        """Describe the progress so far."""
        if not any(map(len, self._kept)):
            return "stopped before the first full run"
        place = self._kept[-1].path
        if len(self._kept) > 1:
            place = place.parent
        done = f"stopped after {self._kept[-1].count_used()} of {self._num_wanted} full runs"
        return f"{done}: they are kept in {place}, and the same command goes on from there"
