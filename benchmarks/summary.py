"""The README's key figures: what exits save, what they keep, on which network, and what they cost downstream."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable
from typing import NamedTuple

from benchmarks.minisuperb.report import interpolate_static_cut, is_static
from benchmarks.minisuperb.tasks import TASKS
from benchmarks.shared.rendering import format_ratio, render_table
from benchmarks.shared.results import Row, read_result
from benchmarks.training.tables import choose_depth
from daisy import checkpoints
from daisy.cli.options import DEFAULT_POLICY

DEPTH = 0.6
"""Mean depth that policies are set for."""
FULL, STATIC = "never", "fixed-60"
TITLES = {
    "ks": "keywords",
    "sid": "speakers",
    "ic": "slots of orders",
    "se": "enhancement (PESQ)",
    "ss": "separation (dB)",
    "asr": "recognition (errors)",
}
"""Titles of the tasks, in the table's order."""
METRICS = {"ic": "slot_accuracy"}
"""Metrics that replace a task's first, where that is near the floor for every upstream."""


def render_summary() -> str:
    """Render a list of what the default policy saves, keeps and costs, and a table of what it costs downstream."""
    tasks = compare_tasks()
    lines = [say_time(), say_units(), say_network(), *([say_downstream(tasks)] if tasks else [])]
    listed = "".join(f"- {line}\n" for line in lines)
    return f"{listed}\n{render_tasks(tasks)}" if tasks else listed


def say_time() -> str:
    """Say how much longer all layers take than the default policy, in batches of clean and noisy recordings."""
    rows = {
        row["system"]: row
        for row in read_result("speed")["rows"]
        if row["measure"] == "end-to-end" and row["recordings"] == "clean and noisy" and row["batches"] != "one by one"
    }
    exits = rows[DEFAULT_POLICY]
    return (
        f"**Time.** On {exits['num_utterances']} test recordings, clean and noisy, the default policy "
        f"`{DEFAULT_POLICY}` runs {exits['depth']:.0%} of the layers. On one core, in batches of 30 s, running all "
        f"layers takes {format_ratio(rows[FULL])} times as long, and s3prl, which runs all too, "
        f"{format_ratio(rows['s3prl'])} times (medians and quartiles)."
    )


def say_units() -> str:
    """Say how many frames keep the full model's unit, and compare with the static cut, the best mixture and chance."""
    by_target = {row["target_depth"]: row for row in read_result("policies")["rows"] if row["policy"] == DEFAULT_POLICY}
    row = by_target.pop(DEPTH)
    gains = [100 * other["gain"] for other in by_target.values()]
    return (
        f"**Fidelity.** On all test audio, in every noise, it runs {row['depth']:.0%} of the layers, and "
        f"{row['unit_agreement']:.1%} of the frames keep the full model's unit. Where all recordings leave at one "
        f"layer (a static cut of that depth), it is {row['fixed_unit_agreement']:.1%}; with the best mixture of two "
        f"cuts {row['mixture_unit_agreement']:.1%}, with exits drawn at random {row['random_unit_agreement']:.1%}. "
        f"Set for other depths, the policy is {min(gains):+.1f} to {max(gains):+.1f} points above the cut."
    )


def say_network() -> str:
    """Say which network the figures come from, and what heads on a frozen network keep in comparison."""
    rows = [row for row in read_result("exits")["rows"] if "policy" in row and row["task"] == "agreement"]
    frozen, trained = choose_depth(rows, DEFAULT_POLICY)
    return (
        f"**Network.** These figures are of `{trained['network']}`, whose layers were all trained with exit losses. On "
        f"test audio, clean and at 10 and 0 dB, it keeps {trained['exit']:.1%} of the units at {trained['depth']:.0%} "
        f"of the layers, and {trained['full']:.1%} at the last head. Heads on a frozen HuBERT of that size (version "
        f"0.1, which learnt from less speech, by HuBERT's loss at the last layer alone) keep {frozen['exit']:.1%} at "
        f"{frozen['depth']:.0%}, and {frozen['full']:.1%} at the last."
    )


class TaskMeans(NamedTuple):
    """One MiniSUPERB task, trained on clean and noisy audio: means over test conditions and seeds."""

    title: str
    full: float
    exits: float
    depth: float
    """Mean depth of the exits."""
    cut: float | None
    """Static cut at their depth in each condition, or the shallowest one where they run fewer layers than it does; None
    if they run fewer on average."""
    shallow: float
    """Value of the static cut `STATIC`."""
    shallow_depth: float
    is_beaten: bool
    """Whether the exits are worse than a cut that runs fewer layers."""


