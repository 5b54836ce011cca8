"""daisy index."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from daisy.cli.console import say


def command(
    folder: Annotated[Path, typer.Argument(help="The folder of daisy extract --out, of transcribe or of units.")],
) -> None:
    """Write an extraction's index anew, from its journals.

    Each run does so when it ends. index.json and index.csv then hold what all shards have finished so far, even while
    some are still running; likewise transcripts.json and transcripts.csv, without the error rates, and the files of
    units, in the forms that were last requested. For a run whose --out is a URL, give the folder of --journal: the
    index goes to both.
    """
    from daisy.extraction import rebuild_index
    from daisy.extraction.run_journals import holds_kind
    from daisy.recognition import transcript_rows
    from daisy.recognition.transcriber import rebuild_transcripts
    from daisy.units import rows
    from daisy.units.files import SUMMARY, rebuild_units

    if holds_kind(folder, transcript_rows.KIND):
        transcripts = rebuild_transcripts(folder)
        failed = f", {len(transcripts.failed)} failed" if transcripts.failed else ""
        say(f"{folder / 'transcripts.json'} and transcripts.csv: {len(transcripts.rows)} recordings{failed}")
        return
    of_units = holds_kind(folder, rows.KIND)
    report = rebuild_units(folder) if of_units else rebuild_index(folder)
    failed = f", {len(report.failed)} failed" if report.failed else ""
    files = f"{folder / SUMMARY} and units" if of_units else f"{folder / 'index.json'} and index.csv"
    say(f"{files}: {len(report.rows)} recordings{failed}")
