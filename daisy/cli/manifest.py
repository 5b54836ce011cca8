"""daisy manifest."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from daisy.cli.console import errors, output, printable
from daisy.errors import AudioError, UsageError


def command(
    inputs: Annotated[list[str], typer.Argument(help="Files, folders, globs.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The .tsv file to write.")],
    root: Annotated[Path, typer.Option(help="Folder that the paths are relative to.")] = Path("."),
    speakers: Annotated[
        Path | None, typer.Option(help="CSV file of path (below the root) and speaker, for --balance.")
    ] = None,
    balance: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="List recordings of rare speakers more often: 0 not, 1 all equal.")
    ] = 0.0,
) -> None:
    """Write a fairseq manifest (root folder, then path and number of samples).

    Recordings whose headers show that fairseq could not use them are left out and listed; exit status 1 then.
    """
    from daisy import _files, audio

    if (speakers is not None) != (balance > 0):
        raise UsageError("--balance and --speakers go together")
    folder = Path(os.path.abspath(root))
    lines, failed = [str(folder)], list[str]()
    for recording in audio.find(inputs):
        try:
            lines.append(audio.format_manifest_line(recording, folder))
        except AudioError as error:
            failed.append(str(error))
    if speakers is not None:
        lines[1:] = _balanced(lines[1:], audio.read_speakers(speakers), balance)
    _files.write(out, ("\n".join(lines) + "\n").encode(errors="surrogateescape"))
    output.print(f"{out}: {len(lines) - 1} recordings", soft_wrap=True)
    for reason in failed:
        errors.print(printable(f"left out: {reason}"), soft_wrap=True)
    if failed:
        raise typer.Exit(1)


def _balanced(lines: list[str], speakers: dict[str, str], power: float) -> list[str]:
    from daisy import audio

    paths = [line.rpartition("\t")[0] for line in lines]
    counts = [line.rpartition("\t")[2] for line in lines]
    unknown = [path for path in paths if path not in speakers]
    if unknown:
        raise UsageError(
            f"no speaker is given for {unknown[0]}" + (f" and {len(unknown) - 1} more" * (len(unknown) > 1))
        )
    times = audio.count_repeats([int(count) for count in counts], [speakers[path] for path in paths], power)
    return [line for line, count in zip(lines, times, strict=True) for _ in range(count)]
