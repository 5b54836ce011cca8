"""Figures of docs/speed.md, drawn by latency.py and memory.py when they have measured everything."""

from __future__ import annotations

from collections.abc import Sequence

from common import RESULTS
from matplotlib.figure import Figure
from rendering import by_setting


def latency(rows: Sequence[dict], file: str) -> None:
    """Each peer's time over ours in every setting, with quartiles: results/FILE.png."""
    settings = by_setting(rows)
    order = list(settings)
    _ours, *names = dict.fromkeys(row["system"] for row in rows)
    figure = Figure(figsize=(8.0, 0.36 * len(settings) + 1.2), dpi=150, layout="constrained")
    axes = figure.subplots()
    for number, name in enumerate(names):
        mine = {setting: found[name] for setting, found in settings.items() if name in found}
        places = [order.index(setting) + 0.16 * (number - (len(names) - 1) / 2) for setting in mine]
        middle = [row["ratio"] for row in mine.values()]
        low = [row["ratio"] - row["ratio_low"] for row in mine.values()]
        high = [row["ratio_high"] - row["ratio"] for row in mine.values()]
        axes.errorbar(middle, places, xerr=(low, high), fmt="o", markersize=4, elinewidth=1, label=name)
    axes.axvline(1.0, color="0.4", linewidth=1)
    axes.set_yticks(range(len(settings)), [_said(setting) for setting in settings])
    axes.set_ylim(len(settings) - 0.5, -0.5)
    axes.set_xlabel("time over daisy's, full depth (right of the line: daisy is faster)")
    axes.grid(axis="x", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, loc="outside upper center", ncols=len(names))
    figure.savefig(RESULTS / f"{file}.png")


def _said(setting: tuple) -> str:
    size, precision, batch, lengths, threads = setting
    what = "10 s" if lengths == "fixed" else "mixed"
    return f"{size}, {precision}, {batch} x {what}, {threads} thread{'s' if threads > 1 else ''}"


def memory(rows: Sequence[dict]) -> None:
    """Seconds and peak memory by number of recordings and by length: results/memory.png."""
    figure = Figure(figsize=(8.0, 6.0), dpi=150, layout="constrained")
    panels = figure.subplots(2, 2, sharex="col")
    for column, (measure, key, title) in enumerate(
        (("utterances", "num_utterances", "recordings of 4 s"), ("length", "audio_sec", "seconds in one recording"))
    ):
        for mode in dict.fromkeys(row.get("mode", "batches of 28 s") for row in rows if row["measure"] == measure):
            mine = [row for row in rows if row["measure"] == measure and row.get("mode", "batches of 28 s") == mode]
            sizes = [row[key] for row in mine]
            panels[0, column].loglog(sizes, [row["seconds"] for row in mine], marker="o", markersize=3, label=mode)
            peaks = [row["peak_bytes"] / 2**20 for row in mine]
            panels[1, column].semilogx(sizes, peaks, marker="o", markersize=3, label=mode)
        panels[1, column].set_xlabel(title)
        panels[0, column].legend(frameon=False)
    panels[0, 0].set_ylabel("seconds")
    panels[1, 0].set_ylabel("peak memory of the process, MiB")
    for axes in panels.flat:
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in panels[1]:
        axes.set_ylim(0, 1.1 * axes.get_ylim()[1])
    figure.savefig(RESULTS / "memory.png")
