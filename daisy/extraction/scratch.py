"""Folders for files on their way, below the system's temporary folder (``TMPDIR``): also a killed process's go."""

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
"""In each such folder, the lock of the process that uses it."""


@contextlib.contextmanager
def open_scratch() -> Iterator[Path]:
    """Make a folder for as long as the context lasts.

    Raises:
        OutputError: where nothing can be written there.
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
    """Take away the folders of processes of this machine and user that were killed."""
    with contextlib.suppress(OSError), os.scandir(tempfile.gettempdir()) as entries:
        for entry in entries:
            if entry.name.startswith(PREFIX) and _locks.is_abandoned(Path(entry, LOCK)) and _is_own_folder(entry):
                shutil.rmtree(entry.path, ignore_errors=True)


def _is_own_folder(entry: os.DirEntry[str]) -> bool:
    """Tell whether it is a folder of this user: others' are not touched, nor what their links lead to."""
    return entry.is_dir(follow_symlinks=False) and entry.stat(follow_symlinks=False).st_uid == os.geteuid()
