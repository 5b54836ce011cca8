"""daisy manifest."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from daisy.cli.console import errors, output, printable
from daisy.errors import AudioError


def command(
    inputs: Annotated[list[str], typer.Argument(help="Files, folders, globs.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The .tsv file to write.")],
    root: Annotated[Path, typer.Option(help="Folder that the paths are relative to.")] = Path("."),
) -> None:
    """Write a fairseq manifest (root folder, then path and number of samples).

    Recordings whose headers show that fairseq could not use them are left out and listed; exit status 1 then.
    """
    from daisy import audio, files

    folder = Path(os.path.abspath(root))
    lines, failed = [str(folder)], list[str]()
    for recording in audio.find(inputs):
        try:
            lines.append(audio.manifest_line(recording, folder))
        except AudioError as error:
            failed.append(str(error))
    files.write(out, ("\n".join(lines) + "\n").encode(errors="surrogateescape"))
    output.print(f"{out}: {len(lines) - 1} recordings", soft_wrap=True)
    for reason in failed:
        errors.print(printable(f"left out: {reason}"), soft_wrap=True)
    if failed:
        raise typer.Exit(1)
