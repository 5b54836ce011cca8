"""Policy files for upstreams, set on full runs of dev audio."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import torch

import daisy
from benchmarks.shared.full_runs import digest_runs, load_calibration_runs, name_calibration_runs
from benchmarks.shared.recordings import SNRS_DB_COARSE, TRAINING_SETS
from daisy import _files, audio, checkpoints
from daisy.audio import conditions
from daisy.calibration import trace_conditions
from daisy.calibration.depth import Setting, calibrate_depth, fit_window
from daisy.calibration.traces import Traces
from daisy.errors import UsageError
from daisy.evaluation import comparison
from daisy.policies import write_policy
from daisy.policies.scores import SCORES

WITH_BABBLE = conditions.make_conditions(("babble",), SNRS_DB_COARSE)
"""Conditions in which a user's own recordings are run."""


class PolicyFiles:
    """Policy files of one model; the full runs are made when a file first needs them.

    Args:
        model: daisy checkpoint, or a bundled model's name.
        policy: name of the policy whose histogram random exits are drawn from.
        folder: folder for the files.
        progress: called with a message before each long step.
        limit: maximum number of recordings per set, for trials.
        recordings: files, folders or globs to set policies on; if empty, the shared dev sets.

    Raises:
        UsageError: if there are no such recordings.
    """

    def __init__(
        self,
        model: str,
        policy: str,
        folder: Path,
        progress: Callable[[str], None],
        limit: int | None,
        recordings: Sequence[str],
    ):
        self.model, self.policy, self.folder, self.progress = model, policy, folder, progress
        self.limit, self.patterns = limit, recordings
        self.recordings = audio.find(list(recordings)) if recordings else []

    def get(self, kind: str, depth: float) -> Path:
        """Return the path of a policy file, after writing it if it does not exist or was set on other runs.

        Args:
            kind: "never", "fixed", a policy that is calibrated, "random..." or "daisy_window".
            depth: mean share of the layers that run.
        """
        folder = self.folder
        if self.recordings and kind not in ("never", "fixed"):
            folder = folder / f"on-{digest_recordings(self.recordings)}"
        path = folder / f"{kind}-{depth:.0%}.json".replace("%", "")
        if kind not in ("never", "fixed"):
            self._keep_calibrated(kind, depth, path)
        elif not path.is_file() and kind == "never":
            _files.write_json(path, {"name": "never"})
        elif not path.is_file():
            layers = daisy.load(self.model).backbone.config.num_layers
            _files.write_json(path, {"name": "fixed", "layer": max(1, round(depth * layers))})
        return path

    def _keep_calibrated(self, kind: str, depth: float, path: Path) -> None:
        """Set a policy if it does not exist or was set on other than the current runs, which a file beside it names.

        The path stays the same, because it is part of a finished run's identity. A policy from before such files
        existed counts as current.
        """
        noted = path.with_suffix(".runs")
        if not path.is_file() or (noted.is_file() and noted.read_text(encoding="utf-8") != self.name_of_runs):
            self._calibrate(kind, depth, path)
        _files.write(noted, self.name_of_runs.encode())

    @cached_property
    def name_of_runs(self) -> str:
        """Name of the full runs that policies are set on; other runs, or another version, have another name."""
        if self.recordings:
            return digest_runs([], None, WITH_BABBLE, SCORES)  # the folder's name identifies the recordings
        return name_calibration_runs(self.model, "recorded")

    @cached_property
    def runs(self) -> Traces:
        """Full runs of dev audio of three sets, clean and in training noise at 20, 10 and 0 dB, as in other benchmarks.

        A user's own recordings are run clean and with babble made from them at these ratios instead.
        """
        source = "your audio" if self.recordings else "the shared dev audio (--calibrate-on takes your own)"
        self.progress(f"setting policies: full runs of {source}")
        return self._run_recordings() if self.recordings else self._load_shared_runs()

    def _load_shared_runs(self) -> Traces:
        runs = load_calibration_runs(self.model, self.limit, parts=("recorded",))
        names = {condition.name for condition in conditions.make_conditions(("recorded",), SNRS_DB_COARSE)}
        return runs.select([row for row, name in enumerate(runs.conditions) if name in names])

    def _run_recordings(self) -> Traces:
        model = daisy.load(self.model)
        rate = model.backbone.config.sample_rate
        speech = trace_conditions.read_speech(self.recordings[: self.limit], None, Path(), rate)
        return trace_conditions.run_conditions(model, speech, WITH_BABBLE, {})

    def _calibrate(self, kind: str, depth: float, path: Path) -> None:
        is_random = kind.startswith("random")
        rule = self.policy if is_random else "entropy" if kind == "daisy_window" else kind
        chosen = calibrate_depth(rule, self.runs, depth)
        histogram = torch.bincount(chosen.exit_layers, minlength=self.runs.num_layers + 1)[1:].tolist()
        if is_random:
            _files.write_json(path, {"name": "random", "histogram": histogram})
        elif kind == "daisy_window":
            window = fit_window(chosen.policy.to_config()["threshold"], histogram)
            _files.write_json(path, window.to_config())
        else:
            self._write(chosen, depth, path)

    def _write(self, chosen: Setting, depth: float, path: Path) -> None:
        """Write a policy with its setting and its results on these runs."""
        evaluations = comparison.evaluate_by_condition(chosen.policy.name, chosen.exit_layers, self.runs)
        write_policy(
            path,
            chosen.policy,
            checkpoint=Path(self.model).stem,
            digest=checkpoints.digest(self.model),
            target={"depth": depth, "of": "layers", "conditions": list(dict.fromkeys(self.runs.conditions))},
            attained={
                "conditions": [
                    {
                        "condition": evaluation.condition,
                        "exit_layer": evaluation.mean_exit_layer.mean,
                        "depth": evaluation.depth,
                    }
                    for evaluation in evaluations
                ]
            },
            data={
                "recordings": list(self.patterns) or [f"dev split of {name}" for name in TRAINING_SETS],
                "num_recordings": len(set(self.runs.utterances)),
            },
        )


def digest_recordings(recordings: Sequence[audio.Recording]) -> str:
    """Compute a digest that identifies the recordings; policies set on different recordings are different.

    Raises:
        UsageError: if a recording no longer exists.
    """
    try:
        states = [(str(recording.path.resolve()), recording.path.stat().st_size) for recording in recordings]
    except OSError as error:
        raise UsageError(f"{error.filename}: {error.strerror}") from None
    return hashlib.sha256(json.dumps(sorted(states)).encode()).hexdigest()[:12]
