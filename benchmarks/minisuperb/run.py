"""MiniSUPERB's tasks on early-exit upstreams: one command, one table. Goes on where it stopped.

    python benchmarks/minisuperb/run.py daisy-mini --seeds 0 1 2 --jobs 2
    python benchmarks/minisuperb/run.py daisy-mini --tasks ks ic --upstreams never plateau-60 fixed-60 fbank
    python benchmarks/minisuperb/run.py hubert.safetensors --data published     # after prepare.py --published
    python benchmarks/minisuperb/run.py daisy-mini --quick                      # a few steps of everything

A finished run is not repeated, an interrupted one goes on, a failed one is reported and begun again by the next call.
The table has every finished run of the folder, so that a long comparison may be made in several calls.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import corpora
import table
import timing
import yaml
from tasks import AT_HAND, HERE, TASKS, conditions, configuration
from upstreams import Upstream, check_names, find, names

sys.path.append(str(HERE.parent))

from common import guarded, write
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from daisy import _files, checkpoints
from daisy.audio.files import find as find_audio
from daisy.cli.options import DEFAULT_POLICY, check_device
from daisy.errors import DaisyError, OutputError, UsageError, unknown_name

PUBLISHED = ("asr", "sid", "se", "ss")
LINK_IT = "link your corpus there, in the layout that s3prl's task reads"
QUICK_STEPS, QUICK_LIMIT = 4, 6
NOT_IDENTITY = ("cache",)
TIMES = "real_time_factors.json"
MODEL, OUT = "daisy-mini", HERE.parents[1] / "runs" / "minisuperb"
"""Of which the checked-in results are."""
console = Console()


@dataclass(frozen=True, kw_only=True)
class Run:
    """One row's work."""

    task: str
    upstream: Upstream
    seed: int
    folder: Path
    spec: dict

    @property
    def title(self) -> str:
        return f"{self.task} {self.upstream.name} seed {self.seed}"

    def prepare(self, overwrite: bool) -> bool:
        """Write run.json; whether there is anything left to do.

        Raises:
            OutputError: where the folder holds a run with other settings.
        """
        path = self.folder / "run.json"
        if path.is_file():
            before = json.loads(path.read_text(encoding="utf-8"))
            other = sorted(
                key
                for key in {**before, **self.spec}
                if key not in NOT_IDENTITY and before.get(key) != self.spec.get(key)
            )
            if other and not overwrite:
                raise OutputError(f"{self.folder}: holds a run with another {', '.join(other)}; give --overwrite")
            if other:
                shutil.rmtree(self.folder)
            elif (self.folder / "result.json").is_file():
                return False
        _files.write_json(path, self.spec)
        return True


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", nargs="?", default=MODEL, help="daisy checkpoint, or a bundled model's name")
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help=f"of {', '.join(TASKS)}")
    parser.add_argument(
        "--upstreams",
        nargs="+",
        metavar="NAME",
        help=f"such as {', '.join(names(DEFAULT_POLICY))}, or with other percentages;\n"
        "A@B: tested with A's exits, trained with B's",
    )
    parser.add_argument("--policy", default=DEFAULT_POLICY, help="which rule is set to 80, 60 and 40 %% depth")
    parser.add_argument("--featurizer", default="dynamic", choices=("stock", "dynamic", "dynamic-s"))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="N")
    parser.add_argument(
        "--data",
        default="small",
        choices=("small", "noisy", "published"),
        help="small: the shared recordings, trained on clean audio; noisy: on clean and noisy; published: your corpora",
    )
    parser.add_argument(
        "--calibrate-on",
        nargs="+",
        default=(),
        metavar="AUDIO",
        help="files, folders or globs to set the policies on, clean and with babble; else the shared dev sets",
    )
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--jobs", type=_count, default=1, help="runs at a time, each on one core")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--no-cache", action="store_true", help="run the upstream in every epoch")
    parser.add_argument("--drop-cache", action="store_true", help="remove the tasks' caches when all runs are finished")
    parser.add_argument(
        "--time", action="store_true", help="time the upstreams on test audio at the end; best on idle cores"
    )
    parser.add_argument("--quick", action="store_true", help="a few steps on a few recordings; no results file")
    parser.add_argument("--overwrite", action="store_true", help="begin runs with other settings anew")
    parser.add_argument("--table", action="store_true", help="run nothing: only make the table of what is finished")
    return parser.parse_args()


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: at least 1")
    return int(text)


