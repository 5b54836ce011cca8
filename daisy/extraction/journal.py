"""The journal of an extraction: what was asked, what is finished; one flushed line per recording."""

from __future__ import annotations

import json
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from daisy import _files
from daisy.audio import Recording
from daisy.errors import OutputError, UsageError

FORMATS = ("safetensors", "npy")
STORED_DTYPES = {"float32": torch.float32, "float16": torch.float16}
FORMAT_VERSION = 1
JOURNAL = "journal.jsonl"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What decides the content of the files: a run may only go on in a folder that was begun with the same."""

    checkpoint: str
    """SHA-256 of the checkpoint's file."""
    policy: dict[str, Any]
    """`Policy.to_config`."""
    layers: str
    """"last": the exit layer's states, (T, D); "all": layers 0 to the exit layer, (layers, T, D)."""
    scores: list[str]
    """Scores in the index."""
    score_stride: int
    """Frames between those that scores are made of."""
    format: str
    dtype: str
    window_sec: float | None = None
    """Longer recordings run in windows of so many seconds (`daisy.extraction.windows`); None: in one run."""
    context_sec: float = 2.0
    """Of each window, computed on either side and dropped."""
    precision: str = "float32"
    """What the encoder computes in."""

    def __post_init__(self) -> None:
        for name, choices in (("format", FORMATS), ("dtype", tuple(STORED_DTYPES))):
            if getattr(self, name) not in choices:
                raise UsageError(f"{name} must be one of {', '.join(choices)}, found {getattr(self, name)!r}")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One recording's result."""

    path: str
    output: str
    """Relative to the run's folder."""
    duration_sec: float
    exit_layer: int
    """Of a recording in windows the deepest."""
    num_layers: int
    seconds: float
    """Its share of its batch's time, by length."""
    scores: dict[str, list[float | None]] = field(default_factory=dict)
    """Score to its values at layers 1 to the exit layer."""
    window_exits: list[int] = field(default_factory=list)
    """Exit layer of each window, where there are several."""
    silent: bool = False
    """All samples were zero: the exit layer means nothing."""
    source: tuple[int, int] = (0, 0)
    """Size and time of change of the recording's file: a changed one is encoded again."""

    @property
    def predicted_loss(self) -> list[float | None]:
        """Nats at layers 1 to the exit layer: the entropy, or else what the regressors say; empty without either."""
        return self.scores.get("entropy") or self.scores.get("regressed") or []

    @property
    def mean_exit_layer(self) -> float:
        """The mean over its windows."""
        return sum(self.window_exits) / len(self.window_exits) if self.window_exits else float(self.exit_layer)

    def public(self) -> dict[str, Any]:
        """Return what the index says of a recording."""
        fields = asdict(self)
        del fields["source"]
        return {**fields, "predicted_loss": self.predicted_loss}


def stamp(recording: Recording) -> tuple[int, int]:
    """Read size and time of change of a recording's file; zeros where it is gone."""
    try:
        status = recording.path.stat()
    except OSError:
        return (0, 0)
    return status.st_size, status.st_mtime_ns


DEFAULTS = {setting.name: setting.default for setting in fields(Settings) if setting.default is not MISSING}
"""What runs had before they could be asked for anything else."""


class Journal:
    """The rows finished so far, one JSON line each behind a line of settings; flushed to the disk row by row."""

    def __init__(self, out: Path, settings: Settings, overwrite: bool):
        self.out, self.path = out, out / JOURNAL
        self.rows: dict[str, Row] = {}
        header = json.loads(json.dumps({"format_version": FORMAT_VERSION, **asdict(settings)}))  # tuples as lists
        try:
            lines = [json.loads(line) for line in _files.whole_lines(self.path)]
            self.rows = {line["path"]: Row(**{**line, "source": tuple(line["source"])}) for line in lines[1:]}
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            if not overwrite:
                raise OutputError(f"{self.path}: damaged ({error})", remedy="overwrite") from None
            lines = []
        if not self.rows:
            lines = []  # nothing was finished: a run with other settings may begin here
        if overwrite:
            self._forget()
        different = sorted(key for key in header if {**DEFAULTS, **lines[0]}.get(key) != header[key]) if lines else []
        if different and not overwrite:
            raise OutputError(f"{out}: holds a run with another {', '.join(different)}", remedy="overwrite")
        if overwrite or not lines:
            _files.write(self.path, (json.dumps(header) + "\n").encode())

    def _forget(self) -> None:
        """Take away what an earlier run left, so that none of it is mistaken for this one's."""
        for row in self.rows.values():
            (self.out / row.output).unlink(missing_ok=True)
        self.rows = {}

    def has(self, recording: Recording) -> bool:
        """Tell whether a recording is finished, unchanged since, and its file still there."""
        row = self.rows.get(str(recording.path))
        return row is not None and row.source == stamp(recording) and (self.out / row.output).is_file()

    def check_outputs(self, outputs: dict[Path, str]) -> None:
        """Refuse to write over another recording's file of an earlier run.

        Raises:
            UsageError: where a file of an earlier run would be overwritten by another recording's.
        """
        taken = {row.output: row.path for row in self.rows.values()}
        for path, output in outputs.items():
            if taken.get(output, str(path)) != str(path):
                raise UsageError(f"{self.path.parent / output} holds {taken[output]}, not {path}", remedy="other_out")

    def add(self, row: Row) -> None:
        """Note a finished row."""
        _files.append(self.path, json.dumps(asdict(row)) + "\n", flush=True)
        self.rows[row.path] = row
