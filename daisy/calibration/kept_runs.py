"""Keep full runs on the disk as they are made, so that hours of work are not lost when a program is stopped.

The file has a header line with the settings that determine the runs, then a JSON line for each batch, flushed to the
disk one by one. Numbers are kept bit-exactly, and the same recordings give the same batches: the result is that of
an uninterrupted program, on the same kind of device and with the same number of threads.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy
import torch
from torch import Tensor

from daisy import _files, _locks
from daisy.errors import OutputError

FORMAT_VERSION = 1
KIND = "full runs"
"""Kind of file, as its header states it."""


@dataclass(frozen=True, kw_only=True)
class BatchRuns:
    """Full runs of b utterances."""

    scores: dict[str, Tensor]
    """(b, L) each."""
    losses: dict[str, Tensor]
    """(b, L) each."""
    units: list[Tensor]
    """(T_b,) of the full model. For a recogniser the texts of all exits, packed by `daisy.calibration.text_tracing`."""


class KeptRuns(AbstractContextManager["KeptRuns"]):
    """A file of full runs that continues where a stopped program ended.

    Args:
        path: path of the file, which need not exist yet.
        settings: settings that determine the runs of a condition, as JSON holds them: checkpoint, recordings and so on.

    Raises:
        OutputError: on entering, where the file has other settings or other content, or is in use.
    """

    def __init__(self, path: str | Path, settings: Mapping[str, Any]):
        self.path = Path(path)
        header = {"kind": KIND, "format_version": FORMAT_VERSION, **settings}
        self._header = json.loads(json.dumps(header))
        self._batches: dict[tuple[str, tuple[int, ...]], BatchRuns] = {}
        self._used: set[tuple[str, tuple[int, ...]]] = set()
        self._lock: _locks.Lock | None = None

    def __enter__(self) -> KeptRuns:
        _files.check_writable(self.path)
        lock_path = self.path.with_name(f"{self.path.name}.lock")
        self._lock = _locks.acquire(lock_path)
        if self._lock is None:
            raise OutputError(f"{self.path}: is in use by {_locks.describe_holder(lock_path)}")
        try:
            self._read()
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._batches:
            self.discard()  # nobody needs an empty file
        if self._lock is not None:
            self._lock.release()

    def __len__(self) -> int:
        """Count the runs, one for each utterance and condition."""
        return sum(len(indices) for _, indices in self._batches)

    def count_used(self) -> int:
        """Count the kept runs that were asked for, and the added ones: how far this program has come."""
        return sum(len(indices) for _, indices in self._used)

    def discard(self) -> None:
        """Remove the file once its runs are no longer needed."""
        _files.remove(self.path)

    def get(self, condition: str, indices: Sequence[int]) -> BatchRuns | None:
        """Return the kept runs of a batch, or None; they then count as used, see `count_used`.

        Args:
            condition: name of the condition, with everything that determines it.
            indices: indices of the batch's utterances among all recordings.
        """
        key = (condition, tuple(indices))
        if key in self._batches:
            self._used.add(key)
        return self._batches.get(key)

    def add(self, condition: str, indices: Sequence[int], runs: BatchRuns) -> None:
        """Keep the runs of a batch.

        Args:
            condition: as in `get`.
            indices: as in `get`.
            runs: runs of these utterances.

        Raises:
            OutputError: where they cannot be written.
        """
        line = {
            "condition": condition,
            "utterances": list(indices),
            "scores": {name: _encode(values) for name, values in runs.scores.items()},
            "losses": {name: _encode(values) for name, values in runs.losses.items()},
            "units": [_encode(units) for units in runs.units],
        }
        key = (condition, tuple(indices))
        self._used.add(key)  # first, because an interrupt while it is written comes when it has been
        self._batches[key] = runs
        _files.append(self.path, json.dumps(line) + "\n", flush=True)

    def _read(self) -> None:
        """Read the file, or begin it."""
        header, *lines = _files.whole_lines(self.path, repair=False) or [""]
        if not header and (not self.path.exists() or not self.path.stat().st_size):
            _files.write(self.path, (json.dumps(self._header) + "\n").encode())
            return
        self._check_header(header)
        _files.whole_lines(self.path)  # now that it is known to be such a file, cut off an unfinished line
        try:
            for line in map(json.loads, lines):
                self._batches[line["condition"], tuple(line["utterances"])] = BatchRuns(
                    scores={name: _decode(text) for name, text in line["scores"].items()},
                    losses={name: _decode(text) for name, text in line["losses"].items()},
                    units=[_decode(text) for text in line["units"]],
                )
        except (ValueError, KeyError, TypeError, AttributeError, zlib.error) as error:
            raise OutputError(f"{self.path}: damaged ({error}); remove it to begin anew") from None

    def _check_header(self, text: str) -> None:
        try:
            header = dict(json.loads(text))
        except (ValueError, TypeError):
            header = {}
        if header.get("kind") != KIND:
            raise OutputError(f"{self.path}: is there already, and holds no full runs; use another file")
        names = header.keys() | self._header.keys()
        different = sorted(name for name in names if header.get(name) != self._header.get(name))
        if different:
            raise OutputError(
                f"{self.path}: holds full runs with other values of {', '.join(different)}; "
                "remove it to begin anew, or use another file"
            )


def _encode(values: Tensor) -> str:
    """Encode a tensor as text, bit-exactly: its type, shape and compressed numbers."""
    array = numpy.ascontiguousarray(values.cpu().numpy())
    data = base64.b64encode(zlib.compress(array.astype(array.dtype.newbyteorder("<")).tobytes(), 1)).decode()
    return f"{array.dtype.name} {'x'.join(map(str, array.shape))} {data}"


def _decode(text: str) -> Tensor:
    name, shape, data = text.split(" ")
    kind = numpy.dtype(name).newbyteorder("<")
    array = numpy.frombuffer(zlib.decompress(base64.b64decode(data)), kind)
    return torch.from_numpy(array.reshape([int(size) for size in shape.split("x")]).astype(name))
