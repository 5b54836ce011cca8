"""Shard files: the features of many recordings in one file, for corpora with too many recordings for a file each.

- ``tar``: as read by WebDataset. For each recording the feature file, then its row in the index, as JSON.
- ``parquet``: a row for each recording: the index's columns, and ``states``, the bytes of a row-major array, with
  ``shape`` and ``dtype``.
- ``safetensors``: a tensor for each recording, under its name in the index.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy
from numpy.typing import NDArray
from safetensors import safe_open

from daisy import _files
from daisy.errors import OutputError, UsageError
from daisy.extraction.journal import FORMAT_VERSION, Row, Settings, describe_settings

if TYPE_CHECKING:
    import pyarrow

KINDS = ("tar", "parquet", "safetensors")
MAX_HEADER_BYTES = 100_000_000
"""Maximum header of a .safetensors file; its readers refuse more."""
GROUP_BYTES = 2**25
"""Bytes of states in a row group of Parquet, which readers load as a whole."""


class HeaderTooLongError(OutputError):
    """A shard file that nobody could read because its header is too long; with fewer recordings it would fit."""


def check_kind(kind: str) -> None:
    """Reject an unknown kind, or one whose library is missing.

    Raises:
        UsageError: if so; the message lists the kinds, or says what to install.
    """
    if kind not in KINDS:
        raise UsageError(f"shards are {', '.join(KINDS[:-1])} or {KINDS[-1]}, found {kind!r}")
    if kind == "parquet":
        try:
            import pyarrow.parquet  # noqa: F401
        except ImportError:
            raise UsageError("pyarrow, which writes Parquet, is not installed", remedy="storage") from None


def name_member(output: str) -> str:
    """Return a file's name in a tar archive: WebDataset takes everything after the first dot as the ending.

    Args:
        output: path with one ending, such as ``sub/call.0.safetensors``.

    Returns:
        A name such as ``sub/call%2E0.safetensors``; different names stay different.
    """
    folder, slash, name = output.rpartition("/")
    stem, dot, ending = name.rpartition(".")
    return f"{folder}{slash}{stem.replace('%', '%25').replace('.', '%2E')}{dot}{ending}"


def write_shard(
    path: Path,
    kind: str,
    folder: Path,
    rows: Sequence[Row],
    settings: Settings,
    check: Callable[[], None] = lambda: None,
) -> None:
    """Write recordings' feature files into one file, atomically.

    Args:
        path: path of the shard.
        kind: one of `KINDS`.
        folder: folder of the feature files, each at its row's output.
        rows: rows of the recordings.
        settings: settings of the run.
        check: called when everything is written, before the file gets its name; it may raise an error.

    Raises:
        OutputError: if it cannot be written.
        HeaderTooLongError: if there are too many recordings for the format.
    """
    write_kind = {"tar": _write_tar, "parquet": _write_parquet, "safetensors": _write_safetensors}[kind]

    def write(stream: BinaryIO) -> None:
        write_kind(stream, folder, rows, settings)
        check()

    _files.write(path, write)


def read_states(path: Path) -> NDArray[Any]:
    """Read a feature file written by `daisy.extraction.feature_files`."""
    if path.suffix == ".npy":
        array: NDArray[Any] = numpy.load(path, allow_pickle=False)
        return array
    with safe_open(path, framework="numpy") as file:
        states: NDArray[Any] = file.get_tensor("states")
    return states


def _write_tar(stream: BinaryIO, folder: Path, rows: Sequence[Row], settings: Settings) -> None:
    # Members have no owners or times, so that the same content gives the same bytes.
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for row in rows:
            member = tarfile.TarInfo(row.output)
            member.size = (folder / row.output).stat().st_size
            with open(folder / row.output, "rb") as source:
                archive.addfile(member, source)
            text = json.dumps(row.public()).encode()
            described = tarfile.TarInfo(row.output.rpartition(".")[0] + ".json")
            described.size = len(text)
            archive.addfile(described, io.BytesIO(text))


def _write_parquet(stream: BinaryIO, folder: Path, rows: Sequence[Row], settings: Settings) -> None:
    import pyarrow
    import pyarrow.parquet

    schema = make_schema(settings)
    with pyarrow.parquet.ParquetWriter(stream, schema, compression="NONE") as writer:  # floats compress little
        group: list[dict[str, Any]] = []
        size = 0
        for row in rows:
            states = read_states(folder / row.output)
            group.append(_make_line(row, states))
            size += states.nbytes
            if size > GROUP_BYTES:
                writer.write_table(pyarrow.Table.from_pylist(group, schema=schema))
                group, size = [], 0
        if group:
            writer.write_table(pyarrow.Table.from_pylist(group, schema=schema))


def make_schema(settings: Settings) -> pyarrow.Schema:
    """Create the columns of a Parquet shard, with the run's settings as JSON under the key ``daisy``."""
    import pyarrow

    scores = pyarrow.list_(pyarrow.float64())
    columns = {
        "path": pyarrow.string(),
        "channel": pyarrow.int32(),
        "output": pyarrow.string(),
        "duration_sec": pyarrow.float64(),
        "exit_layer": pyarrow.int32(),
        "num_layers": pyarrow.int32(),
        "seconds": pyarrow.float64(),
        "window_exits": pyarrow.list_(pyarrow.int32()),
        "silent": pyarrow.bool_(),
        "predicted_loss": scores,
        "scores": pyarrow.struct([(name, scores) for name in settings.scores]) if settings.scores else pyarrow.null(),
        "states": pyarrow.large_binary(),
        "shape": pyarrow.list_(pyarrow.int64()),
        "dtype": pyarrow.string(),
    }
    described = json.dumps({"format_version": FORMAT_VERSION, **describe_settings(settings)})
    return pyarrow.schema(list(columns.items()), metadata={"daisy": described})


def _make_line(row: Row, states: NDArray[Any]) -> dict[str, Any]:
    line = {**row.public(), "channel": row.channel, "scores": row.scores or None}
    # Parquet's text is UTF-8; file names need not be.
    line["path"] = os.fsencode(line["path"]).decode(errors="replace")
    states = numpy.ascontiguousarray(states)
    return {**line, "states": states.tobytes(), "shape": list(states.shape), "dtype": str(states.dtype)}


def _write_safetensors(stream: BinaryIO, folder: Path, rows: Sequence[Row], settings: Settings) -> None:
    """Write the header, for which only each file's shape is read, then one recording after the other."""
    tensors: dict[str, Any] = {}
    end = 0
    for row in rows:
        states = read_states(folder / row.output)
        start, end = end, end + states.nbytes
        tensors[row.output] = {
            "dtype": f"F{8 * states.dtype.itemsize}",
            "shape": list(states.shape),
            "data_offsets": [start, end],
        }
    described = {"format_version": FORMAT_VERSION, **describe_settings(settings)}
    rows_by_output = {row.output: row.public() for row in rows}
    header = _files.format_tensor_header(tensors, {**described, "recordings": rows_by_output})
    if len(header) > MAX_HEADER_BYTES:
        raise HeaderTooLongError(
            f"a .safetensors file of {len(rows)} recordings cannot be read: its header has {len(header)} bytes, and "
            f"{MAX_HEADER_BYTES} are allowed"
        )
    stream.write(header)
    for row in rows:
        stream.write(numpy.ascontiguousarray(read_states(folder / row.output)).data)
