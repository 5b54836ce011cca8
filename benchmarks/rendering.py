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
    return f"\n`{result['command']}`, {result['date']}, {machine['processor']}{used}.\n"
