"""A folder of units: its lock, and its ``labels.json``, which records how the units were made."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from daisy import _files, _locks
from daisy.errors import OutputError
from daisy.extraction.stored_features import StoredFeatures, find_changed
from daisy.extraction.teacher_kinds import UnitSource
from daisy.extraction.unit_files import UnitFile, read_keys

NOTES = "labels.json"
CENTRES = "kmeans.npy"
FITTED_ON = "kmeans.keys"
DIGESTS = "feature_digests"
DEFAULTS = {"precision": "float32"}
"""Settings of units from before these could be set."""


@contextlib.contextmanager
def lock_folder(out: Path) -> Iterator[None]:
    """Keep others from writing units into a folder meanwhile.

    Raises:
        OutputError: if another process does, or the folder cannot be written.
    """
    with _locks.write_alone(out, out / f"{NOTES}.lock"):
        yield


def claim_folder(
    out: Path, settings: Mapping[str, Any], remarks: Mapping[str, Any], files: Sequence[UnitFile], source: UnitSource
) -> str | None:
    """Record how a folder's units are made, with digests of manifests, centres and stored features.

    Args:
        out: the folder.
        settings: settings that must stay the same as long as the folder holds units.
        remarks: information for people, which may change.
        files: files to be written.
        source: source of the units.

    Returns:
        A sentence if k-means was fitted on recordings that are no longer listed; else None.

    Raises:
        OutputError: if the folder holds units made otherwise.
    """
    path, centres = out / NOTES, out / CENTRES
    before = read_notes(path) if path.is_file() else {}
    if centres.is_file():
        settings = {**settings, centres.name: _files.digest(centres)}
    check_settings(out, before, settings)
    note = _check_fitted_on(out, files[0])
    manifests = {file.split.path.name: file.split.digest for file in files}
    for file in files:
        file.adopt_older(before.get(file.split.path.name) == file.split.digest)
        file.check_corpus()
    digests = _check_features(out, before, files, source)
    _files.write_json(path, {**before, **settings, **remarks, **digests, **manifests})
    return note


def add_notes(out: Path, **notes: Any) -> None:
    """Add notes."""
    _files.write_json(out / NOTES, {**read_notes(out / NOTES), **notes})


def read_notes(path: Path) -> dict[str, Any]:
    """Read ``labels.json``.

    Raises:
        OutputError: if it cannot be read.
    """
    try:
        notes = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OutputError(f"{path}: cannot be read ({error})") from None
    if not isinstance(notes, dict):
        raise OutputError(f"{path}: damaged: it does not tell how units are made", remedy="other_out")
    return notes


def check_settings(path: Path, before: Mapping[str, object], settings: Mapping[str, object]) -> None:
    """Check that the settings of a folder's units have not changed.

    Args:
        path: path of the folder.
        before: settings recorded there, or none.
        settings: present settings.

    Raises:
        OutputError: if the folder holds units made otherwise.
    """
    known = {**DEFAULTS, **before} if before else before
    different = sorted(key for key, value in settings.items() if known.get(key, value) != value)
    names = [_name_source(str(known[key]), str(settings[key])) if key == "source" else key for key in different]
    if names:
        raise OutputError(f"{path}: holds units made with another {', '.join(names)}", remedy="other_out")


def _name_source(before: str, now: str) -> str:
    """Name the difference between two sources: "layer" if they are of the same teacher."""
    return "layer" if before.rpartition(":")[0] == now.rpartition(":")[0] != "" else "teacher"


def _check_features(
    out: Path, before: Mapping[str, Any], files: Sequence[UnitFile], source: UnitSource
) -> dict[str, dict[str, str]]:
    """Check that stored features have not changed since units were made from them; return digests of some to record.

    Each manifest has some digests. Missing features do not matter if nothing is left to label.
    """
    features = source.features
    if not isinstance(features, StoredFeatures):
        return {}
    noted = before.get(DIGESTS)
    noted = noted if isinstance(noted, dict) else {}
    known: dict[str, str] = {}
    new: dict[str, str] = {}
    for file in files:
        told = [recording for recording in file.split.recordings if str(recording.path) in noted]
        known |= features.digest_some(told)
        new |= {} if told else features.digest_some(file.split.recordings)
    if changed := find_changed(noted, known):
        raise OutputError(f"{out}: holds units made with other features of {changed}", remedy="other_out")
    names_network = source.kind == "extraction"  # its index has the checkpoint's digest
    if noted and not known and not names_network and not all(file.has_all_units() for file in files):
        raise OutputError(
            f"{out}: holds units made with features that are gone, of {min(noted)} and others, so that nobody can tell "
            "whether these here are of the same network: put some of those back",
            remedy="other_out",
        )
    return {DIGESTS: {**new, **noted}}


def _check_fitted_on(out: Path, file: UnitFile) -> str | None:
    """Report if k-means was fitted on recordings that are no longer listed; all units of a folder use one k-means.

    Raises:
        OutputError: if none of them is listed: this is another corpus.
    """
    keys_path = out / FITTED_ON
    fitted_on = set(read_keys(keys_path)) if keys_path.is_file() else set()  # manifests may repeat recordings
    gone = len(fitted_on - set(file.split.keys))
    if fitted_on and gone == len(fitted_on):
        raise OutputError(
            f"{out}: holds units of other recordings: {file.split.path} lists none that k-means was fitted on",
            remedy="other_out",
        )
    if not gone:
        return None
    return (
        f"k-means stays as it was fitted, on {len(fitted_on)} recordings, {gone} of which "
        f"{file.split.path} no longer lists"
    )
