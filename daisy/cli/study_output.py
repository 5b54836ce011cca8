"""Common parts of noise-curve and replay: compare policies on full runs, write and print the results."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from daisy.cli.console import format_command_line, say, say_table
from daisy.cli.options import parse_names, parse_numbers
from daisy.errors import UsageError

if TYPE_CHECKING:
    from daisy.calibration.traces import Traces
    from daisy.evaluation.study import Study


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The policies and depths to compare, and the output files.

    Args:
        out: folder for study.csv and study.json.
        policies: names separated by commas; empty: all that the scores allow.
        depth: mean executed share of the layers for the table by condition.
        depths: depths at which to compare, separated by commas; empty: 0.3 to 0.9.
        report: HTML page to write; None: no page.
        title: title of the page.
        loss: loss by which policies are compared; empty: the first in the table.
        kinds: kinds of noise, for the page.
        snrs_db: signal-to-noise ratios, for the page.
    """

    out: Path
    policies: str
    depth: float
    depths: str
    report: Path | None
    title: str
    loss: str = ""
    kinds: Sequence[str] = ()
    snrs_db: Sequence[float | None] = ()

    def check(self) -> None:
        """Check before the long runs that the comparison is possible and its files can be written.

        Raises:
            UsageError: if packages for a page are missing, or a value is not a number.
            PolicyError: if a depth is invalid.
            OutputError: if the tables or the page cannot be written.
        """
        from daisy import _files
        from daisy.calibration.depth import check_depth
        from daisy.evaluation.html import check_report_packages

        for target in (self.depth, *self.list_depths()):
            check_depth(target)
        _files.check_writable(self.out / "study.csv")
        if self.report is not None:
            check_report_packages()
            _files.check_writable(self.report)

    def list_depths(self) -> tuple[float, ...]:
        """Return the depths to compare policies at.

        Raises:
            UsageError: if a value is not a number.
        """
        from daisy.evaluation.study import DEPTHS

        return tuple(parse_numbers(self.depths, "--depths")) or DEPTHS

    def run(self, tune: Traces, test: Traces) -> None:
        """Tune policies on some full runs and compare them on others; write study.csv, study.json and the page.

        Raises:
            UsageError: if either table is empty, or they do not fit together.
            PolicyError: if the tables do not allow a policy.
            OutputError: if a file cannot be written.
        """
        from daisy.evaluation.study import compare_policies

        if not len(tune) or not len(test):
            raise UsageError(
                "policies are tuned on half of the groups: give two at least, or other traces to --tune on"
            )
        study = compare_policies(
            tune,
            test,
            names=parse_names(self.policies),
            depth=self.depth,
            depths=self.list_depths(),
            loss=self.loss,
        )
        _write_tables(study, self.out)
        if self.report is not None:
            _write_page(study, self, self.report)
        _say_study(study)
        say(f"{self.out / 'study.csv'}: all depths; {study.num_judged} runs judged, {study.num_tuned} tuned on")
        if self.report is not None:
            say(f"{self.report}: the page")


def _write_tables(study: Study, out: Path) -> None:
    """Write study.csv, and study.json with the policies' settings."""
    from daisy import _files
    from daisy.evaluation.study import to_rows

    rows = to_rows(study)
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    _files.write(out / "study.csv", text.getvalue().encode(errors="surrogateescape"))
    configs = {name: policy.to_config() for name, policy in study.policies.items()}
    content = {"format_version": 1, "command": format_command_line(), "rows": rows, "policies": configs}
    _files.write_json(out / "study.json", content)


def _write_page(study: Study, comparison: Comparison, path: Path) -> None:
    from daisy.evaluation.html import Page, write_page
    from daisy.evaluation.page import make_sections

    page = Page(
        title=comparison.title,
        summary=f"Policies tuned on {study.num_tuned} runs, judged on {study.num_judged} of other speakers.",
        command=format_command_line(),
        footnote="Intervals are 95 %, from resampling speakers.",
        sections=make_sections(study, comparison.kinds, comparison.snrs_db),
    )
    write_page(page, path)


def _say_study(study: Study) -> None:
    """Print the comparison in short form."""
    from rich.table import Table

    from daisy.evaluation.page import summarize

    header, *rows = summarize(study)
    table = Table(*header, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    say_table(table)
