"""What a run that goes on must find as it was: a manifest of whole lines, and the settings that it was begun with."""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from daisy import _files
from daisy.checkpoints import digest
from daisy.errors import OutputError
from daisy.integrations.lhotse.extractor import DaisyFeatures


def describe_settings(extractor: DaisyFeatures) -> dict[str, Any]:
    """Return what decides what an extractor makes."""
    policy = json.dumps(extractor.encoder.policy.to_config(), sort_keys=True)
    return {
        "checkpoint": digest(extractor.config.checkpoint),
        "layer": extractor.config.layer,
        "policy": {"name": extractor.encoder.policy.name, "digest": hashlib.sha256(policy.encode()).hexdigest()},
        "dtype": extractor.config.dtype,
    }


def check_settings(beside: Path, settings: Mapping[str, Any]) -> None:
    """Refuse to go on with a run that was begun otherwise.

    Args:
        beside: the run's manifest or folder.
        settings: what it would go on with.

    Raises:
        OutputError: where `note_settings` noted others, or the note is damaged.
    """
    path = _name_note(beside)
    if not path.is_file():
        return
    try:
        before = dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        raise OutputError(f"{path}: damaged; remove it and the run, or give overwrite=True") from None
    names = before.keys() | settings.keys()
    different = sorted(name for name in names if before.get(name) != settings.get(name))
    if different:
        raise OutputError(
            f"{beside}: was begun with another {', '.join(different)}; use another place, or overwrite=True"
        )


def note_settings(beside: Path, settings: Mapping[str, Any]) -> None:
    """Note what a run is made with, next to its manifest or folder.

    Raises:
        OutputError: where the note cannot be written.
    """
    _files.write_json(_name_note(beside), dict(settings))


def _name_note(beside: Path) -> Path:
    return beside.with_name(f"{beside.name}.daisy.json")


def mend_manifest(path: Path) -> None:
    """Take what a killed run left unfinished off the end of a JSONL file, so that it can be written on."""
    if not path.is_file():
        return
    is_packed, whole, is_cut = path.suffix == ".gz", [], False
    with gzip.open(path, "rt", encoding="utf-8") if is_packed else open(path, encoding="utf-8") as stream:
        try:
            for line in stream:
                is_cut = not line.endswith("\n")
                whole += [] if is_cut else [line]
        except (EOFError, UnicodeDecodeError, zlib.error, gzip.BadGzipFile):
            is_cut = True
    if is_cut:
        content = "".join(whole).encode()
        _files.write(path, gzip.compress(content) if is_packed else content)
