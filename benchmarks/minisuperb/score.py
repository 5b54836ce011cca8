"""MiniSUPERB's score (arXiv:2305.19011): a model's position between log-mel features and a reference model.

Our reading, from memory: for each task the mean over its metrics of (s - s_fbank) / (s_best - s_fbank), then the mean
over tasks, times 1000. So log-mel features score 0 and the reference 1000, and metrics where less is better need no
sign. We could not read the paper's reference figures: ours are from the same table, with the full model as s_best. If
the reference is hardly better than log-mel features, the difference means nothing, and the metric is left out.
"""

from __future__ import annotations

from collections.abc import Mapping

from daisy.errors import UsageError

Scores = Mapping[str, Mapping[str, float]]
"""Maps a task to its metrics and their values."""
MIN_LEAD = 0.02
"""Minimum lead of the reference over log-mel features, relative to the latter, for a metric to count."""


def is_ahead(floor: float, best: float, higher_is_better: bool) -> bool:
    """Tell whether the reference is far enough ahead of log-mel features."""
    lead = best - floor if higher_is_better else floor - best
    return lead >= MIN_LEAD * abs(floor) and lead > 0


def score_task(values: Mapping[str, float], floor: Mapping[str, float], best: Mapping[str, float]) -> float:
    """Score a task: the model's share of the difference between log-mel features (0) and the reference (1).

    Args:
        values: the model's values by metric.
        floor: values of log-mel features.
        best: values of the reference.

    Raises:
        UsageError: if a metric is missing, or features and reference do not differ in it.
    """
    if not values:
        raise UsageError("a score needs at least one metric")
    shares = []
    for metric, value in values.items():
        if metric not in floor or metric not in best:
            raise UsageError(f"no reference figure for {metric}")
        if best[metric] == floor[metric]:
            raise UsageError(f"{metric}: log-mel features and the reference are both at {floor[metric]:g}")
        shares.append((value - floor[metric]) / (best[metric] - floor[metric]))
    return sum(shares) / len(shares)


def score_model(values: Scores, floor: Scores, best: Scores) -> float:
    """Score a model over the tasks in ``values``: 0 for log-mel features, 1000 for the reference.

    Args:
        values: values of the model.
        floor: values of log-mel features.
        best: values of the reference model.

    Raises:
        UsageError: as in `score_task`, or if there is no task.
    """
    if not values:
        raise UsageError("a score needs at least one task")
    for task in values:
        if task not in floor or task not in best:
            raise UsageError(f"no reference figures for task {task}")
    return 1000 * sum(score_task(values[task], floor[task], best[task]) for task in values) / len(values)
