"""daisy demo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from daisy.cli.console import DEFAULT_CHECKPOINT, Checkpoint, output, progress_bar


def command(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write to.")] = Path("demo-out"),
    checkpoint: Checkpoint = DEFAULT_CHECKPOINT,
) -> None:
    """Extract eight bundled clips, clean and with noise: a table and a figure of exit layer against SNR."""
    from daisy.cli import demonstration
    from daisy.evaluation.figures import format_snr

    with progress_bar() as bar:
        task = bar.add_task("extracting", total=None)
        shown = demonstration.run(out, checkpoint, lambda count: bar.advance(task, count))
    columns = [format_snr(snr) for snr in demonstration.SNRS_DB]
    table = Table("clip", *columns, box=None, title=f"exit layer of {shown.num_layers}", show_footer=True)
    table.columns[0].footer = "mean"
    values = list(shown.exit_layers.values())
    for index, column in enumerate(table.columns[1:]):
        column.justify = "right"
        column.footer = f"{sum(row[index] for row in values) / len(values):.1f}"
    for name, layers in shown.exit_layers.items():
        table.add_row(name, *map(str, layers))
    output.print(table)
    mean = sum(map(sum, values)) / sum(map(len, values))
    output.print(f"{shown.policy}, chosen on the clean clips for {demonstration.DEPTH:.0%} depth")
    output.print(
        f"mean exit layer {mean:.2f} of {shown.num_layers}; {shown.audio_sec:.0f} s of audio in {shown.seconds:.1f} s"
    )
    output.print(f"features: {out / 'features'}   figure: {shown.figure}", soft_wrap=True)
