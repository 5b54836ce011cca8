"""Renders the README's tables and those of docs/ from results/*.json, between ``<!-- table NAME -->`` and its end.

python benchmarks/readme.py            # also: make readme
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path

from common import HERE, read

from daisy import files
from daisy.report import snr_name

README = HERE.parent / "README.md"
PAGES = (README, HERE.parent / "docs" / "pretraining.md")
BLOCK = re.compile(r"(<!-- table (\w+) -->\n).*?(<!-- end -->)", re.S)


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(header), *map(list, rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"


def source(result: dict) -> str:
    machine = result["machine"]
    return f"\n`{result['command']}`, {result['date']}, {machine['processor']}, {machine['threads']} thread(s).\n"


def exits() -> str:
    """Mean exit layer by SNR."""
    result = read("noise_curve")
    rows = [row for row in result["rows"] if row["set"] == "all"]
    conditions = list(dict.fromkeys(row["snr_db"] for row in rows))
    lines = []
    for heads, policy in dict.fromkeys((row["heads"], row["policy"]) for row in rows):
        cells = [
            next(r for r in rows if (r["heads"], r["policy"], r["snr_db"]) == (heads, policy, snr))
            for snr in conditions
        ]
        lines.append([heads, policy, *(f"{c['mean_exit_layer']:.1f} ({c['low']:.1f}-{c['high']:.1f})" for c in cells)])
    return table(["heads trained on", "policy", *map(snr_name, conditions)], lines) + source(result)


def heads() -> str:
    """Held-out loss and accuracy of each head."""
    result = read("heads")
    kinds = list(dict.fromkeys(row["heads"] for row in result["rows"]))
    layers = sorted({row["layer"] for row in result["rows"]})

    def cell(kind: str, condition: str, layer: int, field: str) -> str:
        row = next(r for r in result["rows"] if (r["heads"], r["condition"], r["layer"]) == (kind, condition, layer))
        return f"{row[field]:.2f}"

    columns = [(kind, condition) for kind in kinds for condition in ("clean", "0 dB")]
    header = ["layer", *(f"{kind} heads, {condition}: nats / accuracy" for kind, condition in columns)]
    lines = [
        [str(layer), *(f"{cell(k, c, layer, 'loss_nats')} / {cell(k, c, layer, 'accuracy')}" for k, c in columns)]
        for layer in layers
    ]
    return table(header, lines) + source(result)


def parity() -> str:
    """Largest difference from fairseq."""
    result = read("parity")
    models = list(dict.fromkeys(row["model"] for row in result["rows"]))
    lines = []
    for model in models:
        rows = [row for row in result["rows"] if row["model"] == model]
        lines.append([model, str(len(rows)), f"{max(row['max_abs_diff_over_std'] for row in rows):.1e}"])
    return table(["model", "layers", "largest difference / standard deviation"], lines) + source(result)


def pretraining() -> str:
    """Masked prediction of each network, on the same units."""
    result = read("pretraining")
    conditions = list(dict.fromkeys(row["condition"] for row in result["rows"]))
    groups = dict.fromkeys((row["units"], row["model"], row["classifier"]) for row in result["rows"])
    lines = []
    for group in groups:
        chosen = [row for row in result["rows"] if (row["units"], row["model"], row["classifier"]) == group]
        lines.append([*group, *(f"{row['loss_nats']:.2f} / {row['accuracy']:.2f}" for row in chosen)])
    return table(["units", "network", "head", *(f"{c}: nats / accuracy" for c in conditions)], lines) + source(result)


def probes() -> str:
    """Linear probes: some layers, and the best."""
    result = read("probes")
    last = max(row["layer"] for row in result["rows"])
    layers = [0, *range(last // 4, last + 1, last // 4)]
    lines = []
    for task, name in dict.fromkeys((row["task"], row["features"]) for row in result["rows"]):
        rows = {row["layer"]: row for row in result["rows"] if (row["task"], row["features"]) == (task, name)}
        cells = [f"{rows[layer]['accuracy']:.3f}" if len(rows) > 1 else "" for layer in layers]
        best = max(rows.values(), key=lambda row: row["train_accuracy"])
        where = f" at {best['layer']}" if len(rows) > 1 else ""
        lines.append([task, name, *cells, f"{best['accuracy']:.3f} ({best['low']:.3f}-{best['high']:.3f}){where}"])
    header = ["task", "features", *(f"layer {layer}" for layer in layers), "best by cross-validation on train"]
    return table(header, lines) + source(result)


def units_on(name: str) -> Callable[[], str]:
    """What units of each layer tell, from results/NAME.json."""

    def units() -> str:
        result = read(name)
        fields = ("word_information", "word_purity", "speaker_information", "stability", "noise_stability_10_db")
        header = [
            "features",
            "layer",
            "form",
            "word information",
            "purity",
            "speaker information",
            "stability",
            "10 dB",
        ]
        lines = []
        for row in result["rows"]:
            layer = "" if row["features"] == "mfcc" else str(row["layer"])
            form = "centred" if row["centred"] else "raw"
            lines.append([row["features"], layer, form, *(f"{row[field]:.3f}" for field in fields)])
        return table(header, lines) + source(result)

    return units


def ablations() -> str:
    """Each variant of the recipe: losses, agreement with clean units at the first and the best layer, keyword probe."""
    result = read("ablations")
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
    return table(header, lines) + source(result)


TABLES: dict[str, Callable[[], str]] = {
    "exits": exits,
    "heads": heads,
    "parity": parity,
    "pretraining": pretraining,
    "probes": probes,
    "units": units_on("units"),
    "units_digits": units_on("units_digits"),
    "ablations": ablations,
}


def render(text: str) -> str:
    """A page with every table made again."""
    return BLOCK.sub(lambda block: block[1] + TABLES[block[2]]() + block[3], text)


def main(pages: Iterable[Path] = PAGES) -> None:
    for page in pages:
        files.write(page, render(page.read_text(encoding="utf-8")).encode())


if __name__ == "__main__":
    main()
