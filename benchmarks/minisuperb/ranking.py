"""MiniSUPERB's score of each upstream in a table of finished runs."""

from __future__ import annotations

import pandas

from benchmarks.minisuperb.score import Scores, is_ahead, score_model
from benchmarks.minisuperb.tasks import TASKS, TITLES, UNSCORED
from benchmarks.shared.results import Row

FLOOR, FULL = "fbank", "never"
"""Upstreams whose figures score 0 and 1000."""


def score_upstreams(table: pandas.DataFrame) -> list[Row]:
    """Score each upstream in each condition, if it has all tasks that the full model has.

    Reference figures: fbank (0) and the full model (1000) of the same table, task and condition. A metric in which the
    full model is not clearly ahead of fbank is left out (`score.is_ahead`).

    Args:
        table: table of `report.average_seeds`.
    """
    rows = []
    for condition, part in table.groupby("condition", sort=False):
        by_upstream = _gather_scores(part, condition)
        floor = next((values for (name, _), values in by_upstream.items() if name == FLOOR), {})
        any_full = next((values for (name, _), values in by_upstream.items() if name == FULL), {})
        for (upstream, featurizer), values in by_upstream.items():
            best = by_upstream.get((FULL, featurizer)) or any_full
            shared = _select_comparable(values, floor, best)
            if not shared or shared.keys() != _select_comparable(best, floor, best).keys():
                continue
            counted = ", ".join(f"{task} {' and '.join(metrics)}" for task, metrics in shared.items())
            names = {"upstream": upstream, "featurizer": featurizer, "condition": condition}
            rows.append({**names, "score": score_model(shared, floor, best), "of": counted})
    return rows


def _gather_scores(part: pandas.DataFrame, condition: str) -> dict[tuple[str, str], dict[str, dict[str, float]]]:
    """Gather the scored values of a condition: (upstream, featurizer) to task to metric to value."""
    name = next(name for name, title in TITLES.items() if title == condition)
    by_upstream: dict[tuple[str, str], dict[str, dict[str, float]]] = {}
    for line in part.itertuples():
        if _counts(line.task, line.metric, name) and not pandas.isna(line.value):
            tasks = by_upstream.setdefault((line.upstream, line.featurizer), {})
            tasks.setdefault(line.task, {})[line.metric] = line.value
    return by_upstream


def _counts(task: str, name: str, condition: str) -> bool:
    metric = next((metric for metric in TASKS[task].metrics if metric.name == name), None)
    if metric is None or not TASKS[task].in_score or (task, condition) in UNSCORED:
        return False
    return metric.published if condition == "test" else metric.at_hand


def _select_comparable(values: Scores, floor: Scores, best: Scores) -> dict[str, dict[str, float]]:
    """Select the metrics whose reference figures are clearly apart, and the tasks that have any."""
    selected: dict[str, dict[str, float]] = {}
    for task in values:
        for metric in TASKS[task].metrics:
            name = metric.name
            if all(name in scores.get(task, {}) for scores in (values, floor, best)) and is_ahead(
                floor[task][name], best[task][name], metric.higher_is_better
            ):
                selected.setdefault(task, {})[name] = values[task][name]
    return selected
