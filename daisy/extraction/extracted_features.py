"""Features that an `Extractor` has written, found through the folder's index."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor

from daisy.audio import Recording
from daisy.audio.archives import find_file
from daisy.errors import AudioError, UsageError
from daisy.extraction.feature_files import name_outputs
from daisy.extraction.stored_features import Load, choose_layer, read_array

INDEX = "index.json"
Row = dict[str, Any]


class Extraction:
    """What an extraction's index says.

    Args:
        folder: of the extraction.

    Raises:
        UsageError: where the index cannot be read.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        try:
            index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
            self.settings: dict[str, Any] = dict(index["settings"])
            rows: list[Row] = [dict(row) for row in index["recordings"]]
            self.by_path = {str(row["path"]): row for row in rows}
            self.by_output = {str(row["output"]): row for row in rows}
            self.checkpoint = str(self.settings["checkpoint"])
            """Digest of the checkpoint's file."""
            self.exits = sorted({exit_layer for row in rows for exit_layer in _list_exits(row)})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UsageError(f"{folder / INDEX}: not the index of an extraction ({error!r})") from None
        if self.settings.get("channel", "mean") == "all":
            raise UsageError(f"{folder}: holds features of each channel by itself, and units are of a recording")

    def choose_layer(self, layer: int | None) -> int:
        """Check which layer's states are there.

        Args:
            layer: that is wanted; None: the one that is there.

        Raises:
            UsageError: where recordings have left at several layers and only the last states were kept, or the layer is
                not there, or must be told.
        """
        if self.settings.get("layers") == "all":
            if layer is None:
                raise UsageError(f"{self.folder}: holds the states of all layers", remedy="layer")
            return layer
        exits = self.exits
        if len(exits) > 1:
            raise UsageError(
                f"{self.folder}: holds each recording's states at its own exit layer, {exits[0]} to {exits[-1]}, and "
                "units are of one layer: extract with the policy fixed or never, or all layers"
            )
        if layer is not None and layer not in exits:
            raise UsageError(f"{self.folder}: holds the states of layer {exits[0] if exits else 'none'}, not {layer}")
        return exits[0] if exits else 0

    def load(self, layer: int) -> Load:
        """Make the function that reads a recording's states at a layer."""

        def load(recording: Recording) -> Tensor:
            row = self._find(recording)
            array = read_array(recording, self.folder / row["output"])
            return choose_layer(recording, array, layer)

        return load

    def _find(self, recording: Recording) -> Row:
        """Find a recording by its path; by its name where the audio was elsewhere then, and is there no more."""
        if row := self.by_path.get(str(recording.path)):
            return row
        (output,) = name_outputs([recording], str(self.settings.get("format", "npy"))).values()
        row = self.by_output.get(output)
        if row is None or find_file(row["path"]).exists():  # then it is another recording of that name
            raise AudioError(f"{recording.path}: has no features: {self.folder / INDEX} does not list it")
        return row

    def lists(self, recording: Recording) -> bool:
        """Tell whether a recording is there by its path."""
        return str(recording.path) in self.by_path


def _list_exits(row: Row) -> Iterable[int]:
    return map(int, row.get("window_exits") or [row["exit_layer"]])
