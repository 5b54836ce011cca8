"""Mend the last checkpoint of a training that was stopped while fairseq wrote it.

    python -m fairseq_plugins.last_checkpoint run/checkpoints

fairseq first writes a checkpoint whole, and then copies it over ``checkpoint_last.pt``. A stop between the two leaves a
file that cannot be read, and the training does not resume.
"""

import sys
import zipfile
from pathlib import Path

from daisy import _files


def mend(folder: Path) -> None:
    """Replace a cut ``checkpoint_last.pt`` by the newest whole checkpoint beside it; without one, remove it."""
    last = folder / "checkpoint_last.pt"
    if not last.is_file() or zipfile.is_zipfile(last):
        return
    whole = [path for path in folder.glob("checkpoint*.pt") if zipfile.is_zipfile(path)]
    if whole:
        newest = max(whole, key=lambda path: path.stat().st_mtime_ns)
        _files.write(last, newest.read_bytes())
    else:
        last.unlink()


if __name__ == "__main__":
    mend(Path(sys.argv[1]))
