"""The files that a run writes, and existing files under their names: its own, a killed run's or someone else's."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from daisy import _files
from daisy.errors import OutputError
from daisy.extraction.places import Folder, Place
from daisy.extraction.run_folder import RunFolder
from daisy.extraction.run_journals import list_journals
from daisy.extraction.shards import Shard


def refuse_others_files(place: Place, share: Shard, kind: str, outputs: Iterable[str], journals: Path) -> None:
    """Refuse to begin if there are files that the run would replace or remove and that no journal lists as its own.

    If the folder has journals of another number of shares, their runs' files may be among them.

    Args:
        place: place of the files.
        share: share that begins.
        kind: kind of shard files; empty: each recording has its own.
        outputs: files of the share's recordings.
        journals: folder of the journals; it does not have the share's yet.

    Raises:
        OutputError: if there is such a file; or the place or a journal cannot be read.
    """
    if kind:
        prefix, pattern = _name_shards(share, kind)
        found = min(filter(pattern.fullmatch, place.list_names(prefix)), default=None)
    elif not journals.is_dir() or all(other.count == share.count for other in list_journals(journals)):
        found = next(filter(place.has, outputs), None)
    else:
        return
    if found is not None:
        raise OutputError(
            f"{place}: holds {found}, which is no file of this run, and which it would replace or take away",
            remedy="overwrite" if share.count == 1 else "other_out",
        )


def remove_leftovers(folder: RunFolder, kind: str, outputs: Iterable[str]) -> None:
    """Remove what killed processes left: half-written files, and shard files without entries in a journal.

    Args:
        folder: folder of the run, whose journal was begun when there were no such files.
        kind: kind of shard files; empty: each recording has its own.
        outputs: files that will be written, if each recording has its own.
    """
    place = folder.place
    if not kind:
        if isinstance(place, Folder):
            _files.remove_leftovers(place.root / output for output in outputs)
        return
    prefix, pattern = _name_shards(folder.shard, kind)
    if isinstance(place, Folder):
        _files.remove_leftovers_of(place.root, prefix)
    noted = folder.rows.shards()
    for name in place.list_names(prefix):
        if pattern.fullmatch(name) and name not in noted:
            place.remove(name)


def number_shards(folder: RunFolder, kind: str) -> Iterator[str]:
    """Generate the names of new shard files, numbered after the existing ones."""
    prefix, pattern = _name_shards(folder.shard, kind)
    numbers = [int(match[1]) for match in map(pattern.fullmatch, folder.rows.shards()) if match]
    return (f"{prefix}{number:06}.{kind}" for number in itertools.count(max(numbers, default=-1) + 1))


def _name_shards(share: Shard, kind: str) -> tuple[str, re.Pattern[str]]:
    """Return the prefix and the pattern of the names of a share's shard files."""
    prefix = "shard-" if share.count == 1 else f"shard-{share.index}-of-{share.count}-"
    return prefix, re.compile(rf"{prefix}(\d+)(?:-[01])*\.{kind}")
