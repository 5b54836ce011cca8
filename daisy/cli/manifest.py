"""daisy manifest."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from daisy.cli.console import explain, say, warn, warn_of_rest
from daisy.errors import AudioError, UsageError


def command(
    inputs: Annotated[list[str], typer.Argument(help="Recordings: files, folders or globs.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The .tsv file to write.")],
    root: Annotated[Path, typer.Option(help="Folder that the paths in the manifest are relative to.")] = Path("."),
    sample_rate: Annotated[int, typer.Option(min=1, help="Hz of the model that is trained: task.sample_rate.")] = 16000,
    speakers: Annotated[
        Path | None, typer.Option(help="CSV file of path (below the root) and speaker, for --balance.")
    ] = None,
    balance: Annotated[
        float,
        typer.Option(min=0.0, max=1.0, help="How much more often recordings of rare speakers are listed, 0 to 1."),
    ] = 0.0,
    text: Annotated[
        Path | None,
        typer.Option(help="CSV file of path (below the root) and text: writes transcripts and their dictionary too."),
    ] = None,
    sentencepiece: Annotated[
        Path | None, typer.Option(help="With --text: a SentencePiece model whose pieces are the tokens, not letters.")
    ] = None,
    labels: Annotated[
        str, typer.Option(help="With --text: ending of the transcripts, task.labels; else ltr, or spm of pieces.")
    ] = "",
) -> None:
    """Write a fairseq manifest of recordings.

    Its lines are the root folder, then each recording's path and number of samples. Recordings whose headers or names
    show that fairseq could not use them are left out and listed; exit status 1 then, or 2 where none is left.
    """
    from daisy import _files, audio

    if (speakers is not None) != (balance > 0):
        raise UsageError("--balance and --speakers go together")
    if text is None and (sentencepiece or labels):
        raise UsageError("--sentencepiece and --labels are of transcripts: give --text too")
    folder = Path(os.path.abspath(root))
    first_line = audio.format_manifest_root(folder)
    lines: list[str] = []
    failed: list[AudioError] = []
    findings = audio.search(inputs)
    for recording in findings.recordings:
        try:
            lines.append(audio.format_manifest_line(recording, folder, sample_rate))
        except AudioError as error:
            failed.append(error)
    if speakers is not None:
        lines = _balance_speakers(lines, audio.read_speakers(speakers), balance)
    if lines and text is not None:
        texts = _find_texts(lines, audio.read_texts(text))
        dictionary = audio.write_transcripts(out, texts, labels or ("spm" if sentencepiece else "ltr"), sentencepiece)
        say(f"{dictionary}: tokens of the transcripts beside {out.name}")
    if lines:
        _files.write(out, ("\n".join([first_line, *lines]) + "\n").encode())
        say(f"{out}: {len(lines)} recordings")
    else:
        warn(f"{out}: not written: no recording is left")
    warn_of_rest(findings)
    for reason in failed:
        warn(f"left out: {explain(reason)}")
    if failed:
        raise typer.Exit(1 if lines else 2)


def _find_texts(lines: list[str], texts: dict[str, str]) -> list[str]:
    """Look up the text of each line of a manifest."""
    paths = [str(Path(line.rsplit("\t", 1)[0])) for line in lines]
    known = {str(Path(path)): text for path, text in texts.items()}
    unknown = [path for path in paths if path not in known]
    if unknown:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise UsageError(f"no text is given for {unknown[0]}{more}")
    return [known[path] for path in paths]


def _balance_speakers(lines: list[str], speakers: dict[str, str], power: float) -> list[str]:
    """Repeat the lines of speakers who have less audio than others; the power 1 makes all equal."""
    from daisy import audio

    fields = [line.rsplit("\t", 1) for line in lines]
    paths, counts = [str(Path(path)) for path, _ in fields], [int(count) for _, count in fields]
    unknown = [path for path in paths if path not in speakers]
    if unknown:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise UsageError(f"no speaker is given for {unknown[0]}{more}")
    repeats = audio.count_repeats(counts, [speakers[path] for path in paths], power)
    return [line for line, times in zip(lines, repeats, strict=True) for _ in range(times)]
