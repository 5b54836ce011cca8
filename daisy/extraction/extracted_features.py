"""Features written by an `Extractor`, found through the folder's index."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from daisy.audio import Recording
from daisy.audio.archives import find_file, open_bytes
from daisy.errors import AudioError, UsageError
from daisy.extraction.feature_files import name_outputs
from daisy.extraction.stored_features import Load, choose_layer, read_array

INDEX = "index.json"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """The entry of a recording in an index."""

    path: str
    output: str
    """Path relative to the extraction's folder."""
    exits: tuple[int, ...]
    """Exit layer of the recording, or of each of its windows."""

    @classmethod
    def parse(cls, row: dict[str, Any]) -> Entry:
        """Parse a row; raises KeyError, TypeError or ValueError if it is invalid."""
        exits = tuple(map(int, row.get("window_exits") or [row["exit_layer"]]))
        return cls(path=str(row["path"]), output=str(row["output"]), exits=exits)


class Extraction:
    """The index of an extraction.

    Args:
        folder: folder of the extraction.

    Raises:
        UsageError: if the index cannot be read.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        try:
            index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
            settings = dict(index["settings"])
            self.checkpoint = str(settings["checkpoint"])
            """Digest of the checkpoint's file."""
            self.format, self.has_all_layers = str(settings.get("format", "npy")), settings.get("layers") == "all"
            entries = [Entry.parse(dict(row)) for row in index["recordings"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UsageError(
                f"{folder / INDEX}: not the index of an extraction ({error!r}): take it away if it is something else's"
            ) from None
        self.by_path = {entry.path: entry for entry in entries}
        self.by_output = {entry.output: entry for entry in entries}
        if settings.get("shards") or settings.get("store"):
            raise UsageError(
                f"{folder}: its features are in {settings.get('store') or 'shard files'}, and units are made of a file "
                "for each recording: extract without shards, into a folder"
            )
        if settings.get("channel", "mean") == "all":
            raise UsageError(f"{folder}: holds features of each channel by itself, and units are of a recording")

    def choose_layer(self, layer: int | None) -> int:
        """Check that a layer's states are there, and return its number.

        Args:
            layer: layer to use; None: the only one that is there.

        Raises:
            UsageError: if recordings exited at several layers and only the last states were kept, the layer is not
                there, or a layer must be given.
        """
        exits = sorted({number for entry in self.by_path.values() for number in entry.exits})
        if self.has_all_layers:
            if layer is None:
                raise UsageError(f"{self.folder}: holds the states of all layers", remedy="layer")
            if exits and not 0 <= layer <= exits[-1]:
                raise UsageError(f"{self.folder}: holds the states of layers 0 to {exits[-1]}, not {layer}")
            return layer
        if len(exits) > 1:
            raise UsageError(
                f"{self.folder}: holds each recording's states at its own exit layer, {exits[0]} to {exits[-1]}, and "
                "units are of one layer: extract with the policy fixed or never, or all layers"
            )
        if layer is not None and layer not in exits:
            raise UsageError(f"{self.folder}: holds the states of layer {exits[0] if exits else 'none'}, not {layer}")
        return exits[0] if exits else 0

    def count_early(self, layer: int, recordings: Iterable[Recording]) -> int:
        """Count the recordings that exited before a layer and so have no states there."""
        entries = {self.by_path.get(str(recording.path)) for recording in recordings}
        return sum(entry is not None and min(entry.exits) < layer for entry in entries)

    def list_unlisted(self, recordings: Iterable[Recording]) -> list[Recording]:
        """List, each once, the recordings whose paths are not those of extracted recordings."""
        once = {recording.path: recording for recording in recordings}
        return [recording for path, recording in once.items() if str(path) not in self.by_path]

    def load(self, layer: int, recordings: Sequence[Recording]) -> Load:
        """Create the function that reads a recording's states at a layer.

        Args:
            layer: layer to read.
            recordings: all recordings of interest; the features of one of them are not used for another.
        """
        wanted = {str(recording.path) for recording in recordings}

        def load(recording: Recording) -> Tensor:
            entry = self.by_path.get(str(recording.path)) or self._find_moved(recording, wanted)
            return choose_layer(recording, read_array(recording, self.folder / entry.output, layer), layer)

        return load

    def _find_moved(self, recording: Recording, wanted: set[str]) -> Entry:
        """Find a recording by its name, for audio that was elsewhere when it was extracted.

        Raises:
            AudioError: if there is none, or the name belongs to another recording.
        """
        (output,) = name_outputs([recording], self.format).values()
        entry = self.by_output.get(output)
        if entry is None:
            raise AudioError(f"{recording.path}: has no features: {self.folder / INDEX} does not list it")
        is_there = find_file(entry.path).is_file()
        if entry.path in wanted or (is_there and not _is_copy(recording, entry.path)):
            raise AudioError(
                f"{recording.path}: has no features: those in {self.folder / output} are of {entry.path}, which is "
                "another recording"
            )
        return entry


def _is_copy(recording: Recording, path: str) -> bool:
    """Return whether a recording's file has the same bytes as another file."""
    try:
        with open_bytes(recording.path) as one, open_bytes(path) as other:
            return one.read() == other.read()
    except OSError as error:
        raise AudioError(f"{recording.path}: cannot be compared with {path} ({error.strerror or error})") from None
