"""daisy index."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from daisy.cli.console import say


def command(folder: Annotated[Path, typer.Argument(help="The folder of an extraction.")]) -> None:
    """Write an extraction's index anew, from its journals.

    Each run of daisy extract does so when it ends. index.json and index.csv then hold what all shards have finished so
    far, also while some are still running.
    """
    from daisy.extraction import rebuild_index

    report = rebuild_index(folder)
    failed = f", {len(report.failed)} failed" if report.failed else ""
    say(f"{folder / 'index.json'} and index.csv: {len(report.rows)} recordings{failed}")
