"""Progress of a long task: a bar on a terminal, otherwise a plain line every ten seconds."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from types import TracebackType

INTERVAL_SEC = 10.0
"""Seconds between two lines. A shorter task prints none."""

Advance = Callable[[int], None]
"""Called with the number of steps just done."""
Describe = Callable[[], str]
"""Returns a remark on a task's state; may be empty."""


def _say_nothing() -> str:
    return ""


@contextlib.contextmanager
def track(description: str, total: int | None = None, detail: Describe = _say_nothing) -> Iterator[Advance]:
    """Show the progress of a task on stderr.

    Args:
        description: name of the task.
        total: number of steps; None if unknown.
        detail: returns a remark on the task's state.

    Yields:
        The function to call with numbers of finished steps.
    """
    if sys.stderr.isatty() and os.environ.get("TERM") not in ("dumb", "unknown"):
        with _draw_bar(description, total, detail) as advance:
            yield advance
    else:
        with ProgressLines(description, total, interval=INTERVAL_SEC, detail=detail) as lines:
            yield lines.advance


@contextlib.contextmanager
def _draw_bar(description: str, total: int | None, detail: Describe) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[detail]}", markup=False),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(description, total=total, detail="")
        yield lambda count: bar.update(task, advance=count, detail=detail())


def _print_if_possible(line: str) -> None:
    """Print to stderr; ignore a failure, such as a log on a full disk: the task matters more than its progress."""
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)


class ProgressLines:
    """A context in which a thread prints the progress of a task and, at the end, its duration.

    Args:
        description: name of the task.
        total: number of steps; None if unknown.
        interval: seconds between two lines; a shorter task prints nothing.
        clock: returns the time in seconds.
        write: prints a line.
        detail: returns a remark on the task's state.
    """

    def __init__(
        self,
        description: str,
        total: int | None,
        *,
        interval: float,
        clock: Callable[[], float] = time.monotonic,
        write: Callable[[str], None] = _print_if_possible,
        detail: Describe = _say_nothing,
    ):
        self.description, self.total, self.interval = description, total, interval
        self.done = 0
        self._clock, self._write, self._detail = clock, write, detail
        self._start = clock()
        self._first: tuple[float, int] | None = None
        """Time and steps of the first `advance`, which includes steps finished by an earlier run."""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self.report, args=(self._ended.wait,), daemon=True)

    def __enter__(self) -> ProgressLines:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        if self._clock() - self._start > self.interval:
            self._write(self.describe())

    def advance(self, count: int) -> None:
        """Count finished steps."""
        self.done += count
        self._first = self._first or (self._clock(), self.done)

    def report(self, wait: Callable[[float], bool]) -> None:
        """Print a line at every interval.

        Args:
            wait: waits for this many seconds, or less if the task ends, and returns whether it has ended.
        """
        while not wait(self.interval):
            self._write(self.describe())

    def describe(self) -> str:
        """Return the line "extracting: 130 of 500, 0:01:30 elapsed, 0:04:20 remaining"."""
        now = self._clock()
        parts = [f"{_format_seconds(now - self._start)} elapsed"]
        if self.total is not None or self.done:
            parts.insert(0, f"{self.done} of {self.total}" if self.total is not None else f"{self.done} done")
        if (remaining := self._estimate_remaining(now)) is not None:
            parts.append(f"{_format_seconds(remaining)} remaining")
        if detail := self._detail():
            parts.append(detail)
        return f"{self.description}: {', '.join(parts)}"

    def _estimate_remaining(self, now: float) -> float | None:
        """Estimate seconds by the speed since the first steps; return None if unknown, or if nothing remains."""
        if self.total is None or self._first is None or self.done >= self.total:
            return None
        since, before = self._first
        if self.done == before:
            return None
        return (now - since) / (self.done - before) * (self.total - self.done)


def _format_seconds(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
