"""Tables about discrete units: discrete_units.json, discrete_units_guarantee.json and discrete_units_peers.json."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.shared.rendering import format_ratio, render_result
from benchmarks.shared.results import read_result
from daisy.cli.options import DEFAULT_POLICY

SHOWN_POLICIES = (DEFAULT_POLICY, "entropy", "fixed")


def render_errors() -> str:
    """Render unit error rate, bitrate and time of three policies at every depth."""
    result = read_result("discrete_units")
    lines = [
        [
            row["policy"],
            f"{row['depth']:.0%}",
            f"{row['unit_errors']:.3f} ({row['unit_errors_low']:.3f}-{row['unit_errors_high']:.3f})",
            f"{row['unit_errors_static']:.3f}",
            f"{row['final_head_unit_errors']:.3f}",
            f"{row['bitrate']:.0f}",
            f"{row['time']:.2f}",
        ]
        for row in result["rows"]
        if row["policy"] in SHOWN_POLICIES
    ]
    header = ["policy", "depth", "unit errors", "static cut", "to HuBERT's own head", "bits a second", "time"]
    return render_result(result, header, lines)


def render_guarantee() -> str:
    """Render how often a certified unit error rate was passed, and at which depth."""
    result = read_result("discrete_units_guarantee")
    lines = [
        [
            row["system"],
            f"{row['target']:.0%}",
            f"{row['violations']:.1%}",
            f"{row['mean_test_risk']:.3f}",
            f"{row['depth']:.0%}",
        ]
        for row in result["rows"]
    ]
    return render_result(result, ["policy", "at most", "violations", "test risk", "depth"], lines)


def render_peers() -> str:
    """Render the time of units beside other people's tools."""
    result = read_result("discrete_units_peers")
    lines = [
        [
            row["system"],
            f"{row['seconds'] / row['audio_sec']:.4f}",
            f"{format_ratio(row)} times {row['beside']}",
            f"{row['other_units']:.2%}",
        ]
        for row in result["rows"]
    ]
    return render_result(result, ["system", "real-time factor", "time", "other units"], lines)


TABLES: dict[str, Callable[[], str]] = {
    "discrete_units": render_errors,
    "discrete_units_guarantee": render_guarantee,
    "discrete_units_peers": render_peers,
}
