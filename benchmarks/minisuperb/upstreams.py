"""The upstreams that are compared: policies set on dev audio, and the full model for stock s3prl."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))

import torch
from full_runs import CALIBRATION_SETS, calibration_runs

import daisy
from daisy import _files, audio, checkpoints
from daisy.audio import conditions
from daisy.calibration import trace_conditions
from daisy.calibration.depth import FAMILIES, calibrate_depth, fit_window
from daisy.calibration.traces import Traces
from daisy.cli.options import DEFAULT_POLICY
from daisy.errors import UsageError, unknown_name
from daisy.evaluation import comparison
from daisy.policies import write_policy

DEPTHS = (0.8, 0.6, 0.4)
SNRS_DB = (None, 20.0, 10.0, 0.0)


@dataclass(frozen=True, kw_only=True)
class Upstream:
    """A row's left half."""

    name: str
    arguments: tuple[str, ...]
    """Of the command line, from -u on."""
    policy: str = ""
    target_depth: float | None = None
    exits: bool = True
    """Whether it is daisy's: with a cache, another featurizer and a log of exits."""
    training: tuple[str, ...] = ()
    """Arguments while the task is trained, where they are others."""


def names(policy: str) -> tuple[str, ...]:
    """What is compared where nothing else is asked for; any whole percentage may stand for 80, 60 and 40."""
    percent = [f"{depth:.0%}"[:-1] for depth in DEPTHS]
    kinds = [f"{kind}-{p}" for kind in (policy, "fixed", _chance(policy)) for p in percent]
    return ("never", *kinds, "daisy_window-60", "hubert", "fbank")


def _chance(policy: str) -> str:
    """Random exits by a policy's histogram."""
    return "random" if policy == DEFAULT_POLICY else f"random_{policy}"


def check_names(wanted: Sequence[str], policy: str) -> None:
    """Refuse names that are none.

    Raises:
        UsageError: on an unknown policy or name, or two that do not go together.
    """
    if policy not in FAMILIES or policy == "fixed":
        raise UsageError(unknown_name("policy", policy, set(FAMILIES) - {"fixed"}))
    at_depths = "|".join(map(re.escape, (policy, "fixed", _chance(policy), "daisy_window")))
    for name in wanted:
        halves = name.split("@")
        if len(halves) > 2 or (len(halves) == 2 and {"hubert", "fbank"} & {*halves}):
            raise UsageError(f"{name}: A@B takes two of daisy's upstreams")
        for half in halves:
            if half not in ("never", "hubert", "fbank") and not re.fullmatch(rf"({at_depths})-[1-9]\d?", half):
                raise UsageError(unknown_name("upstream", half, names(policy)))


def find(
    wanted: list[str],
    model: str,
    policy: str,
    folder: Path,
    progress: Callable[[str], None],
    limit: int | None = None,
    recordings: Sequence[str] = (),
) -> list[Upstream]:
    """The upstreams of these names, their files made in a folder where they are not there yet.

    Args:
        wanted: such as `names`; A@B is A on the test sets of a task that was trained on B.
        model: a daisy checkpoint, or a bundled model's name.
        policy: which rule is set to the depths.
        folder: for policy files and the checkpoint in s3prl's form.
        progress: told what takes time.
        limit: recordings of each dev set at most, to try things out.
        recordings: files, folders or globs to set the policies on; none: the shared dev sets.

    Raises:
        UsageError: as `check_names` does, or where there are no such recordings.
    """
    check_names(wanted, policy)
    folder = folder / checkpoints.digest(model)[:12]
    policies = _Policies(model, policy, folder, progress, limit, recordings)

    def one(name: str) -> Upstream:
        if "@" in name:
            tested, trained = map(one, name.split("@"))
            return dataclasses.replace(tested, name=name, training=trained.arguments)
        if name == "fbank":
            return Upstream(name=name, arguments=("-u", "fbank"), exits=False)
        if name == "hubert":
            path = stock_checkpoint(model, folder / "hubert_s3prl.pt")
            arguments = ("-u", "hubert_local", "-k", str(path))
            return Upstream(name=name, arguments=arguments, policy="never", target_depth=1.0, exits=False)
        kind, _, percent = name.rpartition("-") if "-" in name else (name, "", "")
        depth = int(percent) / 100 if percent else 1.0
        arguments = ("-u", "daisy_local", "-k", model, "-g", str(policies.file(kind, depth)))
        return Upstream(name=name, arguments=arguments, policy=kind, target_depth=depth)

    return [one(name) for name in wanted]


