"""The README's few sentences with numbers: what exits save, what they keep, and what they cost downstream."""

from __future__ import annotations

import statistics
from collections.abc import Callable

from benchmarks.minisuperb.tasks import TASKS
from benchmarks.shared.rendering import format_ratio, render_table
from benchmarks.shared.results import Row, read_result
from daisy import checkpoints
from daisy.cli.options import DEFAULT_POLICY

DEPTH = 0.6
"""That policies are set for."""
FULL, STATIC = "never", "fixed-60"
TITLES = {
    "ks": "keywords",
    "sid": "speakers",
    "ic": "slots of orders",
    "se": "enhancement (PESQ)",
    "ss": "separation (dB)",
    "asr": "recognition (errors)",
}
"""Of the tasks, in the sentence's order."""
METRICS = {"ic": "slot_accuracy"}
"""Where the task's first is near the floor for everybody."""


def render_summary() -> str:
    """Render a list of what the default policy saves, keeps and costs."""
    return "".join(f"- {line}\n" for line in (say_time(), say_units(), say_downstream()) if line)


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
        f"`{DEFAULT_POLICY}` runs {exits['depth']:.0%} of the layers. On one core, in batches of 30 s, all of them "
        f"take {format_ratio(rows[FULL])} times as long, and s3prl {format_ratio(rows['s3prl'])} times (medians and "
        "quartiles)."
    )


def say_units() -> str:
    """Say how many frames keep the full model's unit, beside the static cut and chance."""
    (row,) = (
        row
        for row in read_result("policies")["rows"]
        if (row["policy"], row["target_depth"]) == (DEFAULT_POLICY, DEPTH)
    )
    return (
        f"**Fidelity.** On all test audio, in every noise, it runs {row['depth']:.0%} of the layers, and "
        f"{row['unit_agreement']:.1%} of the frames keep the full model's unit. Where all recordings leave at one "
        f"layer, a static cut, it is {row['fixed_unit_agreement']:.1%}; with exits drawn at random, "
        f"{row['random_unit_agreement']:.1%}."
    )


def say_downstream() -> str:
    """Say what MiniSUPERB's tasks lose, trained on clean and noisy audio: the mean over test conditions and seeds.

    Returns:
        Nothing where the bundled network was not measured.
    """
    model = checkpoints.digest("daisy-mini")[:12]
    rows = [
        row for row in read_result("minisuperb_noisy")["rows"] if row["model"] == model and row["value"] is not None
    ]
    exits = f"{DEFAULT_POLICY}-{DEPTH:.0%}".rstrip("%")
    shown = []
    for task, title in TITLES.items():
        metric = METRICS.get(task, TASKS[task].metrics[0].name)
        of_task = [row for row in rows if (row["task"], row["metric"]) == (task, metric)]
        of_upstreams = [_choose_upstream(of_task, upstream) for upstream in (FULL, exits, STATIC)]
        if len(set(map(len, of_upstreams))) == 1 and all(of_upstreams):  # the same seeds
            full, by_exits, static = (f"{_average(of_upstream, 'value'):.3f}" for of_upstream in of_upstreams)
            _, depth, static_depth = (f"{_average(of_upstream, 'depth'):.0%}" for of_upstream in of_upstreams)
            shown.append(
                f"{title} {full} with all layers, {by_exits} with exits ({depth} of the layers), {static} at one layer "
                f"({static_depth})"
            )
    if not shown:
        return ""
    return (
        f"**Downstream.** s3prl's tasks on small sets, trained on clean and noisy audio, tested from clean to 0 dB, "
        f"exits set for {DEPTH:.0%} on other audio: {'; '.join(shown)}. Trained on clean audio alone, exits "
        "[cost more](docs/results/minisuperb.md#what-exits-cost)."
    )


def _choose_upstream(rows: list[Row], upstream: str) -> list[Row]:
    """Choose an upstream's rows, of all conditions and seeds."""
    return [row for row in rows if (row["upstream"], row["featurizer"]) == (upstream, "dynamic")]


def _average(rows: list[Row], field: str) -> float:
    return statistics.mean(row[field] for row in rows)


def render_latency_summary() -> str:
    """Render every peer's time over ours at full depth, least and greatest of all settings, on CPUs and on a GPU."""
    lines, peers = [], []
    for name, device in (("latency", "CPU"), ("latency_cuda", "GPU")):
        rows = read_result(name)["rows"]
        _ours, *peers = dict.fromkeys(row["system"] for row in rows)
        for lengths, meaning in (("fixed", "of 10 s"), ("mixed", "of mixed lengths")):
            chosen = [row for row in rows if row["lengths"] == lengths]
            of_peers = [[row["ratio"] for row in chosen if row["system"] == peer] for peer in peers]
            cells = [f"{min(ratios):.2f} to {max(ratios):.2f}" for ratios in of_peers]
            lines.append([f"{device}, {meaning}", *cells])
    return render_table(["recordings", *peers], lines)


TABLES: dict[str, Callable[[], str]] = {"summary": render_summary, "latency_summary": render_latency_summary}
