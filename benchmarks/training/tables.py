"""Tables of docs/results/{training,units}.md, from results/NAME.json."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy

from benchmarks.shared.cuts import mix_best
from benchmarks.shared.rendering import format_field, format_interval, render_columns, render_result
from benchmarks.shared.results import Row, read_result
from benchmarks.training.probes import choose_best
from daisy.policies import DEFAULT_POLICY

DEPTH = 0.6
"""Depth at which policies are compared."""


def render_heads() -> str:
    """Render loss and accuracy of each head on dev audio."""
    result = read_result("heads")
    rows = {(row["heads"], row["condition"], row["layer"]): row for row in result["rows"]}
    kinds = dict.fromkeys(row["heads"] for row in result["rows"])
    columns = [(kind, condition) for kind in kinds for condition in ("clean", "0 dB")]
    lines = []
    for layer in sorted({row["layer"] for row in result["rows"]}):
        of_layer = [rows[kind, condition, layer] for kind, condition in columns]
        lines.append([str(layer), *(f"{row['loss_nats']:.2f} / {row['accuracy']:.2f}" for row in of_layer)])
    header = ["layer", *(f"{kind} heads, {condition}: nats / accuracy" for kind, condition in columns)]
    return render_result(result, header, lines)


def render_train_heads() -> str:
    """Render losses with and without fairseq's plugin, at some updates."""
    result = read_result("train_heads")
    columns = {
        "update": format_field("update"),
        "plugin (nats)": format_field("plugin_loss", ".6f"),
        "daisy train-heads (nats)": format_field("plain_loss", ".6f"),
        "largest difference of a weight after it": format_field("largest_weight_difference", ".1e"),
    }
    return render_columns(result, [row for row in result["rows"] if row["update"] in (1, 10, 50, 100, 200)], columns)


