"""Present a run as a table, figures and sections of a page."""

from __future__ import annotations

from typing import TYPE_CHECKING

from daisy.distributed.pipeline.run_report import RunReport
from daisy.evaluation.figures import draw_lines
from daisy.evaluation.html import Section

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NUM_WINDOWS = 30
"""Windows of the curves over time."""


def list_workers(report: RunReport) -> list[tuple[str, ...]]:
    """List each worker's name, utilisation, stages computed, exits, tasks and bytes sent, and deaths."""
    table = report.to_json()["workers"]
    return [
        (
            name,
            f"{row['utilisation']:.0%}",
            str(row["num_computed"]),
            str(row["num_exits"]),
            str(row["num_sent"]),
            f"{row['bytes_sent'] / 1e6:.2f}",
            str(row["num_deaths"]),
        )
        for name, row in table.items()
    ]


WORKER_COLUMNS = ("worker", "busy", "stages computed", "exits", "tasks sent", "MB sent", "deaths")


def describe(report: RunReport) -> list[str]:
    """Summarise a run in a few lines."""
    table = report.to_json()
    latency = table["latency_sec"]
    kept = "" if table["fidelity"] is None else f", fidelity {table['fidelity']:.4f}"
    lines = [
        f"{table['num_answered']} of {table['num_admitted']} admitted utterances answered in {table['seconds']:.1f} s: "
        f"{table['throughput']:.2f} a second, {table['audio_sec_per_sec']:.1f} s of audio a second",
        f"latency: median {latency['median']:.3f} s, 90 % {latency['p90']:.3f} s, 99 % {latency['p99']:.3f} s",
        f"mean exit layer {table['mean_exit_layer']:.2f}, mean level {table['mean_level']:.2f}{kept}",
    ]
    if table["num_restarts"] or table["num_late_answers"]:
        lines.append(
            f"{table['num_restarts']} begun again, {table['num_late_answers']} answers came late and were dropped"
        )
    if report.error:
        lines.append(f"the run ended early: {report.error}")
    for priority, row in table["by_priority"].items():
        lines.append(
            f"priority {priority}: {row['num_answered']} answered, median latency {row['median_latency_sec']:.3f} s"
        )
    return lines


def draw_latencies(report: RunReport) -> Figure:
    """Draw the share of utterances answered within a time (the distribution of latency).

    Raises:
        UsageError: if matplotlib is missing.
    """
    latencies = report.latencies()
    points = [(seconds, (index + 1) / len(latencies)) for index, seconds in enumerate(latencies)]
    return draw_lines({"answered": points}, across="seconds since admission", up="share of the utterances")


def draw_time(report: RunReport) -> Figure:
    """Draw throughput, median latency and level over time, each as a share of its largest value.

    Raises:
        UsageError: if matplotlib is missing.
    """
    windows = report.windows(max(report.seconds / NUM_WINDOWS, 1e-3))
    curves = {}
    for name, unit in (("throughput", "a second"), ("median_latency_sec", "s"), ("mean_level", "")):
        most = max(window[name] for window in windows)
        if most > 0:
            label = f"{name.removesuffix('_sec').replace('_', ' ')}, at most {most:.3g} {unit}".rstrip()
            curves[label] = [(window["begin_sec"], window[name] / most) for window in windows]
    return draw_lines(curves, across="seconds since the start", up="share of the largest")


def make_sections(report: RunReport) -> list[Section]:
    """Create the sections of the page."""
    exits = report.to_json()["exit_layers"]
    return [
        Section(
            title="How long did answers take?",
            text=" ".join(f"{line[0].upper()}{line[1:]}." for line in describe(report)),
            figures=(("latency", draw_latencies(report)), ("over time", draw_time(report))),
        ),
        Section(
            title="What did each worker do?",
            text="busy: share of the time in which it computed.",
            header=WORKER_COLUMNS,
            rows=tuple(list_workers(report)),
        ),
        Section(
            title="Where did utterances leave?",
            header=("exit layer", "utterances"),
            rows=tuple((layer, str(count)) for layer, count in exits.items()),
        ),
    ]
