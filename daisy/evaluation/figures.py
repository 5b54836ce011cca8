"""Draw the figures."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from daisy import _files
from daisy.calibration.intervals import Estimate
from daisy.errors import UsageError
from daisy.evaluation.style import choose_lines, style_axes, style_in_order, style_lines
from daisy.policies import DEFAULT_POLICY

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


TITLE_WIDTH = 80
"""Characters per line of a title."""
FEW_LINES = 3
"""Most intervals that can be told apart when drawn as bands."""


def format_snr(snr_db: float | None) -> str:
    """Format a condition as in tables and figures: "clean", "20 dB" and so on."""
    return "clean" if snr_db is None else f"{snr_db:g} dB"


def save(figure: Figure, path: Path) -> None:
    """Save a figure as PNG or SVG, according to the file name's ending.

    Raises:
        OutputError: where it cannot be written.
    """
    content = io.BytesIO()
    figure.savefig(content, format=path.suffix.lstrip(".") or "png")
    _files.write(path, content.getvalue())


def make_axes(width: float = 6.4, height: float = 4.0) -> tuple[Figure, Axes]:
    """Make an empty figure in the style of all figures.

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
    style_axes([axes])
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
        snrs_db: signal-to-noise ratios in order, None for clean.
        curves: estimates for each condition, by label; of many curves the eight most important are drawn.
        num_layers: number of layers of the backbone, the top of the axis.
        title: text above the figure, which says what it shows.
        points: single utterances' exit layers for each condition, by label, drawn faintly.
    """
    figure, axes = make_axes()
    places = list(range(len(snrs_db)))
    labels = choose_lines(curves)
    for label, style in style_lines(labels).items():
        estimates = curves[label]
        for place, values in zip(places, (points or {}).get(label, ()), strict=False):
            spread = [place + 0.16 * ((i + 0.5) / len(values) - 0.5) for i in range(len(values))]
            axes.plot(spread, values, ".", color=style["color"], alpha=0.35, markersize=6)
        is_wide = len(labels) <= FEW_LINES or label == DEFAULT_POLICY
        _draw_intervals(axes, places, [(e.low, e.high) for e in estimates], style, is_wide)
        axes.plot(places, [e.mean for e in estimates], label=label, **style)
    axes.set_xticks(places, [format_snr(snr) for snr in snrs_db])
    axes.set_xlabel("signal-to-noise ratio")
    axes.set_ylabel(f"exit layer (of {num_layers})")
    axes.set_ylim(0.5, num_layers + 0.5)
    axes.set_title(textwrap.fill(title, TITLE_WIDTH), loc="left", fontsize="medium")
    _add_legend(axes, len(labels))
    return figure


def draw_lines(
    curves: Mapping[str, Sequence[tuple[float, float]]],
    *,
    across: str,
    up: str,
    title: str = "",
    black: Sequence[str] = (),
    bands: Mapping[str, Sequence[tuple[float, float]]] | None = None,
    in_order: bool = False,
) -> Figure:
    """Draw curves of (x, y) points; of many curves the eight most important.

    Args:
        curves: points by label.
        across: label of the horizontal axis.
        up: label of the vertical axis.
        title: text above the figure, which says what it shows.
        black: labels of curves that others are compared with, drawn black.
        bands: (low, high) of each point, by label.
        in_order: whether the curves have an order, which their colours show.
    """
    figure, axes = make_axes(8.0, 4.6)
    labels = choose_lines(curves, black)
    for label, style in (style_in_order(labels) if in_order else style_lines(labels, black)).items():
        x, y = [point[0] for point in curves[label]], [point[1] for point in curves[label]]
        is_wide = len(labels) <= FEW_LINES or label == DEFAULT_POLICY
        _draw_intervals(axes, x, (bands or {}).get(label, ()), style, is_wide)
        axes.plot(x, y, label=label, **(style if len(x) > 1 else {"marker": "x", **style}))
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.set_title(textwrap.fill(title, TITLE_WIDTH), loc="left", fontsize="medium")
    _add_legend(axes, len(labels))
    return figure


def _draw_intervals(
    axes: Axes, x: Sequence[float], ends: Sequence[tuple[float, float]], style: Mapping[str, Any], is_wide: bool
) -> None:
    """Draw the intervals of the points, if any: as a band, or as thin bars, which cover no other line."""
    low, high = [low for low, _ in ends], [high for _, high in ends]
    if is_wide and len(ends) > 1:
        axes.fill_between(x, low, high, color=style["color"], alpha=0.15, linewidth=0)
    elif ends:
        axes.vlines(x, low, high, color=style["color"], alpha=0.5, linewidth=0.8)


def _add_legend(axes: Axes, num_lines: int) -> None:
    """Name the lines, if there are several, below the axes, where they fit on a narrow page too."""
    if num_lines > 1:
        figure = axes.get_figure()
        assert figure is not None
        figure.legend(frameon=False, loc="outside lower center", ncols=min(num_lines, 4), fontsize="small")
