"""Feature files: .safetensors with metadata on the encoder's exits, or .npy."""

from __future__ import annotations

import contextlib
import math
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import IO, Any, BinaryIO

import numpy
import torch
from torch import Tensor

from daisy import _files
from daisy.audio import Recording
from daisy.audio.archives import name_as_file
from daisy.errors import AudioError, OutputError, UsageError
from daisy.extraction.journal import FORMAT_VERSION, STORED_DTYPES, Row, Settings, describe_settings

ROUNDED_TO_INFINITY = {"float32": math.inf, "float16": 65520.0}
"""Smallest number that a stored type rounds to infinity, halfway between its last one and what would be the next."""


UNDECODABLE = re.compile("[\udc80-\udcff]")
"""Characters that Python uses for bytes of names that are not UTF-8."""


def name_outputs(recordings: Sequence[Recording], format: str, *, as_text: bool = False) -> dict[str, str]:
    """Name each recording's file.

    Args:
        recordings: recordings to be written.
        format: ending of the files.
        as_text: use UTF-8, as shard files require; other bytes become, for example, ``%E9``.

    Returns:
        Path of each recording's file relative to the run's folder, by the recording's label.

    Raises:
        UsageError: if two recordings would share a file.
    """
    taken: dict[str, str] = {}
    for recording in recordings:
        name = Path(name_as_file(recording.name))
        relative = name if not name.is_absolute() and ".." not in name.parts else Path(name.name)
        output = str(relative.with_suffix(f".{format}"))
        if as_text:
            output = UNDECODABLE.sub(lambda match: f"%{ord(match[0]) - 0xDC00:02X}", output)
        if output in taken:
            raise UsageError(
                f"{taken[output]} and {recording.label} would both be written to {output}", remedy="separate_out"
            )
        taken[output] = recording.label
    return {label: output for output, label in taken.items()}


def check_name(path: Path) -> None:
    """Reject a name that the file system does not accept, for example because its ending makes it too long.

    Args:
        path: path of the file to be written.

    Raises:
        OutputError: if so, with the reason.
    """
    folder = next((parent for parent in path.parents if os.path.isdir(parent)), path.parent)
    try:
        os.lstat(folder / path.name)  # in a missing folder, every name is accepted
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return
    except OSError as error:  # name or path is too long, or has forbidden characters
        reason = _files.explain(error)
        raise OutputError(
            f"no file can be named {path.name} ({len(os.fsencode(path.name))} bytes: {reason}); rename the recording"
        ) from None


def check_storable(states: Tensor, dtype: str, first_layer: int) -> None:
    """Reject states that are NaN, or that the stored type would turn into infinities.

    Residual streams of pre-norm models have a few very large dimensions. The check is one pass over the states, far
    below a hundredth of the cost of computing them.

    Args:
        states: (layers, T, D), or (T, D) of one layer, in the type in which they were computed.
        dtype: type in which to store them.
        first_layer: number of the first layer in ``states``.

    Raises:
        AudioError: if so; names the layer and its largest value.
    """
    lowest, highest = map(float, states.aminmax())
    end = ROUNDED_TO_INFINITY[dtype]
    if -end < lowest and highest < end:  # neither holds of NaN
        return
    for layer, values in enumerate(states if states.ndim == 3 else [states], first_layer):
        if num_nan := int(values.isnan().sum()):
            raise AudioError(f"{num_nan} of the {values.numel()} numbers of layer {layer} are NaN: nothing is written")
        largest = float(values.abs().max())
        if math.isinf(largest):
            raise AudioError(f"the states of layer {layer} are infinite in places: nothing is written")
        if largest >= end:
            range_end = torch.finfo(STORED_DTYPES[dtype]).max
            raise AudioError(
                f"the states of layer {layer} reach {largest:.7g}, and {dtype} ends at {range_end:.7g}",
                remedy="float32",
            )


def write_features(states: Tensor, path: Path, settings: Settings, row: Row) -> None:
    """Write a recording's states.

    Args:
        states: (layers, T, D), of which only the last is kept if ``settings.layers`` is "last".
        path: path of the file.
        settings: settings of the run.
        row: row of the recording.

    Raises:
        AudioError: if the states cannot be stored in that type, see `check_storable`.
        OutputError: if the file cannot be written.
    """
    states = states[-1] if settings.layers == "last" else states
    check_storable(states, settings.dtype, row.exit_layer if settings.layers == "last" else 0)
    states = states.to(STORED_DTYPES[settings.dtype]).contiguous()
    if settings.format == "npy":
        _files.save_array(states.numpy(), path)
    else:
        _files.save_tensors({"states": states}, path, _make_metadata(settings, row))


class StreamedFeatures(AbstractContextManager["StreamedFeatures"]):
    """A file like that of `write_features`, from states that arrive piece by piece and are buffered on disk.

    Args:
        path: path of the file.
        settings: settings of the run.
        width: width of the states, D.

    Raises:
        OutputError: on entering, appending and finishing, if it cannot be written.
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
        # The buffered states are no longer wanted: the file has been written, or something has failed.
        with contextlib.suppress(OSError):
            self._waiting.close()

    def append(self, states: Tensor, layer: int) -> None:
        """Add the next states (T, D), from ``layer``.

        Raises:
            AudioError: if they cannot be stored, see `check_storable`.
        """
        check_storable(states, self.settings.dtype, layer)
        with self._explained():
            self._waiting.write(states.to("cpu", STORED_DTYPES[self.settings.dtype]).contiguous().numpy().data)

    def finish(self, row: Row) -> Row:
        """Write the file, and return the recording's row unchanged."""
        kind = numpy.dtype(self.settings.dtype)
        with self._explained():
            shape = (self._waiting.tell() // kind.itemsize // self.width, self.width)
            self._waiting.seek(0)  # flushes its buffer

        def write(stream: BinaryIO) -> None:
            if self.settings.format == "npy":
                header = {"descr": kind.str, "fortran_order": False, "shape": shape}
                numpy.lib.format.write_array_header_1_0(stream, header)  # type: ignore[no-untyped-call]
            else:
                metadata = _make_metadata(self.settings, row)
                stream.write(_files.tensor_header("states", self.settings.dtype, shape, metadata))
            shutil.copyfileobj(self._waiting, stream, 2**22)

        _files.write(self.path, write)
        return row

    def _explained(self) -> AbstractContextManager[None]:
        return _files.refusing(self.path)


def _make_metadata(settings: Settings, row: Row) -> dict[str, Any]:
    return {"format_version": FORMAT_VERSION, **describe_settings(settings), **row.public()}
