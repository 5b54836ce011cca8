"""daisy manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from daisy.cli.console import output
from daisy.errors import UsageError


def command(
    inputs: Annotated[list[str], typer.Argument(help="Files, folders, globs.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The .tsv file to write.")],
    root: Annotated[Path, typer.Option(help="Folder that the paths are relative to.")] = Path("."),
) -> None:
    """Write a fairseq manifest (root folder, then path and number of samples)."""
    from daisy import audio, files

    recordings = audio.find(inputs)
    outside = [r.path for r in recordings if not r.path.is_relative_to(root.absolute())]
    if outside:
        raise UsageError(f"{outside[0]}: is not below the root {root.absolute()}; give --root")
    files.write(out, audio.write_manifest(recordings, root).encode())
    output.print(f"{out}: {len(recordings)} recordings", soft_wrap=True)
