"""Read the files of a Hugging Face model: its folder (or the hub's cache), JSON, and weights in one or more files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from daisy.checkpoints.contents import name_other_content
from daisy.checkpoints.converters.mapping import Config
from daisy.checkpoints.converters.reading import name_missing_file, read_state
from daisy.checkpoints.weights import list_some
from daisy.errors import CheckpointError

PREPROCESSORS = ("preprocessor_config.json", "processor_config.json")
"""The second has the first's content under "feature_extractor": transformers 5 writes it for a whole processor."""
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""Weights in one file; if in several, a file of this name plus ``.index.json`` says which tensor is where."""


def find_snapshot(folder: Path) -> Path:
    """Find the model in a folder of the hub's cache, ``models--OWNER--NAME``; other folders are returned as they are.

    Source: huggingface_hub 0.36, "Understand caching": ``refs/main`` holds the name of a folder in ``snapshots``.

    Raises:
        CheckpointError: where the cache holds no complete snapshot, or several without saying which is current.
    """
    snapshots = folder if folder.name == "snapshots" else folder / "snapshots"
    if (folder / "config.json").is_file() or not snapshots.is_dir():
        return folder
    names = sorted(path.name for path in snapshots.iterdir() if path.is_dir())
    main = snapshots.parent / "refs" / "main"
    if main.is_file() and (wanted := main.read_text(encoding="utf-8").strip()) in names:
        return snapshots / wanted
    if len(names) == 1:
        return snapshots / names[0]
    raise CheckpointError(f"a folder of the hub's cache with {len(names)} snapshots: give one of snapshots/…")


def name_model(folder: Path) -> str:
    """Return a folder's name; in the hub's cache, OWNER/NAME and the snapshot."""
    kept = folder.resolve().parent.parent
    if folder.resolve().parent.name != "snapshots" or not kept.name.startswith("models--"):
        return folder.name
    return f"{kept.name.removeprefix('models--').replace('--', '/')}, {folder.name[:12]}"


def read_json(path: Path) -> Config:
    """Read a JSON object.

    Raises:
        CheckpointError: where the file does not hold one.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if path.is_symlink():
            raise CheckpointError(f"{path.name} {name_missing_file(path)}") from None
        raise CheckpointError(f"has no {path.name}: not a Hugging Face model") from None
    except OSError as error:
        raise CheckpointError(f"{path.name} cannot be read ({error.strerror})") from None
    except ValueError as error:
        other = name_other_content(path)
        raise CheckpointError(f"{path.name} is {other or f'not JSON ({error})'}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path.name} holds no object")
    return content


def read_weights(folder: Path, allow_pickle: bool) -> dict[str, Any]:
    """Read all weights, from the first of `WEIGHTS` that exists, in one file or in several.

    Raises:
        CheckpointError: where there are none, or some of them are missing.
    """
    for name in WEIGHTS:
        if (path := folder / name).is_file():
            return _read_part(path, allow_pickle)
        if (index := folder / f"{name}.index.json").is_file():
            return _read_shards(folder, index, allow_pickle)
    broken = [name for name in WEIGHTS if (folder / name).is_symlink()]
    if broken:
        raise CheckpointError(f"{broken[0]} {name_missing_file(folder / broken[0])}")
    raise CheckpointError(f"has no weights: neither {' nor '.join(WEIGHTS)}, in one file or several with an index")


def _read_shards(folder: Path, index: Path, allow_pickle: bool) -> dict[str, Any]:
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(_is_plain_name(name) for name in places.values()):
        raise CheckpointError(f"{index.name} has no weight_map of weights to files of the folder")
    state: dict[str, Any] = {}
    for name in sorted(set(places.values())):
        state.update(_read_part(folder / name, allow_pickle))
    if missing := sorted(set(places) - set(state)):
        raise CheckpointError(f"{index.name} lists weights that no file holds: {list_some(missing)}")
    return state


def _read_part(path: Path, allow_pickle: bool) -> dict[str, Any]:
    try:
        return read_state(path, allow_pickle)
    except CheckpointError as error:
        raise CheckpointError(f"{path.name}: {error.message}", remedy=error.remedy) from None


def _is_plain_name(name: object) -> bool:
    """Tell whether a shard's name lies in the folder itself: an index must not reach other files."""
    return isinstance(name, str) and Path(name).name == name
