"""What commands share: consoles, the progress bar, options, KEY=VALUE."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from daisy.errors import UsageError

output = Console(markup=False, highlight=False, emoji=False)
errors = Console(stderr=True, markup=False, highlight=False, emoji=False)

Checkpoint = Annotated[str, typer.Option("--checkpoint", "-c", help="A daisy checkpoint, or a bundled model's name.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder to write to.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1 …")]
DEFAULT_CHECKPOINT = "daisy-mini"
DEFAULT_POLICY = "plateau"


def command_line() -> str:
    """What was typed."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def progress_bar() -> Progress:
    """On stderr; drawn only where that is a terminal."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=errors, disable=not errors.is_terminal)


def printable(text: object) -> str:
    """Text for a terminal: names of files can hold bytes that are no text."""
    return str(text).encode(errors="backslashreplace").decode()


def checked_device(name: str) -> str:
    """A device that works here.

    Raises:
        UsageError: saying why it does not.
    """
    import torch

    if name.partition(":")[0] not in ("cpu", "cuda"):
        raise UsageError(f"--device {name}: cpu, cuda, cuda:1 … are what there is")
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"--device {name}: {str(error).splitlines()[0]}") from None
    return name


def pairs(texts: Iterable[str]) -> dict[str, str]:
    """``KEY=VALUE`` texts to a dictionary.

    Raises:
        UsageError: on a text without "=".
    """
    found = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise UsageError(f"--set takes KEY=VALUE, found {text!r}")
        found[key.strip()] = value.strip()
    return found


def numbers(texts: Iterable[str]) -> dict[str, float | int]:
    """``KEY=NUMBER`` texts to a dictionary; whole numbers stay whole.

    Raises:
        UsageError: on a value that is no number.
    """
    found: dict[str, float | int] = {}
    for key, value in pairs(texts).items():
        try:
            found[key] = int(value) if value.lstrip("+-").isdigit() else float(value)
        except ValueError:
            raise UsageError(f"--set {key} takes a number, found {value!r}") from None
    return found


def snrs(text: str) -> list[float | None]:
    """Signal-to-noise ratios: "clean,20,0" to [None, 20.0, 0.0].

    Raises:
        UsageError: on what is neither clean nor a number.
    """
    found: list[float | None] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        try:
            found.append(None if part == "clean" else float(part))
        except ValueError:
            raise UsageError(f"--snr takes clean and numbers in dB, found {part!r}") from None
    return found


def list_failures(failed: Mapping[str, str], total: int) -> None:
    """Name what could not be read; exit status 1 where there is any."""
    for reason in failed.values():
        errors.print(printable(f"failed: {reason}"), soft_wrap=True)
    if failed:
        errors.print(f"{len(failed)} of {total} recordings failed")
        raise typer.Exit(1)
