"""Long measurements in steps: each writes its rows when it ends, and the same command goes on with the others."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.shared.results import Row, read_rows_beside, write_result
from daisy.errors import DaisyError


@dataclass(frozen=True, kw_only=True)
class Step:
    """One measurement.

    Args:
        key: fields that all of its rows have, and no other step's.
        measure: makes the rows.
    """

    key: dict[str, Any]
    measure: Callable[[], Iterable[Row]]

    def owns(self, row: Row) -> bool:
        """Tell whether a row is of this step."""
        return all(row.get(name) == value for name, value in self.key.items())


def add_options(parser: argparse.ArgumentParser, parts: Sequence[str]) -> None:
    """Add what `run_steps` is told on the command line."""
    parser.add_argument("--parts", nargs="+", default=list(parts), choices=parts)
    parser.add_argument("--again", action="store_true", help="measure also what has rows already")
    parser.add_argument(
        "--minutes", type=float, default=float("inf"), help="begin nothing more after so many; the same command goes on"
    )


def run_steps(
    name: str, steps: Iterable[Step], arguments: argparse.Namespace, *, data: str = "", data_before: str = ""
) -> None:
    """Measure what has no rows in results/NAME.json yet, and write them there step by step; with --quick only print.

    Args:
        name: of the result.
        steps: to measure.
        arguments: of `add_options`, and ``quick``.
        data: identifies what all steps are measured on; rows say so in their field ``data``.
        data_before: what rows without that field were measured on.

    Raises:
        DaisyError: where there are rows of other data.
    """
    begun = time.monotonic()
    rows: list[Row] = [] if arguments.quick else read_rows_beside(name)
    if other := {row.get("data", data_before) for row in rows} - {data}:
        raise DaisyError(
            f"results/{name}.json was measured on other data ({', '.join(sorted(other))}, and these are {data}): "
            "--quick writes nothing; to measure all anew remove the file"
        )
    for step in steps:
        if not arguments.quick and not arguments.again and any(map(step.owns, rows)):
            print(f"there already: {step.key}", flush=True)
            continue
        if time.monotonic() > begun + 60 * arguments.minutes:
            print(f"left: {step.key} and what follows; the same command goes on", flush=True)
            return
        measured = []
        for row in step.measure():
            print(row, flush=True)
            measured.append({**row, **step.key} | ({"data": data} if data else {}))
        if not arguments.quick:
            rows = [row for row in rows if not step.owns(row)] + measured
            write_result(name, rows, [])
