"""Feature files: .safetensors with what an encoder did in its metadata, or .npy."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import IO, Any, BinaryIO

import numpy
from torch import Tensor

from daisy import _files
from daisy.audio import Recording
from daisy.audio.archives import name_as_file
from daisy.errors import OutputError, UsageError
from daisy.extraction.journal import FORMAT_VERSION, STORED_DTYPES, Row, Settings


def name_outputs(recordings: Sequence[Recording], format: str) -> dict[Path, str]:
    """Name each recording's file.

    Args:
        recordings: what will be written.
        format: the files' ending.

    Returns:
        A recording's path to its file's, below the run's folder.

    Raises:
        UsageError: where two recordings share one.
    """
    taken: dict[str, Path] = {}
    for recording in recordings:
        name = Path(name_as_file(recording.name))
        relative = name if not name.is_absolute() and ".." not in name.parts else Path(name.name)
        output = str(relative.with_suffix(f".{format}"))
        if output in taken:
            raise UsageError(
                f"{taken[output]} and {recording.path} would both be written to {output}", remedy="separate_out"
            )
        taken[output] = recording.path
    return {path: output for output, path in taken.items()}


def write_features(states: Tensor, path: Path, settings: Settings, row: Row) -> None:
    """Write a recording's states.

    Args:
        states: (layers, T, D), of which ``settings.layers`` "last" keeps the last.
        path: of the file.
        settings: of the run.
        row: of the recording.

    Raises:
        OutputError: where it cannot be written.
    """
    states = states[-1] if settings.layers == "last" else states
    states = states.to(STORED_DTYPES[settings.dtype]).contiguous()
    if settings.format == "npy":
        _files.write(path, lambda stream: numpy.save(stream, states.numpy()))
    else:
        _files.save_tensors({"states": states}, path, _make_metadata(settings, row))


class StreamedFeatures(AbstractContextManager["StreamedFeatures"]):
    """A file as `write_features` makes it, from states that come piece by piece and wait on the disk.

    Args:
        path: of the file.
        settings: of the run.
        width: of the states, D.

    Raises:
        OutputError: on entering, appending and finishing, where it cannot be written.
    """

    def __init__(self, path: Path, settings: Settings, width: int):
        self.path, self.settings, self.width = path, settings, width
        self._waiting: IO[bytes]

    def __enter__(self) -> StreamedFeatures:
        with self._explained():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._waiting = tempfile.TemporaryFile(dir=self.path.parent)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._waiting.close()  # writes what it still holds
        except OSError:
            if error is None:
                raise

    def append(self, states: Tensor) -> None:
        """Take the next (T, D) states."""
        with self._explained():
            self._waiting.write(states.to("cpu", STORED_DTYPES[self.settings.dtype]).contiguous().numpy().data)

    def finish(self, row: Row) -> None:
        """Write the file."""
        kind = numpy.dtype(self.settings.dtype)
        with self._explained():
            shape = (self._waiting.tell() // kind.itemsize // self.width, self.width)
            self._waiting.seek(0)  # writes what it still holds

        def write(stream: BinaryIO) -> None:
            if self.settings.format == "npy":
                header = {"descr": kind.str, "fortran_order": False, "shape": shape}
                numpy.lib.format.write_array_header_1_0(stream, header)  # type: ignore[no-untyped-call]
            else:
                metadata = _make_metadata(self.settings, row)
                stream.write(_files.tensor_header("states", self.settings.dtype, shape, metadata))
            shutil.copyfileobj(self._waiting, stream, 2**22)

        _files.write(self.path, write)

    def _explained(self) -> _Explained:
        return _Explained(self.path)


class _Explained(AbstractContextManager[None]):
    """Turns the system's errors into an `OutputError` that names the file."""

    def __init__(self, path: Path):
        self.path = path

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, OSError):
            raise OutputError(f"{self.path}: cannot be written ({error.strerror or error})") from None


def _make_metadata(settings: Settings, row: Row) -> dict[str, Any]:
    return {"format_version": FORMAT_VERSION, **asdict(settings), **row.public()}