def compare_tasks() -> list[TaskMeans]:
    """Compare the default policy with the full model and static cuts, in tasks with the same seeds for all three."""
    model = checkpoints.digest("daisy-mini")[:12]
    rows = [
        row
        for row in read_result("minisuperb_noisy")["rows"]
        if (row["model"], row["featurizer"]) == (model, "dynamic") and row["value"] is not None
    ]
    exits = f"{DEFAULT_POLICY}-{DEPTH:.0%}".rstrip("%")
    compared = []
    for task in TITLES:
        first = TASKS[task].metrics[0]
        metric = METRICS.get(task, first.name)
        of_task = [row for row in rows if (row["task"], row["metric"]) == (task, metric)]
        parts = [[row for row in of_task if row["upstream"] == upstream] for upstream in (FULL, exits, STATIC)]
        if len(set(map(len, parts))) == 1 and all(parts):
            sign = -1 if metric == first.name and not first.higher_is_better else 1
            cuts = [row for row in of_task if is_static(row["upstream"])]
            compared.append(_compare(TITLES[task], sign, *parts, cuts))
    return compared


def _compare(
    title: str, sign: int, full: list[Row], exits: list[Row], shallow: list[Row], cuts: list[Row]
) -> TaskMeans:
    """Compare the rows of a task, whose metric times ``sign`` is better when larger."""
    value, shallow_value = (_average(rows, "value") for rows in (exits, shallow))
    depth, shallow_depth = (_average(rows, "depth") for rows in (exits, shallow))
    return TaskMeans(
        title=title,
        full=_average(full, "value"),
        exits=value,
        depth=depth,
        cut=_average_cut(cuts, exits),
        shallow=shallow_value,
        shallow_depth=shallow_depth,
        is_beaten=sign * (value - shallow_value) < 0 and depth > shallow_depth,
    )


def _average_cut(cuts: list[Row], exits: list[Row]) -> float | None:
    """Average, over conditions, what static cuts reach at the depth of the exits in the same condition."""
    if _average(exits, "depth") < min(row["depth"] for row in cuts):
        return None
    reached = []
    for condition in dict.fromkeys(row["condition"] for row in exits):
        points = []
        for upstream in dict.fromkeys(row["upstream"] for row in cuts):
            of_cut = [row for row in cuts if (row["upstream"], row["condition"]) == (upstream, condition)]
            points.append((_average(of_cut, "depth"), _average(of_cut, "value")))
        depth = _average([row for row in exits if row["condition"] == condition], "depth")
        cut = interpolate_static_cut(points, max(depth, min(points)[0]))
        assert cut is not None, "the full model is the deepest cut"
        reached.append(cut)
    return statistics.mean(reached)


def say_downstream(tasks: list[TaskMeans]) -> str:
    """Say what the table of tasks shows, and where exits do worse than a shallower cut."""
    beaten = ", ".join(task.title for task in tasks if task.is_beaten)
    lost = f" On {beaten}, a static cut that runs fewer layers does as well or better." if beaten else ""
    return (
        f"**Downstream.** s3prl's tasks on small sets, trained on clean and noisy audio: means over tests from clean "
        f"to 0 dB, exits set for {DEPTH:.0%} on other audio.{lost} Trained on clean audio alone, exits "
        "[cost more](docs/results/minisuperb.md#what-exits-cost). [What guessing gets]"
        "(docs/results/minisuperb.md#what-to-know-before-quoting-a-figure), and more to know before quoting a figure."
    )


def render_tasks(tasks: list[TaskMeans]) -> str:
    """Render each task with all layers, with exits and with static cuts; in brackets the share of layers run."""
    lines = [
        [
            task.title,
            f"{task.full:.3f}",
            f"{task.exits:.3f} ({task.depth:.0%})",
            "" if task.cut is None else f"{task.cut:.3f}",
            f"{task.shallow:.3f} ({task.shallow_depth:.0%})",
        ]
        for task in tasks
    ]
    header = ["task", "all layers", "exits (layers run)", "static cut at this depth", f"static cut set for {DEPTH:.0%}"]
    return render_table(header, lines)


def _average(rows: list[Row], field: str) -> float:
    return statistics.mean(row[field] for row in rows)


def render_latency_summary() -> str:
    """Render every library's time over ours at full depth, by precision: least and greatest over all other settings."""
    lines, peers = [], []
    for name, device in (("latency", "CPU"), ("latency_cuda", "GPU")):
        rows = read_result(name)["rows"]
        _ours, *peers = dict.fromkeys(row["system"] for row in rows)
        precisions = dict.fromkeys(row["precision"] for row in rows)
        kinds = {"fixed": "of 10 s", "mixed": "of mixed lengths"}
        for lengths, precision in itertools.product(kinds, precisions):
            chosen = [row for row in rows if (row["lengths"], row["precision"]) == (lengths, precision)]
            of_peers = [[row["ratio"] for row in chosen if row["system"] == peer] for peer in peers]
            cells = [f"{min(ratios):.2f} to {max(ratios):.2f}" for ratios in of_peers]
            lines.append([f"{device}, {kinds[lengths]}, {precision}", *cells])
    return render_table(["recordings", *peers], lines)


TABLES: dict[str, Callable[[], str]] = {"summary": render_summary, "latency_summary": render_latency_summary}
