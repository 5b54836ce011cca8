"""Tables about discrete units: discrete_units.json, discrete_units_guarantee.json and discrete_units_peers.json."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from benchmarks.shared.rendering import Columns, format_field, format_ratio, render_columns
from benchmarks.shared.results import Row, read_result
from daisy.cli.options import DEFAULT_POLICY

SHOWN_POLICIES = (DEFAULT_POLICY, "entropy", "fixed")


def _format_depth(row: Row) -> str:
    """Format the depth of exits, unless all layers are run."""
    return f", {row['depth']:.0%} of the layers" if row.get("depth", 1.0) < 1 else ""


ERRORS: Columns = {
    "policy": format_field("policy"),
    "depth": format_field("depth", ".0%"),
    "unit errors": lambda row: f"{row['unit_errors']:.3f} ({row['unit_errors_low']:.3f}-{row['unit_errors_high']:.3f})",
    "static cut": format_field("unit_errors_static", ".3f"),
    "best mixture of two cuts": format_field("unit_errors_mixture", ".3f"),
    "random exits": format_field("unit_errors_random", ".3f"),
    "to HuBERT's own head": format_field("final_head_unit_errors", ".3f"),
    "bits a second": format_field("bitrate", ".0f"),
    "time": format_field("time", ".2f"),
    "static cut in that time": format_field("unit_errors_static_at_time", ".3f"),
}
GUARANTEE: Columns = {
    "policy": format_field("system"),
    "at most": format_field("target", ".0%"),
    "violations": format_field("violations", ".1%"),
    "test risk": format_field("mean_test_risk", ".3f"),
    "depth": format_field("depth", ".0%"),
}
PEERS: Columns = {
    "system": lambda row: row["system"] + _format_depth(row),
    "real-time factor": lambda row: f"{row['seconds'] / row['audio_sec']:.4f}",
    "time": lambda row: f"{format_ratio(row)} times {row['beside']}",
    "other units": format_field("other_units", ".2%"),
}


def render_errors() -> str:
    """Render unit error rate, bitrate and time of three policies at every depth."""
    result = read_result("discrete_units")
    return render_columns(result, [row for row in result["rows"] if row["policy"] in SHOWN_POLICIES], ERRORS)


def render_all(name: str, columns: Columns) -> str:
    """Render all rows of results/NAME.json."""
    result = read_result(name)
    return render_columns(result, result["rows"], columns)


TABLES: dict[str, Callable[[], str]] = {
    "discrete_units": render_errors,
    "discrete_units_guarantee": partial(render_all, "discrete_units_guarantee", GUARANTEE),
    "discrete_units_peers": partial(render_all, "discrete_units_peers", PEERS),
}
