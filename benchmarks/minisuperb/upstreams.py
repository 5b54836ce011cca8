"""The upstreams that are compared: exit policies set on dev audio, and the full model for stock s3prl."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.minisuperb.policy_files import PolicyFiles
from benchmarks.shared.recordings import DEPTHS_COARSE
from daisy import _files, checkpoints
from daisy.calibration.families import FAMILIES
from daisy.cli.options import DEFAULT_POLICY
from daisy.errors import UsageError, unknown_name


@dataclass(frozen=True, kw_only=True)
class Upstream:
    """An upstream that a task is trained and tested on."""

    name: str
    arguments: tuple[str, ...]
    """Options of the command line, from -u on."""
    policy: str = ""
    target_depth: float | None = None
    exits: bool = True
    """Whether it is a daisy upstream, with a cache, another featurizer and a log of exits."""
    training: tuple[str, ...] = ()
    """Options while the task is trained, if they differ."""


def list_names(policy: str) -> tuple[str, ...]:
    """List the upstreams that are compared by default; any whole percentage can replace 80, 60 and 40."""
    percents = [f"{depth:.0%}"[:-1] for depth in reversed(DEPTHS_COARSE)]
    kinds = [f"{kind}-{percent}" for kind in (policy, "fixed", _name_random(policy)) for percent in percents]
    return ("never", *kinds, "daisy_window-60", "hubert", "fbank")


def _name_random(policy: str) -> str:
    """Return the name of random exits drawn from a policy's histogram."""
    return "random" if policy == DEFAULT_POLICY else f"random_{policy}"


def check_names(names: Sequence[str], policy: str) -> None:
    """Refuse invalid names of upstreams.

    Raises:
        UsageError: if a policy or name is unknown, or two names cannot be combined.
    """
    if policy not in FAMILIES or policy == "fixed":
        raise UsageError(unknown_name("policy", policy, set(FAMILIES) - {"fixed"}))
    at_depths = "|".join(map(re.escape, (policy, "fixed", _name_random(policy), "daisy_window")))
    for name in names:
        halves = name.split("@")
        if len(halves) > 2 or (len(halves) == 2 and {"hubert", "fbank"} & {*halves}):
            raise UsageError(f"{name}: A@B takes two of daisy's upstreams")
        for half in halves:
            if half not in ("never", "hubert", "fbank") and not re.fullmatch(rf"({at_depths})-[1-9]\d?", half):
                raise UsageError(unknown_name("upstream", half, list_names(policy)))


def make_upstreams(
    names: Sequence[str],
    model: str,
    policy: str,
    folder: Path,
    progress: Callable[[str], None],
    limit: int | None = None,
    recordings: Sequence[str] = (),
) -> list[Upstream]:
    """Make the upstreams with these names; their files are written if they do not exist.

    Args:
        names: as in `list_names`, or with other percentages; "A@B" is tested with A's exits and trained with B's.
        model: daisy checkpoint, or a bundled model's name.
        policy: policy that is set to depths.
        folder: folder for the files.
        progress: called with a message before each long step.
        limit: maximum number of recordings per set, for trials.
        recordings: files, folders or globs to set policies on; if empty, the shared dev sets.

    Raises:
        UsageError: as in `check_names`, or if there are no such recordings.
    """
    check_names(names, policy)
    folder = folder / checkpoints.digest(model)[:12]
    files = PolicyFiles(model, policy, folder, progress, limit, recordings)
    return [_make_upstream(name, model, files) for name in names]


def _make_upstream(name: str, model: str, files: PolicyFiles) -> Upstream:
    if "@" in name:
        tested, trained = (_make_upstream(half, model, files) for half in name.split("@"))
        return dataclasses.replace(tested, name=name, training=trained.arguments)
    if name == "fbank":
        return Upstream(name=name, arguments=("-u", "fbank"), exits=False)
    if name == "hubert":
        path = make_stock_checkpoint(model, files.folder / "hubert_s3prl.pt")
        stock = ("-u", "hubert_local", "-k", str(path))
        return Upstream(name=name, arguments=stock, policy="never", target_depth=1.0, exits=False)
    kind, _, percent = name.rpartition("-") if "-" in name else (name, "", "")
    depth = int(percent) / 100 if percent else 1.0
    arguments = ("-u", "daisy_local", "-k", model, "-g", str(files.get(kind, depth)))
    return Upstream(name=name, arguments=arguments, policy=kind, target_depth=depth)


def make_stock_checkpoint(model: str, path: Path) -> Path:
    """Write a checkpoint in the form that stock s3prl's ``hubert_local`` reads, if it does not exist.

    Raises:
        UsageError: if fairseq or s3prl is missing.
        CheckpointError: if the model has no prediction head.
    """
    if path.is_file():
        return path
    try:
        from s3prl.upstream.hubert.convert import load_and_convert_fairseq_ckpt

        from fairseq_plugins.export import make_stock_checkpoint
        from fairseq_plugins.model import read_backbone
    except ModuleNotFoundError as error:
        raise UsageError(f"upstream hubert needs {error.name}: pip install 'daisy-speech[fairseq,s3prl]'") from None
    content = make_stock_checkpoint(read_backbone(model))
    fairseq_form = path.with_name("hubert_fairseq.pt")
    _files.write(fairseq_form, lambda stream: torch.save(content, stream))
    beside = path.with_suffix(".part")
    load_and_convert_fairseq_ckpt(str(fairseq_form), str(beside))
    beside.replace(path)
    return path
