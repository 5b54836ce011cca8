"""The table of all finished runs: flat rows, and CSV, Markdown and HTML for people."""

from __future__ import annotations

import json
import math
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy
import pandas
import score
from tasks import TASKS, UNSCORED

from daisy import _files
from daisy.errors import OutputError
from daisy.evaluation import figures

FLOOR, FULL = "fbank", "never"
KEYS = ("task", "upstream", "featurizer")
SHOWN = {"test": "test", "clean": "clean", "20": "20 dB", "10": "10 dB", "0": "0 dB"}


def rows(
    folder: Path, real_time_factors: Mapping[str, float], belongs: Callable[[dict], bool] = lambda spec: True
) -> list[dict]:
    """One row for each metric, test set and seed of every finished run below a folder that belongs into the table.

    Args:
        folder: of the runs.
        real_time_factors: of `timing.read`.
        belongs: asked with a run's run.json.

    Raises:
        OutputError: where a run's files cannot be read.
    """
    found = []
    for path in sorted(folder.glob("*/*/*/*/result.json")):
        try:
            spec = json.loads((path.parent / "run.json").read_text(encoding="utf-8"))
            if not belongs(spec):
                continue
            result = json.loads(path.read_text(encoding="utf-8"))
            for test in result["tests"]:
                key = f"{spec['task']} {spec['name']} {test['condition']}"
                factor = {"upstream_real_time_factor": real_time_factors.get(key)}
                found += [_row(spec, result, test, *named) | factor for named in test["metrics"].items()]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise OutputError(f"{path}: not a finished run ({error!r}); remove its folder") from None
    return found


def _row(spec: dict, result: dict, test: dict, metric: str, value: float) -> dict:
    exits = test["exits"] or {}
    full = {"depth": 1.0, "macs_share": 1.0} if spec["name"] == "hubert" else {}
    return {
        "task": spec["task"],
        "upstream": spec["name"],
        "policy": spec["policy"],
        "featurizer": spec["featurizer"],
        "target_depth": spec["target_depth"],
        "depth": exits.get("depth", full.get("depth")),
        "mean_exit_layer": exits.get("mean_exit_layer"),
        "macs_share": exits.get("macs_share", full.get("macs_share")),
        "condition": SHOWN[test["condition"]],
        "metric": metric,
        "value": value if math.isfinite(value) else None,
        "seed": spec["seed"],
        "num_utterances": exits.get("utterances"),
        "steps": spec["config"]["runner"]["total_steps"],
        "scored": test["checkpoint"],
        "model": spec["checkpoint"] and spec["checkpoint"][:12],
        "train_sec": result["train_sec"],
        "evaluate_sec": test["evaluate_sec"],
    }


def means(found: list[dict]) -> pandas.DataFrame:
    """Mean and standard deviation over seeds, a line for each task, upstream, featurizer, condition and metric."""
    frame = pandas.DataFrame(found)
    grouped = frame.groupby([*KEYS, "condition", "metric"], sort=False, dropna=False)
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


def static_cut(points: Iterable[tuple[float, float]], depth: float) -> float | None:
    """What the static cut reaches at a depth: linear between the fixed layers that were run; None beyond them.

    Args:
        points: (depth, value) of each.
        depth: 0 to 1.
    """
    ordered = sorted(set(points))
    if len(ordered) < 2 or not ordered[0][0] - 1e-6 <= depth <= ordered[-1][0] + 1e-6:
        return None
    return float(numpy.interp(depth, [x for x, _ in ordered], [y for _, y in ordered]))


def _is_static(upstream: str) -> bool:
    return "@" not in upstream and upstream.startswith(("fixed-", FULL))


def with_static_cut(table: pandas.DataFrame) -> pandas.DataFrame:
    """Beside each line, the static cut at the same depth in the same condition."""
    static = table[table.upstream.map(_is_static)]
    keys = ["task", "featurizer", "condition", "metric"]
    points = {key: list(zip(part.depth, part.value, strict=True)) for key, part in static.groupby(keys)}
    values = []
    for line in table.itertuples():
        known = points.get((line.task, line.featurizer, line.condition, line.metric), [])
        values.append(None if pandas.isna(line.depth) else static_cut(known, line.depth))
    return table.assign(static_cut=values)


def scores(table: pandas.DataFrame) -> list[dict]:
    """MiniSUPERB's score of each upstream and condition, where it has all tasks that the full model has.

    Reference figures: fbank (0) and the full model (1000) of the same table, task and condition. A metric in which the
    full model is not clearly ahead of fbank is left out (`score.leads`).
    """
    found = []
    for condition, part in table.groupby("condition", sort=False):
        known: dict[tuple[str, str], dict[str, dict[str, float]]] = {}
        for line in part.itertuples():
            if _counts(line.task, line.metric, _plain(condition)) and not pandas.isna(line.value):
                of_task = known.setdefault((line.upstream, line.featurizer), {}).setdefault(line.task, {})
                of_task[line.metric] = line.value
        floor = next((value for (name, _), value in known.items() if name == FLOOR), {})
        for (upstream, featurizer), values in known.items():
            best = known.get((FULL, featurizer)) or next((v for (n, _), v in known.items() if n == FULL), {})
            shared = _comparable(values, floor, best)
            if not shared or shared.keys() != _comparable(best, floor, best).keys():
                continue
            said = ", ".join(f"{task} {' and '.join(metrics)}" for task, metrics in shared.items())
            value = score.score(shared, floor, best)
            found.append(
                {"upstream": upstream, "featurizer": featurizer, "condition": condition, "score": value, "of": said}
            )
    return found


