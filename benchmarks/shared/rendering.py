"""Markdown of measured tables."""

from collections.abc import Iterable


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Lines of a table."""
    lines = [list(header), *map(list, rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"


def source(result: dict, threads: bool = True) -> str:
    """How and on what a result was measured; without the number of threads where rows have their own."""
    machine = result["machine"]
    used = f", {machine['threads']} thread(s)" if threads else ""
    on = machine["gpu"] if "--device cuda" in result["command"] else f"{machine['processor']}{used}"
    return f"\n`{result['command']}`, {result['date']}, {on}.\n"


SETTING = ("size", "precision", "batch", "lengths", "threads")
"""Of a row of latency.json, which is a system's."""


def by_setting(rows: Iterable[dict]) -> dict[tuple, dict[str, dict]]:
    """Rows of latency.json by setting, and there by system."""
    found: dict[tuple, dict[str, dict]] = {}
    for row in rows:
        found.setdefault(tuple(row[key] for key in SETTING), {})[row["system"]] = row
    return found


def ratio(row: dict, name: str = "ratio", digits: int = 2) -> str:
    """Median and quartiles."""
    middle, low, high = (f"{row[key]:.{digits}f}" for key in (name, f"{name}_low", f"{name}_high"))
    return f"{middle} ({low}-{high})"
