"""Long measurements in steps: each step writes its rows when it ends, and the same command continues with the rest."""

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
        key: fields that all of its rows have, and that no row of another step has.
        measure: function that makes the rows.
    """

    key: dict[str, Any]
    measure: Callable[[], Iterable[Row]]

    def owns(self, row: Row) -> bool:
        """Tell whether a row belongs to this step."""
        return all(row.get(name) == value for name, value in self.key.items())


def add_options(parser: argparse.ArgumentParser, parts: Sequence[str]) -> None:
    """Add the command-line options of `run_steps`."""
    parser.add_argument("--parts", nargs="+", default=list(parts), choices=parts)
    parser.add_argument("--again", action="store_true", help="repeat measurements that have rows already")
    parser.add_argument(
        "--minutes", type=float, default=float("inf"), help="start no step after this time; the same command continues"
    )


def run_steps(
    name: str, steps: Iterable[Step], arguments: argparse.Namespace, *, data: str = "", data_before: str = ""
) -> None:
    """Run the steps without rows in results/NAME.json, and write their rows there; with --quick only print them.

    Args:
        name: name of the result.
        steps: steps to measure.
        arguments: parsed options of `add_options`, and ``quick``.
        data: identifier of the data that all steps are measured on; rows have it in their field ``data``.
        data_before: identifier of the data that rows without that field were measured on.

    Raises:
        DaisyError: if there are rows of other data.
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
