"""Refuses to run where another package has the import name too: PyPI's ``daisy``, a scheduler for large volumes.

Two packages of one name are installed into one folder, overwrite each other's files, and break when one is taken away.
"""

import sys
from pathlib import Path

OURS = "daisy: early exit"
"""How the docstring of this package begins."""
PROGRAMS = ("daisy", "daisy-s3prl")


def check(package: str = "daisy", folder: Path = Path(__file__).parents[1]) -> None:
    """Check that the package that was imported is this one, and alone in its folder.

    Args:
        package: name of what was imported.
        folder: that holds it and the records of what is installed beside it.

    Raises:
        ImportError: where it is not; in a program of ours it ends with the same line.
    """
    is_ours = (sys.modules[package].__doc__ or "").startswith(OURS)
    if is_ours and not any(folder.glob("daisy-*-info")):
        return
    line = (
        f"{folder}: the unrelated package 'daisy' is installed too and has the same import name: pip uninstall daisy, "
        "then pip install --force-reinstall --no-deps daisy-speech as before"
    )
    if Path(*sys.argv[:1]).name in PROGRAMS:
        sys.exit(line)
    raise ImportError(line)


check()
