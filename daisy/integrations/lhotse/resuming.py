"""The state that a resumed run needs: a manifest of whole lines, and the settings of the run before."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from lhotse import CutSet

from daisy import _files, _locks
from daisy.checkpoints import digest
from daisy.errors import OutputError
from daisy.integrations.lhotse.extractor import DaisyFeatures


def describe_settings(extractor: DaisyFeatures) -> dict[str, Any]:
    """Return the settings that determine an extractor's results."""
    policy = json.dumps(extractor.encoder.policy.to_config(), sort_keys=True)
    return {
        "checkpoint": digest(extractor.config.checkpoint),
        "layer": extractor.config.layer,
        "policy": {"name": extractor.encoder.policy.name, "digest": hashlib.sha256(policy.encode()).hexdigest()},
        "dtype": extractor.config.dtype,
    }


@contextlib.contextmanager
def hold_lock(beside: Path) -> Iterator[None]:
    """Lock a manifest or a Shar folder against other writers, with a file beside it (``NAME.daisy.lock``).

    Raises:
        OutputError: where another process holds the lock, or it cannot be written.
    """
    with _locks.write_alone(beside, beside.with_name(f"{beside.name}.daisy.lock")):
        yield


def begin_manifest(path: Path, cuts: CutSet, settings: Mapping[str, Any], *, overwrite: bool) -> None:
    """Prepare a manifest for further lines, or remove it, and note its settings.

    Args:
        path: path of the manifest, which may not exist yet.
        cuts: cuts to encode.
        settings: settings of the run.
        overwrite: start the manifest again.

    Raises:
        OutputError: where it has other settings, or was written by something else; or would be overwritten while
            cuts are read from it.
    """
    if overwrite:
        if path.exists() and any(os.path.samefile(path, source) for source in _list_sources(cuts)):
            raise OutputError(f"{path}: the cuts are read from it; use another place")
        with _files.refusing(path):  # before the note, so that a resumed run keeps no cuts of other settings
            path.unlink(missing_ok=True)
    elif path.exists():
        if not read_note(path):
            raise OutputError(f"{path}: was not begun by add_exits; use another place, or overwrite=True")
        check_settings(path, settings)
        mend_manifest(path)
    note_settings(path, settings)


def _list_sources(cuts: Any) -> Iterator[Path]:
    """List the manifests from which lazy cuts are read; lhotse's iterators wrap each other."""
    if isinstance(path := getattr(cuts, "path", None), str | Path):
        yield from filter(Path.exists, [Path(path)])
    wrapped = [getattr(cuts, name, None) for name in ("data", "source", "iterator")]
    for inner in [*wrapped, *getattr(cuts, "iterators", ())]:
        if inner is not None:
            yield from _list_sources(inner)


def read_note(beside: Path) -> dict[str, Any]:
    """Read the settings that `note_settings` wrote for a manifest or folder; empty without a note.

    Raises:
        OutputError: where the note is damaged.
    """
    path = _name_note(beside)
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError):
        raise OutputError(f"{path}: damaged; remove it and the run, or give overwrite=True") from None


def check_settings(beside: Path, settings: Mapping[str, Any]) -> None:
    """Check that a run can resume, with the settings that it was started with.

    Args:
        beside: the run's manifest or folder.
        settings: settings with which it would resume.

    Raises:
        OutputError: where the noted settings are others, or the note is damaged.
    """
    before = read_note(beside)
    different = sorted(name for name in settings if before and before.get(name) != settings[name])
    if different:
        raise OutputError(
            f"{beside}: was begun with another {', '.join(different)}; use another place, or overwrite=True"
        )


def note_settings(beside: Path, settings: Mapping[str, Any]) -> None:
    """Note the settings of a run, beside its manifest or folder.

    Raises:
        OutputError: where the note cannot be written.
    """
    _files.write_json(_name_note(beside), dict(settings))


def _name_note(beside: Path) -> Path:
    return beside.with_name(f"{beside.name}.daisy.json")


def mend_manifest(path: Path) -> None:
    """Remove an unfinished line of a killed run from the end of a JSONL file, so that more can be appended."""
    is_packed = path.suffix == ".gz"
    size, is_cut = 0, False
    with _open_unpacked(path) as stream:
        try:
            for line in stream:
                is_cut = not line.endswith(b"\n")
                size += 0 if is_cut else len(line)
        except (EOFError, zlib.error, gzip.BadGzipFile):
            is_cut = True

    def copy(target: BinaryIO) -> None:
        left = size
        with (
            _open_unpacked(path) as source,
            gzip.open(target, "wb") if is_packed else contextlib.nullcontext(target) as out,
        ):
            while left:
                left -= out.write(source.readline())

    if is_cut:
        _files.write(path, copy)


def _open_unpacked(path: Path) -> Any:
    return gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb")
