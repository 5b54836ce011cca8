"""Tables of the README and docs/pretraining.md, from results/{heads,pretraining,probes,units,ablations}.json."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from benchmarks.shared.rendering import format_interval, render_result
from benchmarks.shared.results import read_result


def render_heads() -> str:
    """Render held-out loss and accuracy of each head."""
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


def render_pretraining() -> str:
    """Render masked prediction of each network, on the same units."""
    result = read_result("pretraining")
    conditions = list(dict.fromkeys(row["condition"] for row in result["rows"]))
    cells: dict[tuple[str, str, str], list[str]] = {}
    for row in result["rows"]:
        cell = f"{row['loss_nats']:.2f} / {row['accuracy']:.2f}"
        cells.setdefault((row["units"], row["model"], row["classifier"]), []).append(cell)
    header = ["units", "network", "head", *(f"{condition}: nats / accuracy" for condition in conditions)]
    return render_result(result, header, [[*key, *losses] for key, losses in cells.items()])


def render_probes() -> str:
    """Render linear probes: some layers, and the best."""
    result = read_result("probes")
    last = max(row["layer"] for row in result["rows"])
    layers = [0, *range(last // 4, last + 1, last // 4)]
    lines = []
    for task, name in dict.fromkeys((row["task"], row["features"]) for row in result["rows"]):
        rows = {row["layer"]: row for row in result["rows"] if (row["task"], row["features"]) == (task, name)}
        cells = [f"{rows[layer]['accuracy']:.3f}" if len(rows) > 1 else "" for layer in layers]
        best = max(rows.values(), key=lambda row: row["train_accuracy"])
        where = f" at {best['layer']}" if len(rows) > 1 else ""
        lines.append([task, name, *cells, format_interval(best, "accuracy") + where])
    header = ["task", "features", *(f"layer {layer}" for layer in layers), "best by cross-validation on train"]
    return render_result(result, header, lines)


def render_units(name: str) -> str:
    """Render what units of each layer tell, from results/NAME.json."""
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


def render_ablations() -> str:
    """Render each variant of the recipe: losses, agreement with clean units at two layers, keyword probe."""
    result = read_result("ablations")
    conditions = list(result["rows"][0]["agreement"])
    header = [
        "variant", "MFCC units, nats", "units of iteration 2, nats",
        *(f"agreement, {condition}" for condition in conditions), "keyword",
    ]  # fmt: skip
    lines = []
    for row in result["rows"]:
        losses = [f"{row[f'{units}_nats']:.3f}" for units in ("mfcc", "iteration2")]
        shares = [row["agreement"][condition] for condition in conditions]
        spans = [f"{share[0]:.2f} to {max(share):.2f} ({share.index(max(share)) + 1})" for share in shares]
        lines.append([row["variant"], *losses, *spans, f"{row['keyword_accuracy']:.3f}"])
    return render_result(result, header, lines)


TABLES: dict[str, Callable[[], str]] = {
    "heads": render_heads,
    "pretraining": render_pretraining,
    "probes": render_probes,
    "units": partial(render_units, "units"),
    "units_digits": partial(render_units, "units_digits"),
    "ablations": render_ablations,
}
