"""All errors that daisy raises itself. Each has one line: what is wrong, where, and what to do.

DaisyError
  AudioError         a recording that cannot be read or used; a ValueError too
  CheckpointError    a model file that cannot be read, written or converted
  PolicyError        an exit policy with wrong or missing settings; a ValueError too
  OutputError        a place that cannot be written, or that holds another run's results
  UsageError         a request that makes no sense as a whole; a ValueError too
"""

import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from daisy import _origin  # noqa: F401  whatever is imported of daisy, this is among it

Remedy = Literal[
    "allow_pickle",
    "busy",
    "calibrate",
    "convert",
    "feature_rate",
    "ctc",
    "diverged",
    "float32",
    "full_precision",
    "in_windows",
    "label_set",
    "layer",
    "list",
    "make_manifest",
    "max_sec",
    "no_overrides",
    "num_heads",
    "other_out",
    "overwrite",
    "ray",
    "recognition",
    "root",
    "separate_out",
    "storage",
    "tokens",
    "wait",
    "window",
    "workers",
]
"""What would help, by name. Callers with words of their own look it up: the command line names its options."""

REMEDIES: dict[Remedy, str] = {
    "allow_pickle": "pass allow_pickle=True",
    "busy": "wait for it, use another folder, or let several share the work with shard=(index, count)",
    "calibrate": "daisy.calibration.calibrate_depth makes one",
    "convert": "other forms are read by daisy.checkpoints.convert",
    "feature_rate": "pass feature_rate, how many of them a second has",
    "ctc": "train them with the fairseq plugin (daisy_ctc)",
    "diverged": "lower lr, or set clip_norm",
    "float32": 'pass dtype="float32" and another folder',
    "full_precision": "save it as torch.float32",
    "in_windows": "pass window_sec, or split it",
    "label_set": "leave label_set out",
    "layer": "pass layer=N",
    "list": "make one of those files with daisy.audio.format_manifest_line",
    "make_manifest": "make a manifest of it with daisy.audio.format_manifest_line",
    "max_sec": "split it, or raise max_sec",
    "no_overrides": "overrides are for weights without a configuration",
    "num_heads": 'pass overrides={"num_heads": "N"}',
    "other_out": "use another folder",
    "overwrite": "use another folder, or pass overwrite=True",
    "ray": "pip install daisy-speech[ray] has it",
    "recognition": "pip install daisy-speech[recognition] has it",
    "root": "pass another root",
    "separate_out": "give them separate folders",
    "storage": "pip install daisy-speech[storage] has it",
    "tokens": "pass tokens=FILE",
    "wait": "wait for it, or use another folder",
    "window": "pass window_sec and another folder, or raise max_sec",
    "workers": "workers=N waits 5 minutes for one to come",
}
"""What a Python program can do about it."""


class DaisyError(Exception):
    """Base class of daisy's errors; ``str(error)`` is one line for the user.

    Args:
        message: what is wrong, and where.
        remedy: name of what would help; ``str(error)`` then ends with its line in `REMEDIES`.
        path: file or folder that the remedy applies to, for callers that write it out.
    """

    def __init__(self, message: str = "", *, remedy: Remedy | None = None, path: str | Path | None = None):
        super().__init__(message)
        self.message, self.remedy, self.path = message, remedy, path

    def __str__(self) -> str:
        return f"{self.message}; {REMEDIES[self.remedy]}" if self.remedy else self.message


class AudioError(DaisyError, ValueError):
    """A recording that cannot be read or used."""


class CheckpointError(DaisyError):
    """A model file that cannot be read, written or converted."""


class PolicyError(DaisyError, ValueError):
    """An exit policy with wrong or missing settings."""


class OutputError(DaisyError):
    """A place that cannot be written, or that holds another run's results."""


class UsageError(DaisyError, ValueError):
    """A request that makes no sense as a whole."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """Write a line for a name that is not known: near matches first, then all known names."""
    choices = sorted(known)
    near = difflib.get_close_matches(name, choices, n=2)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return f"unknown {kind} {name!r}: {hint}known are {', '.join(choices)}"
