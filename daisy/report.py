"""Figures."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from daisy import files
from daisy.analysis import Estimate
from daisy.errors import UsageError


def snr_name(snr_db: float | None) -> str:
    """A condition as tables and figures say it: "clean", "20 dB" and so on."""
    return "clean" if snr_db is None else f"{snr_db:g} dB"


def exit_layers_by_snr(
    path: Path,
    snrs_db: Sequence[float | None],
    curves: Mapping[str, Sequence[Estimate]],
    *,
    num_layers: int,
    title: str,
    points: Mapping[str, Sequence[Sequence[float]]] | None = None,
) -> None:
    """Draw mean exit layer against SNR, one curve per policy, with its interval as a band; PNG or SVG by the ending.

    Args:
        path: where to write.
        snrs_db: conditions in order, None for clean.
        curves: label to an estimate per condition.
        num_layers: of the backbone, the top of the axis.
        title: above the figure.
        points: label to single utterances' exit layers per condition, drawn faintly.

    Raises:
        UsageError: where matplotlib is missing.
        OutputError: where the file cannot be written.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        raise UsageError("figures need matplotlib: pip install 'daisy-speech[analysis]'") from None
    figure = Figure(figsize=(6.4, 4.0), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
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
    axes.set_xticks(places, [snr_name(snr) for snr in snrs_db])
    axes.set_xlabel("signal-to-noise ratio")
    axes.set_ylabel(f"exit layer (of {num_layers})")
    axes.set_ylim(0.5, num_layers + 0.5)
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    content = io.BytesIO()
    figure.savefig(content, format=path.suffix.lstrip(".") or "png")
    files.write(path, content.getvalue())