class _Policies:
    """Policy files, set on full runs of dev audio that are made when the first of them is asked for."""

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
        self.limit, self.recordings = limit, recordings
        self.own = audio.find(list(recordings)) if recordings else []
        self._runs: Traces | None = None

    def file(self, kind: str, depth: float) -> Path:
        folder = self.folder
        if self.own and kind not in ("never", "fixed"):
            folder = folder / f"on-{_stamp(self.own)}"
        path = folder / f"{kind}-{depth:.0%}.json".replace("%", "")
        if not path.is_file():
            if kind == "never":
                _files.write_json(path, {"name": "never"})
            elif kind == "fixed":
                layers = daisy.load(self.model).backbone.config.num_layers
                _files.write_json(path, {"name": "fixed", "layer": max(1, round(depth * layers))})
            else:
                self._set(kind, depth, path)
        return path

    @property
    def runs(self) -> Traces:
        """Dev audio of three sets, clean and with training noise at 20, 10 and 0 dB, as other benchmarks have it.

        Recordings of one's own instead are heard clean and with babble of themselves at these ratios.
        """
        if self._runs is None:
            of_whose = "your audio" if self.own else "the shared dev audio (--calibrate-on takes your own)"
            self.progress(f"setting policies: full runs of {of_whose}")
            self._runs = self._of_own() if self.own else self._shared()
        return self._runs

    def _shared(self) -> Traces:
        every = calibration_runs(self.model, self.limit, parts=("recorded",))
        heard = {condition.name for condition in conditions.make_conditions(("recorded",), SNRS_DB)}
        return every.select([row for row, name in enumerate(every.conditions) if name in heard])

    def _of_own(self) -> Traces:
        model = daisy.load(self.model)
        speech = trace_conditions.read_speech(self.own[: self.limit], None, Path(), model.backbone.config.sample_rate)
        return trace_conditions.run_conditions(model, speech, conditions.make_conditions(("babble",), SNRS_DB), {})

    def _set(self, kind: str, depth: float, path: Path) -> None:
        by_chance = kind.startswith("random")
        rule = self.policy if by_chance else "entropy" if kind == "daisy_window" else kind
        chosen = calibrate_depth(rule, self.runs, depth)
        histogram = torch.bincount(chosen.exit_layers, minlength=self.runs.num_layers + 1)[1:].tolist()
        if by_chance:
            _files.write_json(path, {"name": "random", "histogram": histogram})
        elif kind == "daisy_window":
            window = fit_window(chosen.policy.to_config()["threshold"], histogram)
            _files.write_json(path, window.to_config())
        else:
            verdicts = comparison.evaluate_by_condition(chosen.policy.name, chosen.exit_layers, self.runs)
            write_policy(
                path,
                chosen.policy,
                checkpoint=Path(self.model).stem,
                digest=checkpoints.digest(self.model),
                target={"depth": depth, "of": "layers", "conditions": list(dict.fromkeys(self.runs.conditions))},
                attained={
                    "conditions": [
                        {"condition": each.condition, "exit_layer": each.mean_exit_layer.mean, "depth": each.depth}
                        for each in verdicts
                    ]
                },
                data={
                    "recordings": list(self.recordings) or [f"dev split of {name}" for name in CALIBRATION_SETS],
                    "num_recordings": len(set(self.runs.utterances)),
                },
            )


def _stamp(recordings: Sequence[audio.Recording]) -> str:
    """Of which recordings these are: policies that were set on others are others.

    Raises:
        UsageError: where one is gone.
    """
    try:
        states = [(str(each.path.resolve()), each.path.stat().st_size) for each in recordings]
    except OSError as error:
        raise UsageError(f"{error.filename}: {error.strerror}") from None
    return hashlib.sha256(json.dumps(sorted(states)).encode()).hexdigest()[:12]


def stock_checkpoint(model: str, path: Path) -> Path:
    """A daisy checkpoint in the form that stock s3prl's ``hubert_local`` reads.

    Raises:
        UsageError: where fairseq or s3prl is missing.
        CheckpointError: where the model has no prediction head.
    """
    if path.is_file():
        return path
    try:
        from s3prl.upstream.hubert.convert import load_and_convert_fairseq_ckpt

        from fairseq_plugins import export
    except ModuleNotFoundError as error:
        raise UsageError(f"upstream hubert needs {error.name}: pip install 'daisy-speech[fairseq,s3prl]'") from None
    content = export.stock_checkpoint(export.read_backbone(model))
    fairseq_form = path.with_name("hubert_fairseq.pt")
    _files.write(fairseq_form, lambda stream: torch.save(content, stream))
    beside = path.with_suffix(".part")
    load_and_convert_fairseq_ckpt(str(fairseq_form), str(beside))
    beside.replace(path)
    return path
