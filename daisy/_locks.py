"""Lock files between processes: one process at a time holds a lock, and its file says which.

The system releases a lock when its holder ends, however it ends: a killed process blocks nobody. On network file
systems a lock works between hosts if the system's ``flock`` does (NFS since Linux 2.6.12, Lustre mounted with
``flock``, GPFS). Locks of a killed host last until the server's lease ends, on NFS usually 90 s.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

from daisy import _files
from daisy.errors import OutputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

UNSUPPORTED = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}
"""Errors that a file system without locks answers with."""


class Lock:
    """A lock that this process holds until it is released.

    Args:
        path: path of the lock file, which exists as long as the lock is held.
        descriptor: descriptor of the open file.
    """

    def __init__(self, path: Path, descriptor: int):
        self.path, self._descriptor = path, descriptor

    def release(self) -> None:
        """Release the lock. Its file is removed first, while nobody else can hold it."""
        _files.remove(self.path)
        with contextlib.suppress(OSError):
            os.close(self._descriptor)


def acquire(path: Path, *, wait: bool = False, warns: bool = True) -> Lock | None:
    """Take a lock.

    Args:
        path: path of the lock file.
        wait: wait until the lock is free.
        warns: warn if the file system keeps no locks.

    Returns:
        The lock; None if somebody else holds it.

    Raises:
        OutputError: where the lock file cannot be written.
    """
    while True:
        with _files.refusing(path.parent):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            taken = _flock(descriptor, path, wait, warns)
            if taken and _is_there(descriptor, path):
                _sign(descriptor)
                return Lock(path, descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        if not taken:
            return None
        # The last holder removed the file between the two calls: there is, or will be, another file.


@contextlib.contextmanager
def hold(path: Path) -> Iterator[None]:
    """Wait for a lock and hold it during a ``with`` block.

    Raises:
        OutputError: where the lock file cannot be written.
    """
    lock = acquire(path, wait=True)
    assert lock is not None
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def write_alone(written: Path, path: Path) -> Iterator[None]:
    """Keep others from writing a file or folder during a ``with`` block.

    Args:
        written: file or folder that is written.
        path: path of the lock file; its folder is made if missing.

    Raises:
        OutputError: where somebody else is writing it, or the lock file cannot be written.
    """
    with _files.refusing(written):
        path.parent.mkdir(parents=True, exist_ok=True)
    lock = acquire(path)
    if lock is None:
        raise OutputError(f"{written}: is being written by {describe_holder(path)}", remedy="wait")
    try:
        yield
    finally:
        lock.release()


def describe_holder(path: Path) -> str:
    """Describe who holds a lock: "process 4711 on node3, since 2026-11-28 10:20:31"."""
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
        return f"process {holder['pid']} on {holder['host']}, since {holder['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"  # which has not signed yet, or has just ended


def is_abandoned(path: Path) -> bool:
    """Tell whether a lock's last holder was a process of this machine that ended without releasing it."""
    try:
        if fcntl is None or json.loads(path.read_text(encoding="utf-8"))["host"] != socket.gethostname():
            return False
        with open(path, "r+b") as stream:
            fcntl.flock(stream.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (OSError, ValueError, KeyError, TypeError):
        return False  # held, or not signed yet, or on a file system that keeps no locks
    return True


def _flock(descriptor: int, path: Path, wait: bool, warns: bool) -> bool:
    """Whether the lock was free. On a file system without locks it counts as free, with a warning."""
    try:
        if fcntl is None:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        if error.errno not in UNSUPPORTED:
            raise OutputError(f"{path}: cannot be locked ({_files.explain(error)})") from None
        message = f"{path.parent}: this file system keeps no locks; let no two processes write the same there"
        if warns:
            warnings.warn(message, RuntimeWarning, stacklevel=3)
    return True


def _is_there(descriptor: int, path: Path) -> bool:
    """Whether an open file is still the one at its path."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except OSError:
        return False


def _sign(descriptor: int) -> None:
    """Write who holds a lock. On a full disk it is held without this signature."""
    holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
    with contextlib.suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.write(descriptor, json.dumps(holder).encode())
