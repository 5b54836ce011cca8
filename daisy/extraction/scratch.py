"""Temporary folders below the system's one (``TMPDIR``); those of killed processes are removed, too."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from daisy import _locks

PREFIX = "daisy-"
LOCK = ".lock"
"""Name of the lock in each such folder, held by the process that uses the folder."""


@contextlib.contextmanager
def open_scratch() -> Iterator[Path]:
    """Create a folder for as long as the context lasts.

    Raises:
        OutputError: if nothing can be written there.
    """
    lock = None
    try:
        with tempfile.TemporaryDirectory(prefix=PREFIX) as scratch:
            lock = _locks.acquire(Path(scratch) / LOCK, warns=False)
            yield Path(scratch)
    finally:
        if lock is not None:
            lock.release()


def remove_abandoned() -> None:
    """Remove the folders of killed processes of this machine and user."""
    with contextlib.suppress(OSError), os.scandir(tempfile.gettempdir()) as entries:
        for entry in entries:
            if entry.name.startswith(PREFIX) and _locks.is_abandoned(Path(entry, LOCK)) and _is_own_folder(entry):
                shutil.rmtree(entry.path, ignore_errors=True)


def _is_own_folder(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a folder of this user, and no link: others' folders are not touched."""
    return entry.is_dir(follow_symlinks=False) and entry.stat(follow_symlinks=False).st_uid == os.geteuid()
