"""The format of results/NAME.json: rows, the command, date and machine of the measurement."""

from __future__ import annotations

import datetime
import json
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from benchmarks.shared.script import ROOT, script_command
from daisy import _files
from daisy.errors import DaisyError

Row = dict[str, Any]
"""Row of a result: flat, with units in the fields' names."""
Result = dict[str, Any]
"""Content of results/NAME.json."""
RESULTS = ROOT / "benchmarks" / "results"
PACKAGES = (
    "torch",
    "torchaudio",
    "numpy",
    "soundfile",
    "fairseq",
    "fairseq-fixed",
    "s3prl",
    "transformers",
    "daisy-speech",
)
"""Packages whose versions are stored with the results."""
INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_int8")
"""Instructions that some processors of the same name lack; timings depend on them."""
MODEL_FIELDS = ("processor_family", "processor_model", "instructions")
"""Fields of a machine that older results lack."""
CPU_INFO = Path("/proc/cpuinfo")


def write_result(name: str, rows: list[Row], arguments: Sequence[str] | None = None) -> None:
    """Write results/NAME.json, from which the README's tables are made.

    Args:
        name: name of the file.
        rows: measured rows.
        arguments: command-line arguments that make all rows, if this call made only some; default: those of this call.
    """
    path = RESULTS / f"{name}.json"
    _files.write_json(
        path,
        {
            "name": name,
            "command": shlex.join([*script_command(), *(sys.argv[1:] if arguments is None else arguments)]),
            "date": datetime.date.today().isoformat(),
            "machine": describe_machine(),
            "versions": list_versions(),
            "rows": rows,
        },
    )
    print(f"{path}: {len(rows)} rows")


def read_result(name: str) -> Result:
    """Read a stored result."""
    result: Result = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return result


def read_rows_beside(name: str, *, timed: bool = True) -> list[Row]:
    """Read the existing rows of results/NAME.json, to which others will be added; empty if there is no such file.

    Args:
        name: name of the file.
        timed: whether its rows contain times, so that they must come from this machine.

    Raises:
        DaisyError: if they come from another machine or other versions, so that one file could not state its origin.
    """
    if not (RESULTS / f"{name}.json").is_file():
        return []
    result = read_result(name)
    if (timed and not _is_of_this_machine(result)) or result["versions"] != list_versions():
        raise DaisyError(
            f"results/{name}.json was measured {'on another machine or ' if timed else ''}with other versions: --quick "
            "writes nothing; to measure all anew remove the file"
        )
    rows: list[Row] = result["rows"]
    return rows


def _is_of_this_machine(result: Result) -> bool:
    """Tell whether a result comes from a machine like this one; processor fields that it lacks are not compared."""
    before = result["machine"]
    now = {name: value for name, value in describe_machine().items() if name in before or name not in MODEL_FIELDS}
    return {**before, "threads": None} == {**now, "threads": None}


def replace_rows(rows: Sequence[Row], name: str, fields: Sequence[str], *, timed: bool = True) -> list[Row]:
    """Return the rows of results/NAME.json, after replacing those with the same values in some fields by new rows.

    Raises:
        DaisyError: as in `read_rows_beside`.
    """
    measured = {tuple(row[field] for field in fields) for row in rows}
    before = read_rows_beside(name, timed=timed)
    return [*(row for row in before if tuple(row[field] for field in fields) not in measured), *rows]


def describe_machine() -> dict[str, Any]:
    """Describe the machine of the measurement."""
    return {
        "processor": read_processor(),
        **read_processor_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
    } | ({"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {})


def list_versions() -> dict[str, str]:
    """Return the versions of Python and of the installed `PACKAGES`."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def read_processor() -> str:
    """Read the processor's name."""
    return _read_cpu_info().get("model name", platform.processor() or platform.machine())


def read_processor_model() -> dict[str, Any]:
    """Read those `MODEL_FIELDS` that the system provides: many processors share one name."""
    info = _read_cpu_info()
    numbers = {"processor_family": info.get("cpu family"), "processor_model": info.get("model")}
    fields: dict[str, Any] = {name: int(text) for name, text in numbers.items() if text}
    if "flags" in info:
        fields["instructions"] = [name for name in INSTRUCTIONS if name in info["flags"].split()]
    return fields


def _read_cpu_info() -> dict[str, str]:
    """Read Linux's description of the first processor; empty on other systems."""
    try:
        first, *_ = CPU_INFO.read_text(encoding="utf-8").split("\n\n")
    except OSError:
        return {}
    return {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in first.splitlines())}
