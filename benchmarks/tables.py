"""Tables that compare our states with other libraries': parity{,_backbones,_recognition}.json."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.shared.rendering import render_result
from benchmarks.shared.results import Row, read_result


def render_parity() -> str:
    """Render the largest difference from fairseq's HuBERT."""
    result = read_result("parity")
    differences: dict[str, list[float]] = {}
    for row in result["rows"]:
        differences.setdefault(row["model"], []).append(row["max_abs_diff_over_std"])
    lines = [[model, str(len(layers)), f"{max(layers):.1e}"] for model, layers in differences.items()]
    return render_result(result, ["model", "layers", "largest difference / standard deviation"], lines)


def render_parity_backbones() -> str:
    """Render the largest difference from every library's other networks."""
    result = read_result("parity_backbones")
    differences: dict[tuple[str, str], dict[str, list[float]]] = {}
    for row in result["rows"]:
        by_source = differences.setdefault((row["network"], row["size"]), {})
        by_source.setdefault(row["source"], []).append(row["max_abs_diff_over_std"])
    sources = sorted({row["source"] for row in result["rows"]})
    lines = []
    for (network, size), by_source in differences.items():
        num_layers = len(next(iter(by_source.values())))
        cells = [f"{max(by_source[source]):.1e}" if source in by_source else "" for source in sources]
        lines.append([f"{network}, {size}", str(num_layers), *cells])
    return render_result(result, ["network", "layers", *sources], lines)


def render_parity_recognition() -> str:
    """Render the largest difference from the Conformers and decoders of the public code."""
    result = read_result("parity_recognition")
    networks: dict[tuple[str, str], list[Row]] = {}
    for row in result["rows"]:
        networks.setdefault((row["network"], row["output"]), []).append(row)
    lines = [
        [name, f"{rows[0]['parameters']:,}", f"{len(rows)} {output}s", f"{max(map(_difference, rows)):.1e}"]
        for (name, output), rows in networks.items()
    ]
    return render_result(
        result, ["network", "parameters", "compared", "largest difference / standard deviation"], lines
    )


def _difference(row: Row) -> float:
    return float(row["max_abs_diff_over_std"])


TABLES: dict[str, Callable[[], str]] = {
    "parity": render_parity,
    "parity_backbones": render_parity_backbones,
    "parity_recognition": render_parity_recognition,
}
