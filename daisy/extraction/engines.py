"""What runs an extraction's tasks: this process, or others (`daisy.distributed.extraction`)."""

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
    """Runs tasks, and says what came out of each."""

    has_workers: bool
    """Whether other processes than this one write files. Those that are killed leave half-written ones, also those of a
    run that was killed before, which may end only after this one has begun."""

    def open(self, encoder: EarlyExitEncoder) -> AbstractContextManager[object]:
        """Get ready, for as long as the context lasts: before an earlier run is taken away for this one.

        Args:
            encoder: that will run.

        Raises:
            UsageError: where nothing could run.
        """
        ...

    def encode(
        self, task_encoder: TaskEncoder, tasks: Iterable[Task], run_file: Path
    ) -> Generator[Iterable[Outcome], None, None]:
        """Encode all tasks and write their files.

        Args:
            task_encoder: what does them.
            tasks: taken one by one, as there is somebody to do them.
            run_file: a file of the run, in its folder: whoever sees it sees the folder.

        Yields:
            A task's outcomes, or those of a part of it, in any order of the tasks; each recording's once. What is
            yielded is finished: its files are whole. A list is of recordings that were finished together.

        Raises:
            OutputError: where a file cannot be written.
        """
        ...


class LocalEngine:
    """Runs tasks in this process, one after the other, in their order."""

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
