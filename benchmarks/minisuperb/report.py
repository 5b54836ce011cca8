"""The table of all finished runs, as CSV, Markdown and HTML."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy
import pandas

from benchmarks.minisuperb.ranking import FULL, score_upstreams
from benchmarks.shared.rendering import render_table
from benchmarks.shared.results import Row
from benchmarks.shared.script import script_command
from daisy import _files
from daisy.evaluation.html import Page, Section, write_page

KEYS = ("task", "upstream", "featurizer")
NOTE = (
    "Means over seeds ± standard deviation; in brackets, how much above the static cut (fixed layers and the full "
    "model, linear between them) at the same depth in the same condition. Exit layers and multiply-accumulates are "
    "means over utterances of the test sets."
)
SCORE_NOTE = (
    "Per task the mean over metrics of (s - s_fbank) / (s_best - s_fbank), then the mean over tasks, times 1000: our "
    "reading, from memory, of MiniSUPERB's score. Reference figures: fbank (0) and the full model, never (1000), of "
    "this table in the same condition; not the paper's, so the numbers do not compare with it. Left out is a metric in "
    "which the full model is less than 2 % better than fbank, and enhancement where the input has no noise. Counted: "
)


def average_seeds(rows: list[Row]) -> pandas.DataFrame:
    """Average over seeds: a row for each task, upstream, featurizer, condition and metric."""
    grouped = pandas.DataFrame(rows).groupby([*KEYS, "condition", "metric"], sort=False, dropna=False)
    table = grouped.agg(
        value=("value", "mean"),
        deviation=("value", "std"),
        seeds=("seed", "nunique"),
        depth=("depth", "mean"),
        mean_exit_layer=("mean_exit_layer", "mean"),
        macs_share=("macs_share", "mean"),
        upstream_real_time_factor=("upstream_real_time_factor", "mean"),
        train_sec=("train_sec", "mean"),
    )
    return table.reset_index()


def interpolate_static_cut(points: Iterable[tuple[float, float]], depth: float) -> float | None:
    """Interpolate the static cut's value at a depth, linearly between fixed layers; None outside those that were run.

    Args:
        points: (depth, value) of each fixed layer.
        depth: depth from 0 to 1.
    """
    ordered = sorted(set(points))
    if len(ordered) < 2 or not ordered[0][0] - 1e-6 <= depth <= ordered[-1][0] + 1e-6:
        return None
    return float(numpy.interp(depth, [x for x, _ in ordered], [y for _, y in ordered]))


def is_static(upstream: str) -> bool:
    """Tell whether an upstream stops at a fixed layer, in training as well as in the test."""
    return "@" not in upstream and upstream.startswith(("fixed-", FULL))


def add_static_cut(table: pandas.DataFrame) -> pandas.DataFrame:
    """Add to each row the static cut's value at the same depth in the same condition."""
    static = table[table.upstream.map(is_static)]
    keys = ["task", "featurizer", "condition", "metric"]
    points = {key: list(zip(part.depth, part.value, strict=True)) for key, part in static.groupby(keys)}
    values = []
    for line in table.itertuples():
        of_line = points.get((line.task, line.featurizer, line.condition, line.metric), [])
        values.append(None if pandas.isna(line.depth) else interpolate_static_cut(of_line, line.depth))
    return table.assign(static_cut=values)


def make_task_section(table: pandas.DataFrame, task: str) -> Section:
    """Make the section of one task: value and exit layer in each condition."""
    of_task = table[table.task == task]
    conditions = list(dict.fromkeys(of_task.condition))
    metrics = list(dict.fromkeys(of_task.metric))
    header = ["upstream", "featurizer", "seeds"]
    header += [f"{metric}, {condition}" for metric in metrics for condition in conditions]
    header += [f"exit layer, {condition}" for condition in conditions]
    header += ["MACs", "upstream s/s", "training s"]
    rows = []
    for (upstream, featurizer), part in of_task.groupby(["upstream", "featurizer"], sort=False):
        lines = {(line.metric, line.condition): line for line in part.itertuples()}
        values = [_format_value(lines.get((metric, name))) for metric in metrics for name in conditions]
        layers = [_format_layer(lines.get((metrics[0], name))) for name in conditions]
        costs = [
            _format(part.macs_share.mean(), "{:.0%}"),
            _format(part.upstream_real_time_factor.mean(), "{:.3f}"),
            _format(part.train_sec.mean(), "{:.0f}"),
        ]
        rows.append((upstream, featurizer, str(part.seeds.max()), *values, *layers, *costs))
    return Section(title=task, header=tuple(header), rows=tuple(rows))


def _format_value(line: Any) -> str:
    if line is None or pandas.isna(line.value):
        return ""
    spread = "" if pandas.isna(line.deviation) else f" ±{line.deviation:.3f}"
    if is_static(line.upstream) or pandas.isna(line.static_cut):
        return f"{line.value:.3f}{spread}"
    return f"{line.value:.3f}{spread} ({line.value - line.static_cut:+.3f})"


def _format_layer(line: Any) -> str:
    return "" if line is None else _format(line.mean_exit_layer, "{:.1f}")


def _format(value: float | None, form: str) -> str:
    return "" if value is None or pandas.isna(value) else form.format(value)


def make_score_section(scores: list[Row]) -> Section:
    """Make the section of MiniSUPERB's score, by upstream and condition."""
    conditions = list(dict.fromkeys(row["condition"] for row in scores))
    by_upstream: dict[tuple[str, str], dict[str, float]] = {}
    for row in scores:
        by_upstream.setdefault((row["upstream"], row["featurizer"]), {})[row["condition"]] = row["score"]
    rows = [
        (*names, *(_format(values.get(condition), "{:.0f}") for condition in conditions))
        for names, values in by_upstream.items()
    ]
    counted = {row["condition"]: row["of"] for row in scores if row["upstream"] == FULL}
    header = ("upstream", "featurizer", *conditions)
    text = SCORE_NOTE + "; ".join(f"{condition}: {metrics}" for condition, metrics in counted.items()) + "."
    return Section(title="MiniSUPERB score", text=text, header=header, rows=tuple(rows))


def make_sections(rows: list[Row]) -> list[Section]:
    """Make all sections from the rows of finished runs."""
    table = add_static_cut(average_seeds(rows))
    scores = score_upstreams(table)
    sections = [make_score_section(scores)] if scores else []
    return sections + [make_task_section(table, task) for task in dict.fromkeys(table.task)]


def render_markdown(rows: list[Row]) -> str:
    """Render the table as Markdown."""
    parts = [NOTE]
    for section in make_sections(rows):
        parts.append(f"## {section.title}")
        parts += [section.text] if section.text else []
        parts.append(render_table(section.header, section.rows).rstrip("\n"))
    return "\n\n".join(parts) + "\n"


def write_report(rows: list[Row], folder: Path) -> list[Path]:
    """Write table.csv (flat rows), table.md and table.html.

    Raises:
        OutputError: if they cannot be written.
        UsageError: if jinja2 is missing.
    """
    paths = [folder / f"table.{kind}" for kind in ("csv", "md", "html")]
    _files.write(paths[0], pandas.DataFrame(rows).to_csv(index=False, lineterminator="\n").encode())
    _files.write(paths[1], render_markdown(rows).encode())
    command = shlex.join([*script_command(), *sys.argv[1:]])
    sections = make_sections(rows)
    page = Page(title="MiniSUPERB on early exits", summary=NOTE, command=command, sections=sections)
    write_page(page, paths[2])
    return paths
