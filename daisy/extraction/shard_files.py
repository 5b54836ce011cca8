"""Shard files: the features of many recordings in one file, for corpora of which a file each would be too many.

- ``tar``: as WebDataset reads it. Of each recording the feature file, then what the index says of it, as JSON.
- ``parquet``: a line for each recording: the index's columns, and ``states``, the bytes of an array in rows, with
  ``shape`` and ``dtype``.
- ``safetensors``: a tensor for each recording, under the name that the index gives.
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
"""Of a .safetensors file: its readers refuse more."""
GROUP_BYTES = 2**25
"""Of states in a row group of Parquet, which readers take whole."""


class HeaderTooLongError(OutputError):
    """A shard file that nobody could read, as it says too much of its recordings: fewer would fit."""


def check_kind(kind: str) -> None:
    """Refuse a kind that is none, or whose library is missing.

    Raises:
        UsageError: saying which there are, or what to install.
    """
    if kind not in KINDS:
        raise UsageError(f"shards are {', '.join(KINDS[:-1])} or {KINDS[-1]}, found {kind!r}")
    if kind == "parquet":
        try:
            import pyarrow.parquet  # noqa: F401
        except ImportError:
            raise UsageError("pyarrow, which writes Parquet, is not installed", remedy="storage") from None


def name_member(output: str) -> str:
    """Make a file's name in a tar archive: WebDataset takes all behind a name's first dot for its ending.

    Args:
        output: a path with one ending, such as ``sub/call.0.safetensors``.

    Returns:
        Such as ``sub/call%2E0.safetensors``: no two names become one.
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
        path: of the shard.
        kind: one of `KINDS`.
        folder: of the feature files, each at its row's output.
        rows: of the recordings.
        settings: of the run.
        check: is called when all is written, before the file gets its name, and may refuse.

    Raises:
        OutputError: where it cannot be written.
        HeaderTooLongError: where the recordings are too many for the format.
    """
    write_kind = {"tar": _write_tar, "parquet": _write_parquet, "safetensors": _write_safetensors}[kind]

    def write(stream: BinaryIO) -> None:
        write_kind(stream, folder, rows, settings)
        check()

    _files.write(path, write)


def read_states(path: Path) -> NDArray[Any]:
    """Read a feature file as `daisy.extraction.feature_files` writes it."""
    if path.suffix == ".npy":
        array: NDArray[Any] = numpy.load(path, allow_pickle=False)
        return array
    with safe_open(path, framework="numpy") as file:
        states: NDArray[Any] = file.get_tensor("states")
    return states


def _write_tar(stream: BinaryIO, folder: Path, rows: Sequence[Row], settings: Settings) -> None:
    # Members without owners and times: the same content is the same bytes.
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
    with pyarrow.parquet.ParquetWriter(stream, schema, compression="NONE") as writer:  # floats compress by little
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
    """Make the columns of a Parquet shard, with the run's settings as JSON under the key ``daisy``."""
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
    # Parquet's text is UTF-8, and names of files need not be.
    line["path"] = os.fsencode(line["path"]).decode(errors="replace")
    states = numpy.ascontiguousarray(states)
    return {**line, "states": states.tobytes(), "shape": list(states.shape), "dtype": str(states.dtype)}


def _write_safetensors(stream: BinaryIO, folder: Path, rows: Sequence[Row], settings: Settings) -> None:
    """Write the header, for which a look at each file's shape is enough, then one recording after the other."""
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
