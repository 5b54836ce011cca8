"""Tables of docs/results/minisuperb.md, from results/minisuperb.json and minisuperb_noisy.json."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial

from benchmarks.shared.rendering import render_result
from benchmarks.shared.results import Row, read_result
from daisy.cli.options import DEFAULT_POLICY

UPSTREAMS = ("never", "hubert", DEFAULT_POLICY, "plateau", "fixed", "random", "daisy_window", "fbank")
"""First words of upstreams' names, in the tables' order."""


def render_minisuperb(name: str) -> str:
    """Render each task's upstreams in each condition: mean over seeds, their deviation, and the mean exit layer."""
    result = read_result(name)
    rows = [row for row in result["rows"] if row["value"] is not None]
    conditions = list(dict.fromkeys(row["condition"] for row in rows))
    seeds: dict[tuple[str, str, str], dict[str, list[Row]]] = {}
    for row in rows:
        is_named = row["featurizer"] not in ("dynamic", None) and row["upstream"] not in ("hubert", "fbank")
        featurizer = f", {row['featurizer']}" if is_named else ""
        key = row["task"], row["metric"], row["upstream"] + featurizer
        seeds.setdefault(key, {}).setdefault(row["condition"], []).append(row)
    lines = []
    for task, metric in dict.fromkeys(key[:2] for key in seeds):
        upstreams = [upstream for *of, upstream in seeds if of == [task, metric]]
        for upstream in sorted(upstreams, key=_place):
            by_condition = seeds[task, metric, upstream]
            cells = [_format_seeds(by_condition.get(condition, [])) for condition in conditions]
            lines.append([f"{task} {metric}", upstream, *cells])
    return render_result(result, ["task", "upstream", *conditions], lines)


def _place(upstream: str) -> int:
    return next((place for place, name in enumerate(UPSTREAMS) if upstream.startswith(name)), len(UPSTREAMS))


def _format_seeds(rows: list[Row]) -> str:
    if not rows:
        return ""
    values = [row["value"] for row in rows]
    spread = f" ±{statistics.stdev(values):.3f}" if len(values) > 1 else ""
    layer = rows[0]["mean_exit_layer"]
    return f"{statistics.mean(values):.3f}{spread}" + (f" ({layer:.1f})" if layer else "")


TABLES: dict[str, Callable[[], str]] = {
    name: partial(render_minisuperb, name) for name in ("minisuperb", "minisuperb_noisy")
}
