"""Output of commands: lines, tables, and error messages with the option that helps."""

from __future__ import annotations

import io
import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from daisy.errors import DaisyError, Remedy

if TYPE_CHECKING:
    from rich.table import Table

    from daisy.audio import Findings

HINTS: dict[Remedy, str] = {
    "allow_pickle": "add --allow-pickle",
    "busy": "wait for it, use another --out, or let several share the work with --shard I/N",
    "calibrate": "daisy calibrate makes one",
    "convert": "other forms are read by: daisy convert {path} OUT",
    "feature_rate": "add --feature-rate N, how many of them a second has",
    "ctc": "train them with the fairseq plugin (daisy_ctc)",
    "diverged": "lower --lr, or set --clip-norm",
    "float32": "use --dtype float32 with another --out",
    "full_precision": "leave --half out",
    "in_windows": "give --window SEC, or split it",
    "label_set": "leave --label-set out",
    "layer": "add --layer N",
    "list": "make one of those files: daisy manifest FILES --root FOLDER --out NAME.tsv",
    "make_manifest": "make a manifest of it: daisy manifest {path} --out NAME.tsv",
    "max_sec": "split it, or raise --max-sec",
    "no_overrides": "--set is for weights without a configuration",
    "num_heads": "add --set num_heads=N",
    "other_out": "use another --out",
    "overwrite": "use another --out, or --overwrite",
    "ray": "pip install 'daisy-speech[ray]' has it",
    "recognition": "pip install 'daisy-speech[recognition]' has it",
    "root": "give another --root",
    "separate_out": "give them separate --out",
    "storage": "pip install 'daisy-speech[storage]' has it",
    "tokens": "add --tokens FILE",
    "wait": "wait for it, or use another --out",
    "window": "give --window SEC with another --out, or raise --max-sec",
    "workers": "--workers N waits 5 minutes for one to come",
}
"""Text to type for each remedy that the library names."""


def set_up_streams() -> None:
    """Make stdout and stderr escape characters outside their encoding, such as u00e9, rather than raise an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def say(text: str) -> None:
    """Print a line to stdout; it is never wrapped nor cut."""
    print(text)


def warn(text: str) -> None:
    """Print a line to stderr; it is never wrapped nor cut."""
    print(text, file=sys.stderr)


def name_same_command(overwrite: bool) -> str:
    """Return what resumes a stopped run: the same command, but without an option that would start over."""
    return "the same command without --overwrite" if overwrite else "the same command"


def say_table(table: Table) -> None:
    """Print a table at its natural width: on a narrow terminal its lines run on, and no value is cut."""
    from rich.console import Console
    from rich.text import Text

    console = Console(file=sys.stdout, markup=False, highlight=False, emoji=False)
    unbounded = console.options.update(width=sys.maxsize)
    options = unbounded.update(width=console.measure(table, options=unbounded).maximum)
    for segments in console.render_lines(table, options, pad=False):
        line = Text.assemble(*((segment.text, segment.style or "") for segment in segments))
        line.rstrip()
        console.print(line, soft_wrap=True)


def explain(error: DaisyError) -> str:
    """Return the text of an error, with the option or command that helps."""
    if error.remedy is None:
        return str(error)
    return f"{error.message}; {HINTS[error.remedy].format(path=shlex.quote(str(error.path)))}"


def warn_of_rest(findings: Findings) -> None:
    """Print how many files a search has skipped, by ending, and which folders it could not read."""
    for line in findings.describe_rest():
        warn(line)


def warn_of_sources(num_changed: int, num_gone: int) -> None:
    """Print how many finished recordings have changed since, and how many are gone."""
    if num_changed:
        warn(f"note: done again, as their files have another size or time than before: {num_changed} recordings")
    if num_gone:
        warn(f"note: kept, although their files are gone: the results of {num_gone} recordings")


def report_failures(reasons: Sequence[str], num_done: int) -> None:
    """Print why recordings failed; if any did, end with status 1, or 2 if nothing was done.

    Args:
        reasons: a line for each failed recording.
        num_done: number of the other recordings.
    """
    warn_of_failures(reasons)
    end_with_failures(len(reasons), num_done)


def warn_of_failures(reasons: Iterable[str]) -> None:
    """Print why recordings failed, one line each."""
    for reason in reasons:
        warn(f"failed: {reason}")


def end_with_failures(num_failed: int, num_done: int) -> None:
    """Print how many recordings failed; if any did, end with status 1, or 2 if nothing was done."""
    if num_failed:
        warn(f"{num_failed} of {num_failed + num_done} recordings failed")
        raise typer.Exit(1 if num_done else 2)


def format_command_line() -> str:
    """Return the command line as it was typed."""
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
