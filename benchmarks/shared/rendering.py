"""Markdown tables of results."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from benchmarks.shared.results import Result, Row

Columns = Mapping[str, Callable[[Row], str]]
"""Columns of a table: the header, and a function that makes the cell of a row."""


def render_table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Render the lines of a table."""
    lines = [list(header), *map(list, rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"


def render_source(result: Result, threads: bool = True) -> str:
    """Say how and on what machines a result was measured; omit the number of threads if rows have their own."""
    machine = result["machine"]
    if "--device cuda" in result["command"]:
        device = machine["gpu"]
    else:
        of_rows = dict.fromkeys(row["processor"] for row in result["rows"] if row.get("processor"))
        device = " and ".join(of_rows or [describe_processor(machine)])
        device += f", {machine['threads']} thread(s)" if threads else ""
    return f"\n`{result['command']}`, {result['date']}, {device}.\n"


def describe_processor(machine: Mapping[str, Any]) -> str:
    """Describe a processor by its name and, if the result has them, features that distinguish it from its namesakes."""
    parts = [
        f"{title} {machine[name]}"
        for title, name in (("family", "processor_family"), ("model", "processor_model"))
        if name in machine
    ]
    parts += machine.get("instructions", [])
    return machine["processor"] + (f" ({', '.join(parts)})" if parts else "")


def render_result(result: Result, header: Iterable[str], rows: Iterable[Iterable[str]], threads: bool = True) -> str:
    """Render a table and the machine that it was measured on."""
    return render_table(header, rows) + render_source(result, threads)


def format_significant(value: float, digits: int = 3) -> str:
    """Format with some significant digits, also for large numbers: 9,330 rather than 9.33e+03."""
    text = f"{value:.{digits}g}"
    return f"{float(text):,.0f}" if "e+" in text else text


def format_ratio(row: Row, name: str = "ratio", digits: int = 2) -> str:
    """Format a median with its quartiles."""
    median, low, high = (f"{row[key]:.{digits}f}" for key in (name, f"{name}_low", f"{name}_high"))
    return f"{median} ({low}-{high})"


def format_interval(row: Row, name: str, digits: int = 3) -> str:
    """Format an estimate with its interval, whose ends are the row's fields ``low`` and ``high``."""
    return f"{row[name]:.{digits}f} ({row['low']:.{digits}f}-{row['high']:.{digits}f})"


def format_field(name: str, form: str = "") -> Callable[[Row], str]:
    """Make a function that formats a field of a row."""
    return lambda row: format(row[name], form)


def render_columns(result: Result, rows: Iterable[Row], columns: Columns) -> str:
    """Render rows of a result, one line each, and the machine that it was measured on."""
    return render_result(result, columns, [[make_cell(row) for make_cell in columns.values()] for row in rows])