def render_probes() -> str:
    """Render linear probes: some layers, and the best."""
    result = read_result("probes")
    last = max(row["layer"] for row in result["rows"])
    layers = [0, *range(last // 4, last + 1, last // 4)]
    lines = []
    for task, name in dict.fromkeys((row["task"], row["features"]) for row in result["rows"]):
        rows = {row["layer"]: row for row in result["rows"] if (row["task"], row["features"]) == (task, name)}
        cells = [f"{rows[layer]['accuracy']:.3f}" if len(rows) > 1 else "" for layer in layers]
        best = choose_best([*rows.values()])
        where = f" at {best['layer']}" if len(rows) > 1 else ""
        lines.append([task, name, *cells, format_interval(best, "accuracy") + where])
    header = ["task", "features", *(f"layer {layer}" for layer in layers), "best by cross-validation on train"]
    return render_result(result, header, lines)


def render_units(name: str) -> str:
    """Render how informative units of each layer are, from results/NAME.json."""
    result = read_result(name)
    fields = ("word_information", "word_purity", "speaker_information", "stability", "noise_stability_10_db")
    header = [
        "features", "layer", "form", "word information", "purity", "speaker information", "stability", "10 dB",
    ]  # fmt: skip
    lines = []
    for row in result["rows"]:
        layer = "" if row["features"] == "mfcc" else str(row["layer"])
        form = "centred" if row["centred"] else "raw"
        lines.append([row["features"], layer, form, *(f"{row[field]:.3f}" for field in fields)])
    return render_result(result, header, lines)


def render_exit_curves() -> str:
    """Render each network's agreement with its last layer and its probes, at every layer."""
    result = read_result("exits")
    curves: dict[tuple[str, str, str], dict[int, Row]] = {}
    for row in result["rows"]:
        if "layer" in row:
            curves.setdefault((row["task"], row["network"], row["condition"]), {})[row["layer"]] = row
    layers = sorted({layer for curve in curves.values() for layer in curve})
    lines = []
    for of_whom, curve in curves.items():
        width = max((row["value_high"] - row["value_low"]) / 2 for row in curve.values())
        cells = [f"{curve[layer]['value']:.3f}" if layer in curve else "" for layer in layers]
        lines.append([*of_whom, *cells, f"±{width:.3f}"])
    return render_result(result, ["what", "network", "audio", *map(str, layers), "interval, at most"], lines)


def render_exit_variants() -> str:
    """Render each network's agreement and probes at some layers: clean and noisy beside each other, to two digits."""
    result = read_result("exit_variants")
    curves: dict[tuple[str, str], dict[int, list[Row]]] = {}
    for row in result["rows"]:
        if "layer" in row:
            curves.setdefault((row["task"], row["network"]), {}).setdefault(row["layer"], []).append(row)
    layers = choose_quarters({layer for curve in curves.values() for layer in curve})
    lines = []
    for task in dict.fromkeys(task for task, _ in curves):
        for (_, network), curve in ((key, curve) for key, curve in curves.items() if key[0] == task):
            shown = [curve.get(layer, []) for layer in layers]
            cells = [" / ".join(f"{row['value']:.2f}" for row in rows) for rows in shown]
            width = max((row["value_high"] - row["value_low"]) / 2 for rows in shown for row in rows)
            lines.append([task, network, *cells, f"±{width:.2f}"])
    conditions = " / ".join(dict.fromkeys(row["condition"] for row in result["rows"] if "layer" in row))
    header = ["what", "network", *(f"layer {layer}: {conditions}" for layer in layers), "interval, at most"]
    return render_result(result, header, lines)


def choose_quarters(layers: set[int]) -> list[int]:
    """Choose the layers at quarters of the depth."""
    return sorted(layers)[len(layers) // 4 - 1 :: len(layers) // 4]


def render_unit_layers() -> str:
    """Render the share of frames where some layers' units are those of the full model on the same input."""
    result = read_result("exits")
    rows = [row for row in result["rows"] if row["task"] == "agreement" and "layer" in row]
    rows = [row for row in rows if row["network"] == rows[-1]["network"]]
    shown = choose_quarters({row["layer"] for row in rows})
    cells: dict[str, list[str]] = {}
    for row in rows:
        if row["layer"] in shown:
            cells.setdefault(row["condition"], []).append(
                f"{row['value']:.3f} ({row['value_low']:.3f}-{row['value_high']:.3f})"
            )
    lines = [[condition, *of_layers] for condition, of_layers in cells.items()]
    return render_result(result, ["condition", *(f"layer {layer}" for layer in shown)], lines)


def render_exit_systems(name: str, choose: Callable[[list[Row]], list[Row]]) -> str:
    """Render exits, the static cut, random exits and the full model, for some rows of results/NAME.json."""
    result = read_result(name)
    curves: dict[tuple[str, str], dict[int, list[float]]] = {}
    for row in result["rows"]:
        if "layer" in row:
            by_layer = curves.setdefault((row["task"], row["network"]), {})
            by_layer.setdefault(row["layer"], []).append(row["value"])
    lines = []
    for row in choose([row for row in result["rows"] if "policy" in row]):
        curve = curves[row["task"], row["network"]]
        losses = numpy.array([1 - numpy.mean(curve[layer]) for layer in sorted(curve)])
        mixture = 1 - mix_best(losses, row["depth"] * len(losses))
        values = [f"{value:.3f}" for value in (row["exit"], row["static"], mixture, row["random"], row["full"])]
        gains = [format_gain(row, system) for system in ("static", "random")]
        lines.append([row["task"], row["network"], row["policy"], f"{row['depth']:.0%}", *values, *gains])
    header = [
        "what", "network", "policy", "depth", "exits", "static cut", "best mixture of two cuts", "random exits", "full",
        "above the static cut by", "above random exits by",
    ]  # fmt: skip
    return render_result(result, header, lines)


def choose_default_policy(rows: list[Row]) -> list[Row]:
    """Choose the default policy's rows for the last network."""
    return [row for row in rows if row["policy"] == DEFAULT_POLICY and row["network"] == rows[-1]["network"]]


def choose_depth(rows: list[Row], policy: str | None = None) -> list[Row]:
    """Choose the row nearest to `DEPTH` for each task, network and policy, or for one policy alone."""
    nearest: dict[tuple[str, str, str], Row] = {}
    for row in rows:
        key = (row["task"], row["network"], row["policy"])
        if key not in nearest or abs(row["depth"] - DEPTH) < abs(nearest[key]["depth"] - DEPTH):
            nearest[key] = row
    return [row for row in nearest.values() if policy in (None, row["policy"])]


def format_gain(row: Row, system: str) -> str:
    """Format the lead of exits over a system, with the interval."""
    gain, low, high = (row[f"over_{system}{end}"] for end in ("", "_low", "_high"))
    return f"{gain:+.3f} ({low:+.3f} to {high:+.3f})"


TABLES: dict[str, Callable[[], str]] = {
    "heads": render_heads,
    "train_heads": render_train_heads,
    "probes": render_probes,
    "units": partial(render_units, "units"),
    "units_digits": partial(render_units, "units_digits"),
    "exit_curves": render_exit_curves,
    "unit_layers": render_unit_layers,
    "exit_systems": partial(render_exit_systems, "exits", choose_default_policy),
    "exit_policies": partial(render_exit_systems, "exits", choose_depth),
    "exit_variants": render_exit_variants,
    "exit_variants_systems": partial(
        render_exit_systems, "exit_variants", partial(choose_depth, policy=DEFAULT_POLICY)
    ),
}
