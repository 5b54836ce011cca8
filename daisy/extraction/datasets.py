"""Torch datasets of an extraction's output: recordings by index, or whole shard files in sequence."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy
import torch
from safetensors import safe_open
from safetensors.torch import load as load_tensors
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from daisy.errors import UsageError
from daisy.extraction.extracted_features import INDEX
from daisy.extraction.shard_files import KINDS, check_kind, read_states

Sample = tuple[Tensor, dict[str, Any]]
"""States, (T, D) or with all layers (layers, T, D), and the recording's row in the index."""


class FeatureDataset(Dataset[Sample]):
    """The recordings of an extraction by index, from one file each or from safetensors shards.

    Args:
        folder: folder of the extraction.

    Raises:
        UsageError: if the folder has no index, or its features cannot be read by index.

    Example:
        >>> import daisy, tempfile
        >>> from daisy.extraction import Extractor, FeatureDataset
        >>> encoder = daisy.load("daisy-mini").encoder("fixed", layer=3, keep="last")
        >>> recordings = daisy.audio.find([str(daisy.checkpoints.format.ASSETS / "demo")])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     report = Extractor(encoder, folder, checkpoint="0" * 64).run(recordings[:2])
        ...     states, row = FeatureDataset(folder)[1]
        >>> states.shape[1], row["exit_layer"]
        (256, 3)
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        settings, self.rows = _read_index(self.folder)
        kind = settings.get("shards", "")
        _refuse_store(self.folder, settings)
        if kind not in ("", "safetensors"):
            raise UsageError(f"{self.folder}: {kind} shards are read from one end to the other: ShardDataset does that")
        self._shards: dict[str, Any] = {}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        row = self.rows[index]
        if row.get("shard"):
            states = self._open_shard(row["shard"]).get_tensor(row["output"])
        else:
            states = torch.from_numpy(read_states(self.folder / row["output"]))
        return states, row

    def _open_shard(self, name: str) -> Any:
        if name not in self._shards:
            self._shards[name] = safe_open(self.folder / name, framework="pt")
        return self._shards[name]

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_shards": {}}  # open files stay with their process


class ShardDataset(IterableDataset[Sample]):
    """Shard files of an extraction, each read once, by one of a ``DataLoader``'s workers.

    If there are fewer files than workers, some workers are idle. With several processes, give each a part of the files:
    ``shards[rank::world_size]``. WebDataset reads tar shards too, and shuffles.

    Args:
        shards: files, in the order in which they are read; or an extraction's folder, for the files listed in its
            index.

    Raises:
        UsageError: if there are no files, a file has another ending, or pyarrow, which reads Parquet, is missing.

    Example:
        >>> import daisy, tempfile, torch
        >>> from daisy.extraction import Extractor, ShardDataset
        >>> encoder = daisy.load("daisy-mini").encoder("fixed", layer=3, keep="last")
        >>> recordings = daisy.audio.find([str(daisy.checkpoints.format.ASSETS / "demo")])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     report = Extractor(encoder, folder, checkpoint="0" * 64, shards="tar").run(recordings[:2])
        ...     samples = list(torch.utils.data.DataLoader(ShardDataset(folder), batch_size=None))
        >>> [row["exit_layer"] for states, row in samples]
        [3, 3]
    """

    def __init__(self, shards: str | Path | Sequence[str | Path]):
        self._listed: set[tuple[str, str]] | None = None
        if isinstance(shards, str | Path):
            folder = Path(shards)
            settings, rows = _read_index(folder)
            _refuse_store(folder, settings)
            self._listed = {(row["shard"], row["output"]) for row in rows if row.get("shard")}
            if not self._listed:
                raise UsageError(f"{folder}: has no shard files: FeatureDataset reads a file for each recording")
            shards = [folder / name for name in sorted({name for name, _ in self._listed})]
        self.shards = [Path(shard) for shard in shards]
        if not self.shards:
            raise UsageError("no shard files")
        for shard in self.shards:
            _check_shard(shard)

    def __iter__(self) -> Iterator[Sample]:
        worker = get_worker_info()
        ours = self.shards if worker is None else self.shards[worker.id :: worker.num_workers]
        for shard in ours:
            for states, row in read_shard(shard):
                # A recording that changed and was extracted again is in two shards; the index names the newer one.
                if self._listed is None or (shard.name, row["output"]) in self._listed:
                    yield states, row


def read_shard(path: str | Path) -> Iterator[Sample]:
    """Read a shard file sequentially.

    Args:
        path: path of a file written by `daisy.extraction.shard_files`.

    Yields:
        The states and the row of each recording.

    Raises:
        UsageError: if the file has another ending, or pyarrow, which reads Parquet, is missing.
    """
    _check_shard(path := Path(path))
    return {".tar": _read_tar, ".parquet": _read_parquet, ".safetensors": _read_safetensors}[path.suffix](path)


def _refuse_store(folder: Path, settings: Mapping[str, Any]) -> None:
    if settings.get("store"):
        raise UsageError(f"{folder}: its features are in {settings['store']}, not in this folder")


def _check_shard(path: Path) -> None:
    if path.suffix[1:] not in KINDS:
        raise UsageError(f"{path}: a shard file ends in .{', .'.join(KINDS)}")
    check_kind(path.suffix[1:])


def _read_index(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Read an index: the settings, and a row for each recording."""
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        return dict(index["settings"]), [dict(row) for row in index["recordings"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{folder / INDEX}: not the index of an extraction ({error!r})") from None


def _read_tar(path: Path) -> Iterator[Sample]:
    with tarfile.open(path, "r|") as archive:
        while (member := archive.next()) is not None:  # a recording's states, then its row
            content = _read_member(archive, member)
            yield _parse_states(member.name, content), json.loads(_read_member(archive, archive.next()))


def _read_member(archive: tarfile.TarFile, member: tarfile.TarInfo | None) -> bytes:
    stream = archive.extractfile(member) if member is not None else None
    if stream is None:
        raise UsageError(f"{archive.name!r}: not a shard file of an extraction, whose members come in pairs")
    return stream.read()


def _parse_states(name: str, content: bytes) -> Tensor:
    if name.endswith(".npy"):
        return torch.from_numpy(numpy.load(io.BytesIO(content), allow_pickle=False))
    return load_tensors(content)["states"]


def _read_parquet(path: Path) -> Iterator[Sample]:
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            table = file.read_row_group(group)
            columns = [name for name in table.column_names if name != "states"]
            for states, row in zip(table["states"], table.select(columns).to_pylist(), strict=True):
                values = numpy.frombuffer(states.as_buffer(), row.pop("dtype")).reshape(row.pop("shape"))
                if row["channel"] is None:  # as in the index, which omits empty columns
                    del row["channel"]
                yield torch.from_numpy(values.copy()), {**row, "scores": row["scores"] or {}}


def _read_safetensors(path: Path) -> Iterator[Sample]:
    with safe_open(path, framework="pt") as file:
        for output, row in json.loads(file.metadata()["daisy"])["recordings"].items():
            yield file.get_tensor(output), row
