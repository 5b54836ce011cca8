"""Code shared by all scripts: their name, options and exit status, and ways to start other programs."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from daisy.errors import DaisyError, OutputError, UsageError

ROOT = Path(__file__).resolve().parents[2]
"""Root of the checkout."""
RUNS = ROOT / "runs"
"""Folder where long runs keep their files."""


def script_command() -> list[str]:
    """Return the command of the running script: ``python -m benchmarks.PACKAGE.SCRIPT``, or another program's name."""
    path = Path(sys.argv[0]).resolve()
    if path.suffix != ".py" or not path.is_relative_to(ROOT):
        return [path.name]
    return ["python", "-m", ".".join(path.relative_to(ROOT).with_suffix("").parts)]


def run_script(main: Callable[[], None]) -> None:
    """Run a script; daisy's errors end it with a one-line message and exit status 1."""
    try:
        main()
    except DaisyError as error:
        sys.exit(f"{script_command()[-1]}: {error}")


def make_parser(doc: str | None, quick: str = "") -> argparse.ArgumentParser:
    """Make a script's parser.

    Args:
        doc: docstring of the script.
        quick: help text of ``--quick``; without one there is no such option.
    """
    parser = argparse.ArgumentParser(
        prog=" ".join(script_command()), description=doc, formatter_class=argparse.RawTextHelpFormatter
    )
    if quick:
        parser.add_argument("--quick", action="store_true", help=quick)
    return parser


def multiplies_bfloat16(device: str) -> bool:
    """Tell whether bfloat16 is faster than float32: on GPUs, and on CPUs with instructions for it."""
    if device == "cuda":
        return True
    return bool({"avx512_bf16", "amx_bf16"}.intersection(Path("/proc/cpuinfo").read_text(encoding="utf-8").split()))


def parse_positive(text: str) -> int:
    """Read a whole number above 0, for argparse.

    Raises:
        ArgumentTypeError: if it is not one.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be a whole number above 0")
    return int(text)


def parse_pairs(texts: Iterable[str]) -> list[tuple[str, str]]:
    """Parse ``NAME=VALUE`` texts, such as names of checkpoints and their paths.

    Raises:
        UsageError: if a text has no name or no value.
    """
    pairs = []
    for text in texts:
        name, _, value = text.partition("=")
        if not name or not value:
            raise UsageError(f"{text!r}: must be NAME=VALUE")
        pairs.append((name, value))
    return pairs


def run_command(*command: str, log: Path | None = None, accepted: Iterable[int] = (0,)) -> None:
    """Run a command of this environment on one core, and write its output to ``log`` if there is one.

    Raises:
        OutputError: if it ends with an exit status that is not accepted.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HYDRA_FULL_ERROR": "1"}
    beside = Path(sys.executable).parent / command[0]
    program = str(beside) if beside.exists() else command[0]
    with open(log or os.devnull, "a", encoding="utf-8") as stream:
        ended = subprocess.run([program, *command[1:]], stdout=stream, stderr=stream, env=environment)
    if ended.returncode not in accepted:
        where = f"; see {log}" if log else ""
        raise OutputError(f"{' '.join(command[:4])} …: exit status {ended.returncode}{where}")


def module_command(module: str, arguments: Sequence[str]) -> list[str]:
    """Return the command that runs a module of this package with this Python, in `module_environment`."""
    return [sys.executable, "-m", module, *arguments]


def module_environment() -> dict[str, str]:
    """Return an environment in which this package can be imported from any working directory."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