def root_of(arguments: argparse.Namespace) -> Path:
    """Where corpora, policies, caches and runs lie."""
    return (arguments.out / (f"quick-{arguments.data}" if arguments.quick else arguments.data)).resolve()


def cache_of(task: str, arguments: argparse.Namespace) -> Path:
    """Full runs of a task's audio, which all of daisy's upstreams take their exits from."""
    return ((root_of(arguments) if arguments.quick else arguments.out) / "cache" / task).resolve()


def chosen_tasks(arguments: argparse.Namespace) -> list[str]:
    """The tasks that are asked for, each possible.

    Raises:
        UsageError: where one is not known, has no corpus here, or cannot be run by this s3prl.
    """
    published = arguments.data == "published"
    if published and arguments.time:
        raise UsageError("--time is for the shared recordings")
    chosen = list(dict.fromkeys(arguments.tasks or (PUBLISHED if published else AT_HAND)))
    for name in chosen:
        if name not in TASKS:
            raise UsageError(unknown_name("task", name, TASKS))
        if not published and name not in AT_HAND:
            raise UsageError(f"{name}: the shared recordings have no corpus for it; --data published")
        needs = TASKS[name].needs
        if needs and not _exists(needs):
            raise UsageError(f"{name} needs {needs}, which s3prl's wheel leaves out: install s3prl from its repository")
    return chosen


