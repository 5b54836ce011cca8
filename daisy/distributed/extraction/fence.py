"""Keep a worker whose driver was killed from writing into the folder of a run that has begun since."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from daisy.errors import OutputError
from daisy.extraction.run_journals import LOCK_SUFFIX


@dataclass(frozen=True)
class Fence:
    """The driver's signature in the lock of the run's journal; the next holder of the lock replaces the signature.

    The feature files of a recording are the same whichever run writes them. Shard files of the same name are not,
    because each run groups the unfinished recordings anew.

    Args:
        lock: path of the lock file.
        signature: content of the lock file while the driver holds the lock.
    """

    lock: Path
    signature: bytes

    @classmethod
    def read(cls, journal: Path) -> Fence:
        """Read the signature in a journal's lock, which this process holds."""
        lock = journal.with_name(journal.name + LOCK_SUFFIX)
        return cls(lock, _read(lock))

    def check(self) -> None:
        """Raise an error if another run has begun.

        An empty or unreadable lock file proves nothing: on network file systems another machine's signature may arrive
        late.

        Raises:
            OutputError: if another run has begun.
        """
        if _read(self.lock) not in (b"", self.signature):
            raise OutputError(f"{self.lock.parent}: another run has begun there, and this worker's is over")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
