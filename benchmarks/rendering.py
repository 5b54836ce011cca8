"""Markdown of measured tables."""

from collections.abc import Iterable


def table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Lines of a table."""
    lines = [list(header), *map(list, rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"


def source(result: dict) -> str:
    """How and on what a result was measured."""
    machine = result["machine"]
    return f"\n`{result['command']}`, {result['date']}, {machine['processor']}, {machine['threads']} thread(s).\n"
