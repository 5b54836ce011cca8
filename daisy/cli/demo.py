"""daisy demo."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from daisy.cli.console import say, say_table
from daisy.cli.options import DEFAULT_CHECKPOINT, SNRS_DB, Checkpoint
from daisy.cli.progress import track

if TYPE_CHECKING:
    from daisy.cli.demonstration import Demonstration


def command(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write to.")] = Path("demo-out"),
    checkpoint: Checkpoint = DEFAULT_CHECKPOINT,
) -> None:
    """Extract eight bundled clips, clean and with noise.

    Prints a table of exit layers, and draws exit layer against noise.
    """
    from daisy.cli import demonstration

    with track("setting the policy, extracting", 2 * len(demonstration.list_clips()) * len(SNRS_DB)) as advance:
        result = demonstration.run(out, checkpoint, advance)
    _say_exit_layers(result)
    layers = [layer for by_condition in result.exit_layers.values() for layer in by_condition]
    mean = sum(layers) / len(layers)
    say(f"policy {result.policy.name}, set on these clips for {demonstration.DEPTH:.0%} of the layers")
    say(
        f"mean exit layer {mean:.2f} of {result.num_layers} ({mean / result.num_layers:.0%}); "
        f"{result.audio_sec:.0f} s of audio in {result.seconds:.1f} s"
    )
    say(f"features: {out / 'features'}   figure: {result.figure}")


def _say_exit_layers(result: Demonstration) -> None:
    """Print the exit layer of each clip in each condition, and the conditions' means."""
    from rich.table import Table

    from daisy.evaluation.figures import format_snr

    conditions = [format_snr(snr_db) for snr_db in SNRS_DB]
    table = Table("clip", *conditions, box=None, title=f"exit layer of {result.num_layers}", show_footer=True)
    table.columns[0].footer = "mean"
    for index, column in enumerate(table.columns[1:]):
        layers = [by_condition[index] for by_condition in result.exit_layers.values()]
        column.justify = "right"
        column.footer = f"{sum(layers) / len(layers):.1f}"
    for name, by_condition in result.exit_layers.items():
        table.add_row(name, *map(str, by_condition))
    say_table(table)
