"""Renders the README's tables from results/*.json, between ``<!-- table NAME -->`` and ``<!-- end -->``.

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


TABLES: dict[str, Callable[[], str]] = {"exits": exits, "heads": heads, "parity": parity}


def render(text: str) -> str:
    """The README with every table made again."""
    return BLOCK.sub(lambda block: block[1] + TABLES[block[2]]() + block[3], text)


def main(path: Path = README) -> None:
    files.write(path, render(path.read_text(encoding="utf-8")).encode())


if __name__ == "__main__":
    main()
