"""Refuse to run where PyPI's ``daisy``, a scheduler for large volumes with the same import name, is installed too.

Two packages of one name share a folder, overwrite each other's files, and break when one is uninstalled.
"""

import sys
from pathlib import Path

OURS = "daisy: early exit"
"""How the docstring of this package begins."""
PROGRAMS = ("daisy", "daisy-s3prl")


def check(package: str = "daisy", folder: Path = Path(__file__).parents[1]) -> None:
    """Check that the imported package is this one, and alone in its folder.

    Args:
        package: name of the imported package.
        folder: folder that holds the package and the metadata of the packages installed beside it.

    Raises:
        ImportError: where it is not; programs of this package exit with the same line instead.
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
