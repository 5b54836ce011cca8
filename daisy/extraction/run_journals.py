"""The journals in an extraction's folder: their names, the kind of their run, and the files made from them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from daisy import _files, _locks
from daisy.extraction.journal import Journal, read_header, read_journal
from daisy.extraction.shards import Shard, parse_journal_name

if TYPE_CHECKING:
    from _typeshed import DataclassInstance as AnySettings

FOLDER_LOCK = ".journal.lock"
"""Lock held, for moments, while locks are taken and journals are begun."""
INDEX_LOCK = ".index.lock"
"""Lock held, for seconds in large runs, while the index is made from all journals, or everything is deleted."""
INDEX_FILES = ("index.json", "index.csv")
"""Files made from all journals of features."""
TRANSCRIPT_FILES = ("transcripts.json", "transcripts.csv")
"""Files made from all journals of transcripts."""
UNIT_FILES = (
    "units.json", "units.durations", "units.jsonl", "units.km", "units.tsv", "dict.km.txt", "units.txt",
    "units.parquet",
)  # fmt: skip
"""Files made from all journals of units, in one form or another."""
LOCK_SUFFIX = ".lock"
"""Suffix of a journal's name for the lock of the process that writes the journal."""


def is_begun(out: Path, shard: Shard, settings: AnySettings) -> bool:
    """Return whether a shard's journal exists with these settings, or with others and finished recordings.

    Raises:
        OutputError: if it cannot be read or is damaged.
    """
    path = out / shard.journal
    header = read_header(path)
    if header is None:
        return False
    return not Journal(path, header=header).find_differences(settings) or bool(read_journal(path).rows)


def list_journals(out: Path) -> list[Shard]:
    """List the shards whose journals are in a folder, the whole run's first."""
    return _list_shards(out, "")


def holds_kind(out: Path, kind: str) -> bool:
    """Return whether a folder's journals are of some kind (units or transcripts) rather than of features."""
    return any(header.get("kind") == kind for header in _read_headers(out))


def read_policies(out: Path) -> list[dict[str, Any]]:
    """Read the configurations of the policies (`Policy.to_config`) that a folder's journals were begun with.

    Raises:
        OutputError: if a journal is damaged.
    """
    return [header["policy"] for header in _read_headers(out) if isinstance(header.get("policy"), dict)]


def read_subtitles(out: Path) -> list[str]:
    """Read the names of a folder's subtitle files from its transcripts; none if these cannot be read."""
    try:
        names = json.loads((out / TRANSCRIPT_FILES[0]).read_text(encoding="utf-8"))["subtitles"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


def _read_headers(out: Path) -> Iterator[dict[str, Any]]:
    """Read the first lines of a folder's journals; none if there is no folder."""
    for shard in list_journals(out) if out.is_dir() else ():
        if (header := read_header(out / shard.journal)) is not None:
            yield header


def list_running(out: Path) -> set[Shard]:
    """List the shards that other processes are writing now, and remove the locks of killed processes.

    The caller must hold the folder's lock.
    """
    live = set()
    for shard in _list_shards(out, LOCK_SUFFIX):
        lock = _locks.acquire(out / (shard.journal + LOCK_SUFFIX))
        if lock is None:
            live.add(shard)
        else:
            lock.release()
    return live


def _list_shards(out: Path, suffix: str) -> list[Shard]:
    with _files.refusing(out, "cannot be read"):
        names = [name.removesuffix(suffix) for name in os.listdir(out) if name.endswith(suffix)]
    shards = filter(None, map(parse_journal_name, names))
    return sorted(shards, key=lambda shard: (shard.count, shard.index))
