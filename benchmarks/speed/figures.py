"""Figures of docs/results/speed.md, drawn by latency.py and memory.py after they have measured everything."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.shared.results import RESULTS, Row
from benchmarks.speed.measures import Setting, group_by_setting
from daisy.evaluation.style import style_axes, style_lines


def draw_latency(rows: Sequence[Row], name: str) -> None:
    """Draw each peer's time over ours in every setting, with quartiles: results/NAME.png."""
    from matplotlib.figure import Figure

    settings = group_by_setting(rows)
    order = list(settings)
    _ours, *peers = dict.fromkeys(row["system"] for row in rows)
    styles = style_lines(peers)
    figure = Figure(figsize=(8.0, 0.36 * len(settings) + 1.5), dpi=150, layout="constrained")
    axes = figure.subplots()
    for number, peer in enumerate(peers):
        of_peer = {setting: by_system[peer] for setting, by_system in settings.items() if peer in by_system}
        places = [order.index(setting) + 0.16 * (number - (len(peers) - 1) / 2) for setting in of_peer]
        medians = [row["ratio"] for row in of_peer.values()]
        below = [row["ratio"] - row["ratio_low"] for row in of_peer.values()]
        above = [row["ratio_high"] - row["ratio"] for row in of_peer.values()]
        marker = {"color": styles[peer]["color"], "marker": styles[peer]["marker"]}
        axes.errorbar(
            medians, places, xerr=(below, above), linestyle="", markersize=4, elinewidth=1, label=peer, **marker
        )
    faster = [row["ratio"] > 1 for by_system in settings.values() for peer in peers if (row := by_system.get(peer))]
    title = f"daisy is faster in {sum(faster)} of {len(faster)} comparisons (medians, with quartiles)"
    axes.set_title(title, loc="left", fontsize="medium")
    axes.axvline(1.0, color="0.4", linewidth=1)
    axes.set_yticks(range(len(settings)), [_format_setting(setting) for setting in settings])
    axes.set_ylim(len(settings) - 0.5, -0.5)
    axes.set_xlabel("time over daisy's, full depth (right of the line: daisy is faster)")
    style_axes([axes], grid="x")
    figure.legend(frameon=False, loc="outside upper center", ncols=len(peers))
    figure.savefig(RESULTS / f"{name}.png")


def _format_setting(setting: Setting) -> str:
    size, precision, batch, lengths, threads = setting
    kind = "10 s" if lengths == "fixed" else "mixed"
    return f"{size}, {precision}, {batch} x {kind}, {threads} thread{'s' if threads > 1 else ''}"


def draw_memory(rows: Sequence[Row]) -> None:
    """Draw seconds and peak memory by number of recordings and by length: results/memory.png."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 6.0), dpi=150, layout="constrained")
    panels = figure.subplots(2, 2, sharex="col")
    for column, (measure, key, title) in enumerate(
        (("utterances", "num_utterances", "recordings of 4 s"), ("length", "audio_sec", "seconds in one recording"))
    ):
        curves: dict[str, list[Row]] = {}
        for row in rows:
            if row["measure"] == measure:
                curves.setdefault(row.get("mode", "batches of 28 s"), []).append(row)
        says = []
        for (mode, points), style in zip(curves.items(), style_lines(list(curves)).values(), strict=True):
            sizes = [row[key] for row in points]
            panels[0, column].loglog(sizes, [row["seconds"] for row in points], label=mode, **style)
            peaks = [row["peak_bytes"] / 2**20 for row in points]
            panels[1, column].semilogx(sizes, peaks, label=mode, **style)
            says.append(f"{mode}: {min(peaks):.0f} to {max(peaks):.0f} MiB")
        panels[1, column].set_title("; ".join(says), loc="left", fontsize="small")
        panels[1, column].set_xlabel(title)
        panels[0, column].legend(frameon=False)
    panels[0, 0].set_ylabel("seconds")
    panels[1, 0].set_ylabel("peak memory of the process, MiB")
    style_axes(panels.flat)
    for axes in panels[1]:
        axes.set_ylim(0, 1.1 * axes.get_ylim()[1])
    figure.savefig(RESULTS / "memory.png")