def _counts(task: str, name: str, condition: str) -> bool:
    metric = next((each for each in TASKS[task].metrics if each.name == name), None)
    if metric is None or not TASKS[task].in_score or (task, condition) in UNSCORED:
        return False
    return metric.published if condition == "test" else metric.at_hand


def _comparable(values: score.Scores, floor: score.Scores, best: score.Scores) -> dict[str, dict[str, float]]:
    """Metrics that have reference figures apart from each other; tasks that have any."""
    found = {}
    for task in values:
        for metric in TASKS[task].metrics:
            name = metric.name
            if all(name in of.get(task, {}) for of in (values, floor, best)) and score.leads(
                floor[task][name], best[task][name], metric.higher_is_better
            ):
                found.setdefault(task, {})[name] = values[task][name]
    return found


def _plain(condition: str) -> str:
    return next(name for name, shown in SHOWN.items() if shown == condition)


def lines(table: pandas.DataFrame, task: str) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header and cells of one task: value, and exit layer, in each condition."""
    part = table[table.task == task]
    found_conditions = list(dict.fromkeys(part.condition))
    found_metrics = list(dict.fromkeys(part.metric))
    header = ["upstream", "featurizer", "seeds"]
    header += [f"{metric}, {condition}" for metric in found_metrics for condition in found_conditions]
    header += [f"exit layer, {condition}" for condition in found_conditions]
    header += ["MACs", "upstream s/s", "training s"]
    cells = []
    for (upstream, featurizer), mine in part.groupby(["upstream", "featurizer"], sort=False):
        at = {(line.metric, line.condition): line for line in mine.itertuples()}
        values = [_value(at.get((m, c))) for m in found_metrics for c in found_conditions]
        layers = [_number(at.get((found_metrics[0], c)), "mean_exit_layer", "{:.1f}") for c in found_conditions]
        share, factor = mine.macs_share.mean(), mine.upstream_real_time_factor.mean()
        ending = [_or_blank(share, "{:.0%}"), _or_blank(factor, "{:.3f}"), _or_blank(mine.train_sec.mean(), "{:.0f}")]
        cells.append((upstream, featurizer, str(mine.seeds.max()), *values, *layers, *ending))
    return tuple(header), cells


def _value(line) -> str:
    if line is None or pandas.isna(line.value):
        return ""
    spread = "" if pandas.isna(line.deviation) else f" ±{line.deviation:.3f}"
    if _is_static(line.upstream) or pandas.isna(line.static_cut):
        return f"{line.value:.3f}{spread}"
    return f"{line.value:.3f}{spread} ({line.value - line.static_cut:+.3f})"


def _number(line, field: str, form: str) -> str:
    return "" if line is None else _or_blank(getattr(line, field), form)


def _or_blank(value: float, form: str) -> str:
    return "" if value is None or pandas.isna(value) else form.format(value)


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


def write(found: list[dict], folder: Path) -> list[Path]:
    """table.csv (flat rows), table.md and table.html.

    Raises:
        OutputError: where they cannot be written.
        UsageError: where jinja2 is missing.
    """
    table = with_static_cut(means(found))
    paths = [folder / f"table.{kind}" for kind in ("csv", "md", "html")]
    _files.write(paths[0], pandas.DataFrame(found).to_csv(index=False, lineterminator="\n").encode())
    sections = _sections(table)
    _files.write(paths[1], markdown(sections).encode())
    command = shlex.join(["python", "benchmarks/minisuperb/run.py", *sys.argv[1:]])
    page = figures.Page(title="MiniSUPERB on early exits", summary=NOTE, command=command, sections=sections)
    figures.write_page(page, paths[2])
    return paths


def score_lines(found: list[dict]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header and cells of the scores."""
    shown = list(dict.fromkeys(row["condition"] for row in found))
    cells = []
    for upstream, featurizer in dict.fromkeys((row["upstream"], row["featurizer"]) for row in found):
        mine = {
            row["condition"]: row for row in found if (row["upstream"], row["featurizer"]) == (upstream, featurizer)
        }
        values = [f"{mine[c]['score']:.0f}" if c in mine else "" for c in shown]
        cells.append((upstream, featurizer, *values))
    return ("upstream", "featurizer", *shown), cells


def markdown(sections: list[figures.Section]) -> str:
    """The same tables as Markdown."""
    parts = [NOTE]
    for section in sections:
        parts.append(f"## {section.title}")
        parts += [section.text] if section.text else []
        grid = [section.header, ("---",) * len(section.header), *section.rows]
        parts.append("\n".join("| " + " | ".join(cells) + " |" for cells in grid))
    return "\n\n".join(parts) + "\n"


def summary(found: list[dict]) -> str:
    """What the terminal shows."""
    return markdown(_sections(with_static_cut(means(found))))


def _sections(table: pandas.DataFrame) -> list[figures.Section]:
    sections = []
    known = scores(table)
    header, cells = score_lines(known)
    if cells:
        counted = {row["condition"]: row["of"] for row in known if row["upstream"] == FULL}
        said = "; ".join(f"{condition}: {of}" for condition, of in counted.items())
        text = SCORE_NOTE + said + "."
        sections.append(figures.Section(title="MiniSUPERB score", text=text, header=header, rows=tuple(cells)))
    for task in dict.fromkeys(table.task):
        header, cells = lines(table, task)
        sections.append(figures.Section(title=task, header=header, rows=tuple(cells)))
    return sections
