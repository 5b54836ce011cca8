"""Tables of docs/results/minisuperb.md, from results/minisuperb.json and minisuperb_noisy.json."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial

from benchmarks.minisuperb.report import interpolate_static_cut, is_static
from benchmarks.minisuperb.tasks import TASKS
from benchmarks.shared.rendering import render_result
from benchmarks.shared.results import Row, read_result
from daisy.cli.options import DEFAULT_POLICY

UPSTREAMS = ("never", "hubert", DEFAULT_POLICY, "plateau", "fixed", "random", "daisy_window", "fbank")
"""First words of the upstreams' names, in the order of the tables."""


COMPARED = (f"{DEFAULT_POLICY}-60", "never", "fixed-60", "random-60")
"""The default policy, the full model, and the other upstreams it is compared with."""
NEAR_THE_FLOOR = ("ic", "accuracy")
"""Share of orders with all slots right: a few of 63."""


def render_minisuperb(name: str) -> str:
    """Render each task's upstreams in each condition: mean and deviation over seeds, and the mean exit layer."""
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


def render_differences() -> str:
    """Render the lead of the default policy's exits over the full model and over their competitors.

    In percent; metrics in decibels, which may be near zero or below it, in decibels.
    """
    result = read_result("minisuperb")
    signs = {
        (name, metric.name): 1 if metric.higher_is_better else -1 for name, t in TASKS.items() for metric in t.metrics
    }
    lines = []
    for training, name in (("clean", "minisuperb"), ("clean and noisy", "minisuperb_noisy")):
        rows_of: dict[tuple[str, str, str], dict[str, list[Row]]] = {}
        for row in read_result(name)["rows"]:
            is_counted = row["value"] is not None and row["featurizer"] in ("dynamic", None)
            if is_counted and (row["task"], row["metric"]) != NEAR_THE_FLOOR:
                of_key = rows_of.setdefault((row["task"], row["metric"], row["condition"]), {})
                of_key.setdefault(row["upstream"], []).append(row)
        for (task, metric, condition), of in rows_of.items():
            if all(upstream in of and _average(of[upstream]) for upstream in COMPARED):
                cells = _compare(of, signs.get((task, metric), 1), in_decibels=metric.endswith("_db"))
                lines.append([training, f"{task} {metric}", condition, *cells])
    header = [
        "trained on", "task", "test", "above the full model by", "seeds' deviation", "within 1 % or it", "layers",
        "above the cut at this depth by", "above random-60 by",
    ]  # fmt: skip
    return render_result(result, header, lines)


def _average(rows: list[Row], field: str = "value") -> float:
    return statistics.mean(row[field] for row in rows)


def _compare(of: dict[str, list[Row]], sign: int, in_decibels: bool) -> list[str]:
    """Compare the means of the first of `COMPARED` with those of the others, and with the static cut at its depth."""
    ours, of_full, _, of_random = (of[upstream] for upstream in COMPARED)
    mine, full, random = (_average(rows) for rows in (ours, of_full, of_random))
    values = [[row["value"] for row in rows] for rows in (ours, of_full)]
    spreads = [statistics.stdev(of_seeds) for of_seeds in values if len(of_seeds) > 1]
    static = [(_average(rows, "depth"), _average(rows)) for name, rows in of.items() if is_static(name)]
    cut = interpolate_static_cut(static, _average(ours, "depth"))

    def format_difference(difference: float, reference: float, plus: str = "+") -> str:
        return f"{difference:{plus}.2f} dB" if in_decibels else f"{difference / abs(reference):{plus}.1%}"

    return [
        format_difference(sign * (mine - full), full),
        format_difference(max(spreads), full, plus="") if spreads else "",
        "yes" if sign * (mine - full) >= -max(0.01 * abs(full), *spreads, 0.0) else "no",
        f"{_average(ours, 'mean_exit_layer'):.1f}",
        "" if cut is None else format_difference(sign * (mine - cut), cut),
        format_difference(sign * (mine - random), random),
    ]


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
    **{name: partial(render_minisuperb, name) for name in ("minisuperb", "minisuperb_noisy")},
    "minisuperb_differences": render_differences,
}