def _exists(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def corpus_of(task: str, arguments: argparse.Namespace, root: Path) -> Path:
    """Where a task's corpus lies; one of the shared recordings is built where it is not there yet.

    Raises:
        UsageError: where a published corpus was not prepared.
    """
    if arguments.data == "published":
        folder = (arguments.out / "published" / "corpora" / task).resolve()
        if not folder.is_dir():
            how = "benchmarks/minisuperb/prepare.py --published makes it" if task in PUBLISHED else LINK_IT
            raise UsageError(f"{folder}: not there; {how}")
        return folder
    console.print(f"{task}: corpus", style="dim")
    limit = QUICK_LIMIT if arguments.quick else None
    training = "noisy" if arguments.data == "noisy" else "clean"
    return corpora.build(task, root / "corpora", limit=limit, overwrite=arguments.overwrite, training=training)


def runs_of(task: str, corpus: Path, found: list[Upstream], arguments: argparse.Namespace, root: Path) -> Iterator[Run]:
    """All runs of a task."""
    published = arguments.data == "published"
    config = yaml.safe_load(configuration(TASKS[task], corpus, published))
    if arguments.quick:
        steps = {"total_steps": QUICK_STEPS, "eval_step": QUICK_STEPS, "save_step": QUICK_STEPS, "log_step": 1}
        config["runner"] |= steps
    for upstream in found:
        featurizer = arguments.featurizer if upstream.exits else "stock"
        options = ["--upstream_feature_normalize"]
        options += ["--featurizer", featurizer] if upstream.exits else []
        cached = upstream.exits and not arguments.no_cache
        for seed in dict.fromkeys(arguments.seeds):
            spec = {
                "task": task,
                "data": arguments.data,
                "corpus": str(corpus),
                "config": config,
                "upstream": list(upstream.arguments),
                "training_upstream": list(upstream.training) or None,
                "name": upstream.name,
                "policy": upstream.policy,
                "target_depth": upstream.target_depth,
                "policy_file": _policy_of(upstream.arguments),
                "training_policy_file": _policy_of(upstream.training),
                "scored": "best on dev" if published else "last step",
                "checkpoint": checkpoints.digest(arguments.model) if upstream.name != "fbank" else None,
                "featurizer": featurizer,
                "options": options,
                "seed": seed,
                "device": arguments.device,
                "conditions": conditions(published),
                "cache": str(cache_of(task, arguments)) if cached else None,
            }
            folder = root / "runs" / task / upstream.name / featurizer / f"seed{seed}"
            yield Run(task=task, upstream=upstream, seed=seed, folder=folder, spec=spec)


def _policy_of(arguments: Sequence[str]) -> dict | None:
    """What stands in the policy file of a command line."""
    if "-g" not in arguments:
        return None
    return json.loads(Path(arguments[arguments.index("-g") + 1]).read_text(encoding="utf-8"))


def execute(run: Run) -> str:
    """Finish a run in a process of its own; what went wrong, or nothing."""
    environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    command = [sys.executable, str(HERE / "worker.py"), str(run.folder)]
    with open(run.folder / "stderr.log", "w", encoding="utf-8") as stream:
        ended = subprocess.run(command, stdout=stream, stderr=subprocess.STDOUT, env=environment, check=False)
    if ended.returncode == 0:
        return ""
    lines = (run.folder / "stderr.log").read_text(encoding="utf-8", errors="replace").split()
    return f"{run.title}: {' '.join(lines[-30:]) or f'ended with {ended.returncode}'} ({run.folder / 'stderr.log'})"


def finish(runs: list[Run], arguments: argparse.Namespace) -> list[str]:
    """All runs, task by task, and what went wrong with some. Ctrl-C ends those at work and begins no other."""
    todo = [run for run in runs if run.prepare(arguments.overwrite)]
    console.print(f"{len(todo)} runs to do, {len(runs) - len(todo)} finished before")
    failed: list[str] = []
    stopped = threading.Event()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as bar, ThreadPoolExecutor(arguments.jobs) as pool:
        progress = bar.add_task("runs", total=len(todo))

        def one(run: Run) -> None:
            if stopped.is_set():
                return
            bar.update(progress, description=run.title)
            wrong = execute(run)
            if wrong and not stopped.is_set():
                failed.append(wrong)
                bar.console.print(wrong, style="red", soft_wrap=True, markup=False)
            bar.advance(progress)

        try:
            for future in [pool.submit(one, run) for run in todo]:
                future.result()
        except KeyboardInterrupt:
            stopped.set()  # the workers have had Ctrl-C too
            raise
    if arguments.drop_cache and not failed:
        for task in dict.fromkeys(run.task for run in runs):
            shutil.rmtree(cache_of(task, arguments), ignore_errors=True)
    return failed


def _belongs(arguments: argparse.Namespace, digest: str, spec: dict) -> bool:
    """Whether a finished run is of this model (log-mel features of any) and of today's configuration."""
    if spec["checkpoint"] not in (None, digest):
        return False
    today = yaml.safe_load(configuration(TASKS[spec["task"]], Path(spec["corpus"]), arguments.data == "published"))
    return arguments.quick or spec["config"] == today


def main() -> None:
    arguments = parse()
    root = root_of(arguments)
    failed: list[str] = []
    if arguments.time or not arguments.table:
        if importlib.util.find_spec("s3prl") is None:
            raise UsageError("needs s3prl: pip install 'daisy-speech[s3prl,superb,fairseq]'")
        wanted = list(dict.fromkeys(arguments.upstreams or names(arguments.policy)))
        tasks = chosen_tasks(arguments)
        check_names(wanted, arguments.policy)
        check_device(arguments.device)
        if arguments.calibrate_on:
            find_audio(arguments.calibrate_on)
        corpora_of = {task: corpus_of(task, arguments, root) for task in tasks}
        limit = QUICK_LIMIT if arguments.quick else None
        policies, audio = root / "policies", arguments.calibrate_on
        found = find(wanted, arguments.model, arguments.policy, policies, console.print, limit, audio)
        if not arguments.table:
            runs = [run for task, corpus in corpora_of.items() for run in runs_of(task, corpus, found, arguments, root)]
            failed = finish(runs, arguments)
        if arguments.time:
            timing.measure(found, corpora_of, arguments.device, root / TIMES)
    digest = checkpoints.digest(arguments.model)
    rows = table.rows(root / "runs", timing.read(root / TIMES), partial(_belongs, arguments, digest))
    if not rows:
        raise DaisyError(f"{root}: no run of {arguments.model} is finished")
    for path in table.write(rows, root):
        console.print(str(path), soft_wrap=True)
    if not arguments.quick and (arguments.model, arguments.out.resolve()) == (MODEL, OUT.resolve()):
        write("minisuperb" if arguments.data == "small" else f"minisuperb_{arguments.data}", rows)
    console.print(table.summary(rows), markup=False, soft_wrap=True)
    if failed:
        sys.exit(f"{len(failed)} of the runs failed; the same command tries them again")


if __name__ == "__main__":
    try:
        guarded(main)
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on")
