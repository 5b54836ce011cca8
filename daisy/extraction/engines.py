"""Engines that run an extraction's tasks: in this process, or in others (`daisy.distributed.extraction`)."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from daisy.encoder import EarlyExitEncoder
from daisy.extraction.batch_encoder import Outcome
from daisy.extraction.scratch import remove_abandoned
from daisy.extraction.tasks import Task, TaskEncoder


class Engine(Protocol):
    """Runs tasks and yields their outcomes."""

    has_workers: bool
    """Whether other processes than this one write files. If killed, they leave half-written files; so do workers of an
    earlier, killed run, which may end only after this one has begun."""

    def open(self, encoder: EarlyExitEncoder) -> AbstractContextManager[object]:
        """Get ready for as long as the context lasts, before an earlier run is deleted to make room for this one.

        Args:
            encoder: encoder that will run.

        Raises:
            UsageError: if nothing could run.
        """
        ...

    def encode(
        self, task_encoder: TaskEncoder, tasks: Iterable[Task], run_file: Path
    ) -> Generator[Iterable[Outcome], None, None]:
        """Encode all tasks and write their files.

        Args:
            task_encoder: encoder of tasks.
            tasks: tasks, taken one by one as there is room for them.
            run_file: a file in the run's folder; a machine that sees the file sees the folder.

        Yields:
            The outcomes of a task or part of a task, with tasks in any order and each recording once. Yielded outcomes
                are finished: their files are complete. A list has recordings that were finished together.

        Raises:
            OutputError: if a file cannot be written.
        """
        ...


class LocalEngine:
    """Run tasks in this process, one after the other and in order."""

    has_workers = False

    def open(self, encoder: EarlyExitEncoder) -> AbstractContextManager[object]:
        """Do nothing: this process is ready."""
        return contextlib.nullcontext()

    def encode(
        self, task_encoder: TaskEncoder, tasks: Iterable[Task], run_file: Path
    ) -> Generator[Iterable[Outcome], None, None]:
        """Encode all tasks; without shard files a task's recordings are finished one by one."""
        remove_abandoned()
        for task in tasks:
            outcomes = task_encoder.encode(task)
            yield list(outcomes) if task.shard else outcomes
