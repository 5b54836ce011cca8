"""Recognise and open a named teacher: a HuBERT, another encoder of transformers, or stored features."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from daisy import _files, checkpoints
from daisy.audio import Recording
from daisy.checkpoints.content_digest import ContentDigest
from daisy.checkpoints.converters.huggingface_folder import find_snapshot, read_json
from daisy.checkpoints.format import ASSETS
from daisy.errors import CheckpointError, UsageError
from daisy.extraction.extracted_features import INDEX, Extraction
from daisy.extraction.fairseq_dumps import list_dumps, load_from_dumps
from daisy.extraction.feature_files import name_outputs
from daisy.extraction.features import Features, make_layer_states, make_teacher_states
from daisy.extraction.stored_features import holds_layers, load_by_name, open_stored
from daisy.extraction.teachers import load_teacher
from daisy.models import Backbone
from daisy.runtime.dtypes import Precision

Kind = Literal["mfcc", "checkpoint", "hubert folder", "transformers", "extraction", "fairseq dumps", "features"]
HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*")
NO_TEACHERS = (".npy", ".len", ".json", ".tsv", ".km", ".txt", ".csv", ".wav", ".flac")
"""Endings of files that are no teacher, or only one of its many files."""
JOURNALS = "*journal*.jsonl"
KNOWN = (
    "a HuBERT's checkpoint, a folder of a transformers encoder (config.json), or a folder of features (.npy files, "
    "one a recording, daisy's extraction, or fairseq's dumps)"
)


@dataclass(frozen=True, kw_only=True)
class UnitSource:
    """A source of units."""

    kind: Kind
    features: Features
    identity: str
    """Identifies the source and its layer."""
    layer: int | None
    note: str | None = None
    """Information for the user."""


def open_teacher(
    name: str | Path,
    layer: int | None,
    splits: Mapping[str, Sequence[Recording]],
    *,
    feature_rate: float | None = None,
    precision: Precision = "float32",
    device: str = "cpu",
    allow_pickle: bool = False,
) -> UnitSource:
    """Open a teacher of any kind.

    Args:
        name: name of a bundled model; a checkpoint of a HuBERT, daisy's or one that `daisy.checkpoints.convert` reads;
            a folder or a name on the hub of a transformers encoder; or a folder of features.
        layer: layer whose states are used; for features, if there are several.
        splits: recordings whose features will be wanted, by their manifest's name.
        feature_rate: frames per second of a folder of features; None: the rate that fits the recordings' lengths.
        precision: precision in which networks compute.
        device: device on which networks run.
        allow_pickle: read checkpoints that hold pickled Python objects (fairseq's do).

    Raises:
        UsageError: if the name is none of these, or several, the layer is wrong or not given, or transformers is
            missing.
        CheckpointError: if a HuBERT cannot be read.
    """
    name = str(name)
    kind = recognise(name)
    if kind in ("extraction", "fairseq dumps", "features"):
        return _open_features(kind, Path(name), layer, splits, feature_rate)
    if feature_rate is not None:
        raise UsageError(f"{name}: is a network, whose frames a second are known: leave the rate of features out")
    if layer is None:
        raise UsageError(f"{name}: which of its layers teaches must be told", remedy="layer")
    if kind == "transformers":
        folder = find_snapshot(Path(name)) if os.path.isdir(name) else name
        try:
            teacher = load_teacher(folder, layer, device, bfloat16=precision == "bfloat16")
        except UsageError as error:
            if os.path.isdir(name) or "transformers" not in error.message:
                raise
            raise UsageError(f"{name}: no such file or folder, and as a name on the hub: {error.message}") from None
        return UnitSource(
            kind=kind, features=make_teacher_states(teacher), identity=f"{teacher.digest}:{layer}", layer=layer
        )
    backbone, digest = _load_hubert(kind, name, device, allow_pickle)
    features = make_layer_states(backbone, layer, precision)
    return UnitSource(kind=kind, features=features, identity=f"{digest}:{layer}", layer=layer)


def recognise(name: str) -> Kind:
    """Recognise the kind of a teacher from its name, and from existing files.

    Raises:
        UsageError: if it is of no known kind, or of several.
    """
    path = Path(name)
    if os.sep not in name and (ASSETS / f"{name}.safetensors").is_file():
        if path.exists():
            raise UsageError(f"{name}: is a bundled model, and lies here too: write ./{name} for what lies here")
        return "checkpoint"
    if os.path.isdir(path):
        return _recognise_folder(path)
    if os.path.isfile(path):
        if path.suffix in NO_TEACHERS:
            raise UsageError(f"{name}: is no teacher by itself, which is {KNOWN}")
        return "checkpoint"
    if HUB_NAME.fullmatch(name) and path.suffix != ".safetensors":
        return "transformers"
    raise UsageError(f"{name}: no such file or folder; a teacher is {KNOWN}")


def _recognise_folder(folder: Path) -> Kind:
    kinds: dict[str, Kind] = {}
    try:
        if (config := find_snapshot(folder) / "config.json").is_file():
            is_hubert = read_json(config).get("model_type") == "hubert"
            kinds["a model (config.json)"] = "hubert folder" if is_hubert else "transformers"
    except CheckpointError as error:
        raise CheckpointError(f"{folder}: {error.message}") from None
    if (folder / INDEX).is_file():
        kinds[f"an extraction ({INDEX})"] = "extraction"
    elif any(folder.glob(JOURNALS)):
        raise UsageError(f"{folder}: is an extraction without {INDEX}: let it end, or make the index with daisy index")
    if dumps := list_dumps(folder):
        kinds[f"fairseq's dumps ({min(dumps)}_…npy and .len)"] = "fairseq dumps"
    elif "extraction" not in kinds.values() and any(folder.rglob("*.npy")):
        kinds["features (.npy)"] = "features"
    if len(kinds) > 1:
        raise UsageError(f"{folder}: may be {' or '.join(kinds)}: put them into folders of their own")
    if not kinds:
        raise UsageError(f"{folder}: holds nothing that teaches; a teacher is {KNOWN}")
    (kind,) = kinds.values()
    return kind


def _load_hubert(kind: Kind, name: str, device: str, allow_pickle: bool) -> tuple[Backbone, str]:
    """Load a HuBERT of any form, and compute the digest that identifies it."""
    if kind == "hubert folder":
        backbone = checkpoints.convert(name, allow_pickle=allow_pickle).hubert
        shape = {**backbone.config.to_dict(), "final_norm": backbone.config.final_norm}  # keeps digests of HuBERTs
        digest = ContentDigest.of(shape, backbone.state_dict())
        return backbone.to(device), digest
    path = Path(name).absolute() if os.path.isfile(name) else checkpoints.find(name)
    try:
        model = checkpoints.load(path, device=device)
    except CheckpointError as error:
        if error.remedy != "convert":
            raise
        model = checkpoints.convert(path, allow_pickle=allow_pickle).to(device)
    return model.hubert, _files.digest(path)


def _open_features(
    kind: Kind, folder: Path, layer: int | None, splits: Mapping[str, Sequence[Recording]], rate: float | None
) -> UnitSource:
    if layer is not None and layer < 0:
        raise UsageError(f"layers are counted from 0, the input of the first, found {layer}")
    recordings = [recording for split in splits.values() for recording in split]
    if kind == "extraction":
        return _open_extraction(folder, layer, recordings, rate)
    if kind == "fairseq dumps":
        load, chooses = load_from_dumps(folder, splits), False
    else:
        _refuse_shared_names(folder, recordings)
        load, chooses = load_by_name(folder, layer), holds_layers(folder, recordings)
    features = open_stored(load, recordings, folder, rate)
    note = None
    if layer is not None and not chooses:
        note = f"{folder}: the files hold one layer; layer {layer} is only noted in labels.json"
    return UnitSource(kind=kind, features=features, identity="features", layer=layer, note=note)


def _open_extraction(
    folder: Path, layer: int | None, recordings: Sequence[Recording], rate: float | None
) -> UnitSource:
    extraction = Extraction(folder)
    layer = extraction.choose_layer(layer)
    moved = extraction.list_unlisted(recordings)
    _refuse_shared_names(folder, moved)
    features = open_stored(extraction.load(layer, recordings), recordings, folder, rate)
    notes = []
    if num_early := extraction.count_early(layer, recordings):
        notes.append(f"{num_early} recordings left before layer {layer}, and have no states there")
    if moved:
        notes.append(f"{len(moved)} recordings are looked for by name: {folder / INDEX} does not list {moved[0].path}")
    return UnitSource(
        kind="extraction",
        features=features,
        identity=f"features of {extraction.checkpoint}:{layer}",
        layer=layer,
        note=f"{folder}: {'; '.join(notes)}" if notes else None,
    )


def _refuse_shared_names(folder: Path, recordings: Sequence[Recording]) -> None:
    """Reject recordings of several manifests whose features would be in the same file."""
    taken: dict[str, Recording] = {}
    for recording in recordings:
        (output,) = name_outputs([recording], "npy").values()
        if (other := taken.setdefault(output, recording)).path != recording.path:
            raise UsageError(
                f"{folder / output}: would be the features of both {other.path} and {recording.path}: "
                "write manifests with a root that they share"
            )
