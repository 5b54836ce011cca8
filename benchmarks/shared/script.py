"""What all scripts share: their name, their options, how they end, and how they start others."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from daisy.errors import DaisyError, OutputError, UsageError

ROOT = Path(__file__).resolve().parents[2]
"""The checkout."""
RUNS = ROOT / "runs"
"""Where long runs keep what they made."""


def script_command() -> list[str]:
    """Return how the running script is called: ``python -m benchmarks.PACKAGE.SCRIPT``, or another program's name."""
    path = Path(sys.argv[0]).resolve()
    if path.suffix != ".py" or not path.is_relative_to(ROOT):
        return [path.name]
    return ["python", "-m", ".".join(path.relative_to(ROOT).with_suffix("").parts)]


def run_script(main: Callable[[], None]) -> None:
    """Run a script; what daisy refuses is one line and exit status 1."""
    try:
        main()
    except DaisyError as error:
        sys.exit(f"{script_command()[-1]}: {error}")


def make_parser(doc: str | None, quick: str = "") -> argparse.ArgumentParser:
    """Make a script's parser.

    Args:
        doc: the script's docstring.
        quick: what ``--quick`` does; empty: there is no such option.
    """
    parser = argparse.ArgumentParser(
        prog=" ".join(script_command()), description=doc, formatter_class=argparse.RawTextHelpFormatter
    )
    if quick:
        parser.add_argument("--quick", action="store_true", help=quick)
    return parser


def multiplies_bfloat16(device: str) -> bool:
    """Tell whether bfloat16 is faster than float32: on GPUs, and on CPUs that have instructions for it."""
    if device == "cuda":
        return True
    return bool({"avx512_bf16", "amx_bf16"}.intersection(Path("/proc/cpuinfo").read_text(encoding="utf-8").split()))


def parse_positive(text: str) -> int:
    """Read a whole number above 0, for argparse.

    Raises:
        ArgumentTypeError: where it is none.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be a whole number above 0")
    return int(text)


def parse_pairs(texts: Iterable[str]) -> list[tuple[str, str]]:
    """Read ``NAME=VALUE`` texts, such as names of checkpoints and their paths.

    Raises:
        UsageError: on a text without a name or a value.
    """
    pairs = []
    for text in texts:
        name, _, value = text.partition("=")
        if not name or not value:
            raise UsageError(f"{text!r}: must be NAME=VALUE")
        pairs.append((name, value))
    return pairs


def run_command(*command: str, log: Path | None = None, accepted: Iterable[int] = (0,)) -> None:
    """Run a command of this environment on one core; its output goes to ``log``, or nowhere.

    Raises:
        OutputError: where it ends with another exit status than those accepted.
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
    """Return an environment in which this package is found from any working directory."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
