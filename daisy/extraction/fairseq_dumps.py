"""Features as dumped by fairseq's scripts: ``SPLIT_RANK_NSHARD.npy`` concatenates those of many recordings.

Source: fairseq 0.12.2, examples/hubert/simple_kmeans/feature_utils.py (get_shard_range, dump_feature): the ``.len``
file beside it has a line for each recording of the shard with its number of frames; shards follow the manifest's order.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from torch import Tensor

from daisy import _files
from daisy.audio import Recording
from daisy.errors import AudioError, UsageError
from daisy.extraction.stored_features import Load, choose_layer, read_array

NAME = re.compile(r"(.+)_(\d+)_(\d+)\.len")


@dataclass(frozen=True)
class Part:
    """Location of a recording's features."""

    path: Path
    start: int
    stop: int


def list_dumps(folder: Path) -> dict[str, set[tuple[int, int]]]:
    """Return the dumps in a folder: from split to the (rank, number of shards) of its files."""
    dumps: dict[str, set[tuple[int, int]]] = {}
    for path in folder.glob("*.len"):
        if (match := NAME.fullmatch(path.name)) and path.with_suffix(".npy").is_file():
            dumps.setdefault(match[1], set()).add((int(match[2]), int(match[3])))
    return dumps


def load_from_dumps(folder: Path, splits: Mapping[str, Sequence[Recording]]) -> Load:
    """Create the function that reads a recording's features from dumps.

    Args:
        folder: folder of the dumps.
        splits: recordings of each manifest that the dumps were made from, by its name without the ending.

    Raises:
        UsageError: if a split has no dump, or not all shards of one, or other recordings than the manifest.
    """
    dumps = list_dumps(folder)
    parts: dict[Path, Part] = {}
    for split, recordings in splits.items():
        for recording, part in zip(recordings, _list_parts(folder, split, dumps, len(recordings)), strict=True):
            parts.setdefault(recording.path, part)
    opened: dict[Path, NDArray[Any]] = {}

    def load(recording: Recording) -> Tensor:
        part = parts.get(recording.path)
        if part is None:
            raise AudioError(f"{recording.path}: has no features: {folder} holds no dump of its manifest")
        if part.path not in opened:
            opened[part.path] = read_array(recording, part.path)
        array = opened[part.path]
        if part.stop > len(array):
            raise AudioError(f"{recording.path}: {part.path} ends before its features: it is not whole")
        return choose_layer(recording, array[part.start : part.stop], None)

    return load


def _list_parts(folder: Path, split: str, dumps: Mapping[str, set[tuple[int, int]]], count: int) -> list[Part]:
    counts = {shards for _, shards in dumps.get(split, ())}
    if len(counts) != 1:
        reason = f"dumps in {' and in '.join(map(str, sorted(counts)))} shards" if counts else "no dump"
        raise UsageError(f"{folder}: holds {reason} of the manifest {split}, as {split}_0_1.npy and {split}_0_1.len")
    (num_shards,) = counts
    parts = []
    for rank in range(num_shards):
        path = folder / f"{split}_{rank}_{num_shards}.npy"
        if (rank, num_shards) not in dumps[split]:
            raise UsageError(f"{path}: is missing, or the .len file beside it: shards 0 to {num_shards - 1} are needed")
        start = 0
        for length in _read_lengths(path.with_suffix(".len")):
            parts.append(Part(path, start, start + length))
            start += length
    if len(parts) != count:
        raise UsageError(
            f"{folder}: holds features of {len(parts)} recordings of {split}, and its manifest lists {count}"
        )
    return parts


def _read_lengths(path: Path) -> list[int]:
    with _files.refusing(path, "cannot be read"):
        try:
            return [int(line) for line in path.read_text(encoding="ascii").split()]
        except ValueError:
            raise UsageError(f"{path}: not a line with a number of frames for each recording") from None
