"""Runs of a task on an upstream: their identity, how to finish them, and the rows of finished runs."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.minisuperb.settings import add_recipe, digest_task, digest_upstream, read_spec
from benchmarks.minisuperb.tasks import TITLES
from benchmarks.minisuperb.timing import Factors
from benchmarks.minisuperb.upstreams import Upstream
from benchmarks.minisuperb.worker import LOCK, hold_run
from benchmarks.shared.results import Row
from benchmarks.shared.script import module_command, module_environment
from daisy import _files
from daisy.errors import OutputError

NOT_IDENTITY = ("cache",)
"""Settings that are not part of a run's identity."""
MAX_WORDS = 30
"""Maximum number of words shown of a failed run's output."""
console = Console()


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run, which makes the rows of one task, upstream and seed."""

    task: str
    upstream: Upstream
    seed: int
    folder: Path
    spec: dict[str, Any]

    @property
    def title(self) -> str:
        """Label in the progress bar."""
        return f"{self.task} {self.upstream.name} seed {self.seed}"

    def is_finished(self, overwrite: bool) -> bool:
        """Tell whether the run is finished.

        Raises:
            OutputError: if the folder holds a run with other settings, and ``overwrite`` is not set.
        """
        changed = self._list_changes()
        if changed and not overwrite:
            raise OutputError(f"{self.folder}: holds a run with another {', '.join(changed)}; give --overwrite")
        return not changed and (self.folder / "result.json").is_file()

    def prepare(self, overwrite: bool) -> bool:
        """Write run.json, replacing a run with other settings; return whether there is anything left to do.

        Raises:
            OutputError: as in `is_finished`, or if another process is working on this run.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with hold_run(self.folder):
            if self.is_finished(overwrite):
                return False
            if self._list_changes():
                self._remove_files()
            _files.write_json(self.folder / "run.json", self.spec)
        return True

    def _list_changes(self) -> list[str]:
        """List the settings in which this run differs from the run in the folder."""
        path = self.folder / "run.json"
        if not path.is_file():
            return []
        before, now = read_spec(path), add_recipe(self.spec)
        keys = {*before, *now} - {*NOT_IDENTITY}
        return sorted(key for key in keys if before.get(key) != now.get(key))

    def _remove_files(self) -> None:
        """Remove everything in the folder except its lock; run.json, which identifies the rest, goes last."""
        paths = [path for path in self.folder.iterdir() if path.name not in (LOCK, "run.json")]
        for path in [*paths, self.folder / "run.json"]:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()


def execute(run: Run) -> str:
    """Finish a run in a process of its own; return an error message, or an empty string."""
    environment = {**module_environment(), "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    command = module_command("benchmarks.minisuperb.worker", [str(run.folder)])
    log = run.folder / "stderr.log"
    with open(log, "w", encoding="utf-8") as stream:
        ended = subprocess.run(command, stdout=stream, stderr=subprocess.STDOUT, env=environment, check=False)
    if ended.returncode == 0:
        return ""
    words = log.read_text(encoding="utf-8", errors="replace").split()
    return f"{run.title}: {' '.join(words[-MAX_WORDS:]) or f'ended with {ended.returncode}'} ({log})"


def finish_runs(runs: list[Run], *, jobs: int, overwrite: bool) -> list[str]:
    """Finish all runs, task by task; return the error messages of failed runs.

    Ctrl-C stops the current runs and starts no others.

    Args:
        runs: runs to finish; finished ones are skipped.
        jobs: number of parallel runs.
        overwrite: whether to restart runs that have other settings.
    """
    unfinished = [run for run in runs if not run.is_finished(overwrite)]
    console.print(f"{len(unfinished)} runs to do, {len(runs) - len(unfinished)} finished before")
    failures: list[str] = []
    stopped = threading.Event()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bar, ThreadPoolExecutor(jobs) as pool:
        progress = bar.add_task("runs", total=len(unfinished))

        def finish(run: Run) -> None:
            if stopped.is_set():
                return
            bar.update(progress, description=run.title)
            try:
                failure = execute(run) if run.prepare(overwrite) else ""
            except OutputError as error:
                failure = f"{run.title}: {error}"
            if failure and not stopped.is_set():
                failures.append(failure)
                bar.console.print(failure, style="red", soft_wrap=True, markup=False)
            bar.advance(progress)

        try:
            for future in [pool.submit(finish, run) for run in unfinished]:
                future.result()
        except KeyboardInterrupt:
            stopped.set()  # the workers have received Ctrl-C too
            raise
    return failures


def read_rows(
    folder: Path, factors: Factors, belongs: Callable[[dict[str, Any]], bool] = lambda spec: True
) -> list[Row]:
    """Read the rows of all finished runs: one for each metric, test set and seed.

    Args:
        folder: folder of the runs.
        factors: real-time factors from `timing.read_factors`.
        belongs: tells, given a run's run.json, whether the run belongs in the table.

    Raises:
        OutputError: if a run's files cannot be read.
    """
    rows = []
    for path in sorted(folder.glob("*/*/*/*/result.json")):
        try:
            spec = read_spec(path.parent / "run.json")
            if not belongs(spec):
                continue
            result = json.loads(path.read_text(encoding="utf-8"))
            for test in result["tests"]:
                key = (spec["task"], spec["name"], test["condition"], spec["checkpoint"], spec["device"])
                factor = {"upstream_real_time_factor": factors.get(key)}
                rows += [_make_row(spec, result, test, *metric) | factor for metric in test["metrics"].items()]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise OutputError(f"{path}: not a finished run ({error!r}); remove its folder") from None
    return rows


def _make_row(spec: dict[str, Any], result: dict[str, Any], test: dict[str, Any], metric: str, value: float) -> Row:
    exits = test["exits"] or {}
    full = {"depth": 1.0, "macs_share": 1.0} if spec["name"] == "hubert" else {}
    return {
        "task": spec["task"],
        "upstream": spec["name"],
        "policy": spec["policy"],
        "featurizer": spec["featurizer"],
        "target_depth": spec["target_depth"],
        "depth": exits.get("depth", full.get("depth")),
        "mean_exit_layer": exits.get("mean_exit_layer"),
        "macs_share": exits.get("macs_share", full.get("macs_share")),
        "condition": TITLES[test["condition"]],
        "metric": metric,
        "value": value if math.isfinite(value) else None,
        "seed": spec["seed"],
        "num_utterances": exits.get("utterances"),
        "steps": spec["config"]["runner"]["total_steps"],
        "scored": test["checkpoint"],
        "model": spec["checkpoint"] and spec["checkpoint"][:12],
        "task_digest": digest_task(spec["config"], Path(spec["corpus"]), spec["recipe"]),
        "upstream_digest": digest_upstream(spec),
        "processor": result.get("processor"),
        "train_sec": result["train_sec"],
        "evaluate_sec": test["evaluate_sec"],
    }
