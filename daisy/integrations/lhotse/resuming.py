"""What a run that goes on must find as it was: a manifest of whole lines, and the settings that it was begun with."""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Mapping
from pathlib import Path

from daisy import _files
from daisy.checkpoints import digest
from daisy.errors import OutputError
from daisy.integrations.lhotse.extractor import DaisyFeatures


def keep_settings(beside: Path, extractor: DaisyFeatures, stores: Mapping[str, bool], *, overwrite: bool) -> None:
    """Note what a run is made with, and refuse to go on with one that was begun otherwise.

    Args:
        beside: the run's manifest or folder; the note stands next to it, as ``NAME.daisy.json``.
        extractor: what runs.
        stores: what else decides what is written.
        overwrite: begin again.

    Raises:
        OutputError: where the run was begun with other settings, or the note cannot be written.
    """
    path = beside.with_name(f"{beside.name}.daisy.json")
    policy = json.dumps(extractor.encoder.policy.to_config(), sort_keys=True)
    settings = {
        "checkpoint": digest(extractor.config.checkpoint),
        "layer": extractor.config.layer,
        "policy": {"name": extractor.encoder.policy.name, "digest": hashlib.sha256(policy.encode()).hexdigest()},
        "dtype": extractor.config.dtype,
        **stores,
    }
    if path.is_file() and not overwrite:
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
    _files.write_json(path, settings)


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
