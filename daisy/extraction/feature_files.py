"""Feature files: .safetensors with what an encoder did in its metadata, or .npy."""

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
"""The first number that a stored type rounds to infinity, halfway between its last one and the next there would be."""


UNDECODABLE = re.compile("[\udc80-\udcff]")
"""What Python makes of bytes in names that are no UTF-8."""


def name_outputs(recordings: Sequence[Recording], format: str, *, as_text: bool = False) -> dict[str, str]:
    """Name each recording's file.

    Args:
        recordings: what will be written.
        format: the files' ending.
        as_text: name it in UTF-8, as shard files want it: a byte that is none of it as ``%E9``.

    Returns:
        A recording's label to its file's path below the run's folder.

    Raises:
        UsageError: where two recordings share one.
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
    """Refuse a name that the file system does not take: an ending longer than the recording's makes it too long.

    Args:
        path: of the file that is to be written.

    Raises:
        OutputError: saying why not.
    """
    folder = next((parent for parent in path.parents if os.path.isdir(parent)), path.parent)
    try:
        os.lstat(folder / path.name)  # in a folder that is not there, every name is taken
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return
    except OSError as error:  # its name or path is too long, or has characters that it may not have
        reason = _files.explain(error)
        raise OutputError(
            f"no file can be named {path.name} ({len(os.fsencode(path.name))} bytes: {reason}); rename the recording"
        ) from None


def check_storable(states: Tensor, dtype: str, first_layer: int) -> None:
    """Refuse states that are no numbers, or that the stored type would turn into infinities.

    Residual streams of pre-norm models have a few very large dimensions. One pass over the states, far below a
    hundredth of what computing them takes.

    Args:
        states: (layers, T, D) or (T, D) of one layer, in the type that they were computed in.
        dtype: to be stored in.
        first_layer: number of the layer that comes first in ``states``.

    Raises:
        AudioError: naming the layer and its largest value.
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
        states: (layers, T, D), of which ``settings.layers`` "last" keeps the last.
        path: of the file.
        settings: of the run.
        row: of the recording.

    Raises:
        AudioError: where the states cannot be stored in that type, see `check_storable`.
        OutputError: where the file cannot be written.
    """
    states = states[-1] if settings.layers == "last" else states
    check_storable(states, settings.dtype, row.exit_layer if settings.layers == "last" else 0)
    states = states.to(STORED_DTYPES[settings.dtype]).contiguous()
    if settings.format == "npy":
        _files.save_array(states.numpy(), path)
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
        # Nothing that it still holds is wanted: the file has been written, or something has failed.
        with contextlib.suppress(OSError):
            self._waiting.close()

    def append(self, states: Tensor, layer: int) -> None:
        """Take the next (T, D) states, of some layer.

        Raises:
            AudioError: where they cannot be stored, see `check_storable`.
        """
        check_storable(states, self.settings.dtype, layer)
        with self._explained():
            self._waiting.write(states.to("cpu", STORED_DTYPES[self.settings.dtype]).contiguous().numpy().data)

    def finish(self, row: Row) -> Row:
        """Write the file, and return the recording's row as it is."""
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
        return row

    def _explained(self) -> AbstractContextManager[None]:
        return _files.refusing(self.path)


def _make_metadata(settings: Settings, row: Row) -> dict[str, Any]:
    return {"format_version": FORMAT_VERSION, **describe_settings(settings), **row.public()}
