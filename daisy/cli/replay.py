"""daisy replay."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from daisy.cli.console import Out, command_line, output
from daisy.errors import UsageError

if TYPE_CHECKING:
    from daisy.calibration.traces import Traces

Policies = Annotated[str, typer.Option(help="Which to compare: entropy,forecast,fixed; all that the columns allow.")]
Depth = Annotated[float, typer.Option(help="Mean executed share that the table by condition is for.")]
Depths = Annotated[str, typer.Option(help="Mean executed shares to compare policies at.")]
Report = Annotated[Path | None, typer.Option(help="Write one self-contained HTML page here.")]


def command(
    table: Annotated[
        Path,
        typer.Argument(metavar="TRACES.csv", help="docs/policies.md has a sample."),
    ],
    out: Out,
    tune: Annotated[Path | None, typer.Option(help="What policies are tuned on; else half of the groups.")] = None,
    loss: Annotated[str, typer.Option(help="What policies are compared by; the first loss where not given.")] = "",
    policies: Policies = "",
    depth: Depth = 0.6,
    depths: Depths = "0.3,0.4,0.5,0.6,0.7,0.8,0.9",
    report: Report = None,
    seed: Annotated[int, typer.Option(help="Of the halves.")] = 0,
) -> None:
    """Compare exit policies on full runs of any model, from a table of their scores and losses.

    One line for each utterance and layer (and condition), with the columns utterance and layer, any number of scores
    (entropy, confidence, margin, change, regressed, ...) and at least one loss (loss, errors, ...disagreement,
    kl_nats); optional are group (speaker), condition, words (errors are divided by them), weight and cost. Policies are
    tuned to each depth on one half of the groups and judged on the other.
    """
    from daisy.calibration import traces

    found = traces.read_traces(table)
    halves = found.halves(seed) if tune is None else (traces.read_traces(tune), found)
    present(
        *halves,
        out=out,
        policies=policies,
        depth=depth,
        depths=depths,
        loss=loss,
        report=report,
        title=f"Early exits replayed from {table.name}",
        kinds=(),
        snrs_db=(),
        command=command_line(),
    )


def numbers_of(text: str, option: str) -> list[float]:
    """Numbers of an option's list: "0.3,0.6".

    Raises:
        UsageError: on what is no number.
    """
    try:
        return [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise UsageError(f"{option} takes numbers with commas between them, found {text!r}") from None


def names_of(text: str) -> list[str]:
    """Names of a list: "entropy, fixed"."""
    return [name.strip() for name in text.split(",") if name.strip()]


def present(
    tune: Traces,
    test: Traces,
    *,
    out: Path,
    policies: str,
    depth: float,
    depths: str,
    loss: str,
    report: Path | None,
    title: str,
    kinds: Sequence[str],
    snrs_db: Sequence[float | None],
    command: str,
) -> None:
    """Compare, write study.csv and study.json, and the page where asked; print the comparison."""
    from daisy import _files
    from daisy.evaluation import page, study
    from daisy.evaluation.figures import Page, write_page

    if not len(tune) or not len(test):
        raise UsageError("policies are tuned on half of the groups: give two at least, or other traces to --tune on")
    names = names_of(policies)
    found = study.compare_policies(tune, test, names=names, depth=depth, depths=numbers_of(depths, "--depths"), loss=loss)
    rows = study.to_rows(found)
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    _files.write(out / "study.csv", text.getvalue().encode())
    configs = {name: policy.to_config() for name, policy in found.policies.items()}
    _files.write_json(out / "study.json", {"format_version": 1, "command": command, "rows": rows, "policies": configs})
    if report is not None:
        content = Page(
            title=title,
            summary=f"Policies tuned on {found.num_tuned} runs, judged on {found.num_judged} of other groups.",
            command=command,
            footnote="Intervals are 95 %, from resampling groups.",
            sections=page.make_sections(found, kinds, snrs_db),
        )
        write_page(content, report)
    numbers = page.summarize(found)
    shown = Table(*numbers[0], box=None, pad_edge=False)
    for row in numbers[1:]:
        shown.add_row(*row)
    output.print(shown)
    output.print(f"{out / 'study.csv'}: {found.num_judged} runs judged, {found.num_tuned} tuned on", soft_wrap=True)
    if report is not None:
        output.print(f"{report}: the page", soft_wrap=True)
