"""daisy index."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from daisy.cli.console import say


def command(
    folder: Annotated[Path, typer.Argument(help="The folder of daisy extract --out, or of daisy transcribe --out.")],
) -> None:
    """Write an extraction's index anew, from its journals.

    Each run does so when it ends. index.json and index.csv then hold what all shards have finished so far, also while
    some are still running; so do transcripts.json and transcripts.csv, without the error rates.
    """
    from daisy.extraction import rebuild_index
    from daisy.recognition.transcriber import holds_transcripts, rebuild_transcripts

    if holds_transcripts(folder):
        transcripts = rebuild_transcripts(folder)
        failed = f", {len(transcripts.failed)} failed" if transcripts.failed else ""
        say(f"{folder / 'transcripts.json'} and transcripts.csv: {len(transcripts.rows)} recordings{failed}")
        return
    report = rebuild_index(folder)
    failed = f", {len(report.failed)} failed" if report.failed else ""
    say(f"{folder / 'index.json'} and index.csv: {len(report.rows)} recordings{failed}")
