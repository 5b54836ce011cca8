"""Keeps a worker whose driver was killed from writing into what another run has begun meanwhile."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from daisy.errors import OutputError
from daisy.extraction.run_journals import LOCK_SUFFIX


@dataclass(frozen=True)
class Fence:
    """The signature of the driver in the lock of the run's journal: whoever takes the lock next signs it anew.

    Feature files of a recording are the same whoever writes them. Shard files of one name are not, as each run groups
    what is unfinished.

    Args:
        lock: the lock's file.
        signature: what it says while the driver holds it.
    """

    lock: Path
    signature: bytes

    @classmethod
    def read(cls, journal: Path) -> Fence:
        """Read the signature in a journal's lock, which this process holds."""
        lock = journal.with_name(journal.name + LOCK_SUFFIX)
        return cls(lock, _read(lock))

    def check(self) -> None:
        """Refuse to go on where another run has begun.

        A lock that another machine's signature has not come to yet, as network file systems have it, says nothing.

        Raises:
            OutputError: where it has.
        """
        if _read(self.lock) not in (b"", self.signature):
            raise OutputError(f"{self.lock.parent}: another run has begun there, and this worker's is over")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
