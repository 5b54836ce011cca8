"""daisy replay."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from daisy.cli.options import Depth, Depths, Out, Policies, Report
from daisy.cli.study_output import Comparison


def command(
    table: Annotated[
        Path, typer.Argument(metavar="TRACES.csv", help="A table of full runs; docs/calibrate.md has a sample.")
    ],
    out: Out,
    tune: Annotated[
        Path | None, typer.Option(help="Another table to tune policies on; default: half of the groups.")
    ] = None,
    loss: Annotated[str, typer.Option(help="Loss by which policies are compared; default: the table's first.")] = "",
    policies: Policies = "",
    depth: Depth = 0.6,
    depths: Depths = "",
    report: Report = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the halves.")] = 0,
) -> None:
    """Compare exit policies on a table of full runs of any model.

    The table has one line for each utterance and layer (and condition), with the columns utterance and layer, any
    number of scores (entropy, confidence, margin, change, regressed, ...), and one or more losses (loss, kl_nats,
    errors, ...disagreement); optional columns are group (speaker), condition, words (errors are divided by them),
    weight and cost. Policies are tuned to each depth on one half of the groups and evaluated on the other.
    """
    from daisy.calibration.traces import read_traces

    comparison = Comparison(
        out=out,
        policies=policies,
        depth=depth,
        depths=depths,
        report=report,
        title=f"Early exits replayed from {table.name}",
        loss=loss,
    )
    traces = read_traces(table)
    comparison.check()
    comparison.run(*(traces.halves(seed) if tune is None else (read_traces(tune), traces)))
