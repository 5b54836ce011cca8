"""Figures."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from daisy import _files
from daisy.calibration.intervals import Estimate
from daisy.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def format_snr(snr_db: float | None) -> str:
    """Write a condition as tables and figures say it: "clean", "20 dB" and so on."""
    return "clean" if snr_db is None else f"{snr_db:g} dB"


def save(figure: Figure, path: Path) -> None:
    """Save a figure as PNG or SVG, by the ending.

    Raises:
        OutputError: where it cannot be written.
    """
    content = io.BytesIO()
    figure.savefig(content, format=path.suffix.lstrip(".") or "png")
    _files.write(path, content.getvalue())


def make_axes(width: float = 6.4, height: float = 4.0) -> tuple[Figure, Axes]:
    """Make an empty figure in the one style.

    Raises:
        UsageError: where matplotlib is missing.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise UsageError("figures need matplotlib: pip install 'daisy-speech[analysis]'") from None
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def draw_exit_layers_by_snr(
    snrs_db: Sequence[float | None],
    curves: Mapping[str, Sequence[Estimate]],
    *,
    num_layers: int,
    title: str,
    points: Mapping[str, Sequence[Sequence[float]]] | None = None,
) -> Figure:
    """Draw mean exit layer against SNR, one curve per policy or kind of noise, with its interval as a band.

    Args:
        snrs_db: conditions in order, None for clean.
        curves: label to an estimate per condition.
        num_layers: of the backbone, the top of the axis.
        title: above the figure.
        points: label to single utterances' exit layers per condition, drawn faintly.
    """
    figure, axes = make_axes()
    places = list(range(len(snrs_db)))
    for index, (label, estimates) in enumerate(curves.items()):
        color = f"C{index}"
        for place, values in zip(places, (points or {}).get(label, ()), strict=False):
            spread = [place + 0.16 * ((i + 0.5) / len(values) - 0.5) for i in range(len(values))]
            axes.plot(spread, values, ".", color=color, alpha=0.35, markersize=6)
        axes.fill_between(
            places, [e.low for e in estimates], [e.high for e in estimates], color=color, alpha=0.15, linewidth=0
        )
        axes.plot(places, [e.mean for e in estimates], "o-", color=color, label=label)
    axes.set_xticks(places, [format_snr(snr) for snr in snrs_db])
    axes.set_xlabel("signal-to-noise ratio")
    axes.set_ylabel(f"exit layer (of {num_layers})")
    axes.set_ylim(0.5, num_layers + 0.5)
    axes.set_title(title)
    axes.legend(frameon=False)
    return figure


def draw_lines(
    curves: Mapping[str, Sequence[tuple[float, float]]],
    *,
    across: str,
    up: str,
    title: str = "",
    black: Sequence[str] = (),
) -> Figure:
    """Draw curves of (x, y) points.

    Args:
        curves: label to points.
        across: what the horizontal axis is.
        up: what the vertical axis is.
        title: above the figure.
        black: labels of curves that others are compared with, drawn black.
    """
    figure, axes = make_axes(8.0, 4.6)
    styles = iter(("--", ":", "-.", (0, (1, 4))))
    for index, (label, points) in enumerate(curves.items()):
        x, y = [point[0] for point in points], [point[1] for point in points]
        if label in black:
            axes.plot(x, y, linestyle=next(styles, "--"), color="black", label=label)
        else:
            axes.plot(x, y, ".-" if index < 10 else "x:", color=f"C{index % 10}", alpha=0.9, label=label)
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.set_title(title)
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure
