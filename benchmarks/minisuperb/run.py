"""Runs MiniSUPERB's tasks on early-exit upstreams and makes one table. Continues where it stopped.

    python -m benchmarks.minisuperb.run daisy-mini --seeds 0 1 2 --jobs 2
    python -m benchmarks.minisuperb.run daisy-mini --tasks ks ic --upstreams never forecast-60 fixed-60 fbank
    python -m benchmarks.minisuperb.run hubert.safetensors --data published     # after prepare.py --published
    python -m benchmarks.minisuperb.run daisy-mini --quick                      # a few steps of everything

A finished run is not repeated, an interrupted one continues, a failed one is reported and repeated by the next call.
The table contains every finished run in the folder, so that a long comparison can be split into several calls.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from benchmarks.minisuperb import report, timing
from benchmarks.minisuperb.corpora import RECIPE, build_corpus
from benchmarks.minisuperb.prepare import OUT
from benchmarks.minisuperb.runs import Run, console, finish_runs, read_rows
from benchmarks.minisuperb.settings import digest_task, digest_today
from benchmarks.minisuperb.tasks import AT_HAND, TASKS, USUAL, list_conditions, read_configuration
from benchmarks.minisuperb.upstreams import Upstream, check_names, list_names, make_upstreams
from benchmarks.shared.results import RESULTS, Row, list_versions, read_result, write_result
from benchmarks.shared.script import make_parser, parse_positive, run_script
from daisy import audio, checkpoints
from daisy.cli.options import DEFAULT_POLICY, check_device
from daisy.errors import OutputError, UsageError, unknown_name

PUBLISHED = ("asr", "sid", "se", "ss")
LINK_IT = "link your corpus there, in the layout that s3prl's task reads"
QUICK_STEPS, QUICK_LIMIT = 4, 6
TIMES = "real_time_factors.json"
OF_UPSTREAM = ("task", "upstream", "featurizer")
OF_RUN = (*OF_UPSTREAM, "seed")
"""Fields that identify the rows of a run."""
NOISY_ANYHOW = ("se",)
"""Tasks whose training audio is the same with ``--data noisy``."""
MODEL = "daisy-mini"
"""Model of the checked-in results, in the default folder."""


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser(__doc__, quick="a few steps on a few recordings; no results file")
    parser.add_argument("model", nargs="?", default=MODEL, help="daisy checkpoint, or a bundled model's name")
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help=f"some of {', '.join(TASKS)}")
    parser.add_argument(
        "--upstreams",
        nargs="+",
        metavar="NAME",
        help=f"such as {', '.join(list_names(DEFAULT_POLICY))}, or with other percentages;\n"
        "A@B: tested with A's exits, trained with B's",
    )
    parser.add_argument("--policy", default=DEFAULT_POLICY, help="policy that is set to 80, 60 and 40 %% depth")
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
        help="files, folders or globs to set the policies on, clean and with babble; default: the shared dev sets",
    )
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--jobs", type=parse_positive, default=1, help="parallel runs, each on one core")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--no-cache", action="store_true", help="run the upstream in every epoch")
    parser.add_argument("--drop-cache", action="store_true", help="remove the tasks' caches when all runs are finished")
    parser.add_argument(
        "--time", action="store_true", help="time the upstreams on test audio at the end; best on idle cores"
    )
    parser.add_argument("--overwrite", action="store_true", help="restart runs that have other settings")
    parser.add_argument("--table", action="store_true", help="run nothing: only make the table of finished runs")
    return parser.parse_args()


def name_root(arguments: argparse.Namespace) -> Path:
    """Return the folder of corpora, policies, caches and runs."""
    return (arguments.out / (f"quick-{arguments.data}" if arguments.quick else arguments.data)).resolve()


def name_cache(task: str, arguments: argparse.Namespace) -> Path:
    """Return the folder of the full runs of a task's audio, from which all daisy upstreams take their exits."""
    return ((name_root(arguments) if arguments.quick else arguments.out) / "cache" / task).resolve()


def choose_tasks(arguments: argparse.Namespace) -> list[str]:
    """Return the requested tasks, after checking that each can be run.

    Raises:
        UsageError: if a task is unknown, has no corpus here, or cannot be run by this s3prl.
    """
    published = arguments.data == "published"
    if published and arguments.time:
        raise UsageError("--time is for the shared recordings")
    usual = [name for name in USUAL if arguments.data != "noisy" or name not in NOISY_ANYHOW]
    chosen = list(dict.fromkeys(arguments.tasks or (PUBLISHED if published else usual)))
    for name in chosen:
        if name not in TASKS:
            raise UsageError(unknown_name("task", name, TASKS))
        if not published and name not in AT_HAND:
            raise UsageError(f"{name}: the shared recordings have no corpus for it; --data published")
        if arguments.data == "noisy" and name in NOISY_ANYHOW:
            raise UsageError(f"{name}: its training audio is noisy anyhow; --data small")
        needs = TASKS[name].needs
        if needs and not _exists(needs):
            raise UsageError(f"{name} needs {needs}, which s3prl's wheel leaves out: install s3prl from its repository")
    return chosen


def _exists(module: str) -> bool:
    """Tell whether a module can be imported."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def prepare_corpus(task: str, arguments: argparse.Namespace, root: Path) -> Path:
    """Return the folder of a task's corpus; build it first if it consists of shared recordings and does not exist.

    Raises:
        UsageError: if a published corpus has not been prepared.
    """
    if arguments.data == "published":
        folder = (arguments.out / "published" / "corpora" / task).resolve()
        if not folder.is_dir():
            how = "python -m benchmarks.minisuperb.prepare --published makes it" if task in PUBLISHED else LINK_IT
            raise UsageError(f"{folder}: not there; {how}")
        return folder
    console.print(f"{task}: corpus", style="dim")
    limit = QUICK_LIMIT if arguments.quick else None
    training = "noisy" if arguments.data == "noisy" else "clean"
    return build_corpus(task, root / "corpora", limit=limit, overwrite=arguments.overwrite, training=training)


def make_runs(
    task: str, corpus: Path, upstreams: list[Upstream], arguments: argparse.Namespace, root: Path
) -> Iterator[Run]:
    """Make all runs of a task."""
    config = yaml.safe_load(read_configuration(TASKS[task], corpus, arguments.data == "published"))
    if arguments.quick:
        config["runner"] |= dict.fromkeys(("total_steps", "eval_step", "save_step"), QUICK_STEPS) | {"log_step": 1}
    for upstream in upstreams:
        spec = make_spec(task, corpus, config, upstream, arguments)
        folder = root / "runs" / task / upstream.name / spec["featurizer"]
        for seed in dict.fromkeys(arguments.seeds):
            of_seed = {**spec, "seed": seed}
            yield Run(task=task, upstream=upstream, seed=seed, folder=folder / f"seed{seed}", spec=of_seed)


def make_spec(
    task: str, corpus: Path, config: dict[str, Any], upstream: Upstream, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Make the run.json of a task's runs on an upstream, without the seed."""
    published = arguments.data == "published"
    featurizer = arguments.featurizer if upstream.exits else "stock"
    is_cached = upstream.exits and not arguments.no_cache
    return {
        "task": task,
        "data": arguments.data,
        "corpus": str(corpus),
        "recipe": None if published else RECIPE,
        "config": config,
        "upstream": list(upstream.arguments),
        "training_upstream": list(upstream.training) or None,
        "name": upstream.name,
        "policy": upstream.policy,
        "target_depth": upstream.target_depth,
        "policy_file": read_policy_file(upstream.arguments),
        "training_policy_file": read_policy_file(upstream.training),
        "scored": "best on dev" if published else "last step",
        "checkpoint": checkpoints.digest(arguments.model) if upstream.name != "fbank" else None,
        "featurizer": featurizer,
        "options": ["--upstream_feature_normalize", *(["--featurizer", featurizer] if upstream.exits else [])],
        "device": arguments.device,
        "conditions": list_conditions(published),
        "cache": str(name_cache(task, arguments)) if is_cached else None,
    }


def read_policy_file(arguments: Sequence[str]) -> dict[str, Any] | None:
    """Read the policy file that a command line names."""
    if "-g" not in arguments:
        return None
    return json.loads(Path(arguments[arguments.index("-g") + 1]).read_text(encoding="utf-8"))


def is_of_model(digest: str, spec: dict[str, Any]) -> bool:
    """Tell whether a run belongs to a model; log-mel features belong to any."""
    return spec["checkpoint"] in (None, digest)


def belongs_to_table(arguments: argparse.Namespace, digest: str, spec: dict[str, Any]) -> bool:
    """Tell whether a finished run belongs to this model and to the current configuration and corpus."""
    if not is_of_model(digest, spec) or arguments.quick:
        return is_of_model(digest, spec)
    of_run = digest_task(spec["config"], Path(spec["corpus"]), spec["recipe"])
    return of_run == digest_today(spec["task"], arguments.data == "published")


def measure(arguments: argparse.Namespace, root: Path) -> list[str]:
    """Finish the requested runs, and time their upstreams; return error messages.

    Raises:
        UsageError: if s3prl is missing, or a request cannot be fulfilled.
    """
    if importlib.util.find_spec("s3prl") is None:
        raise UsageError("needs s3prl: pip install 'daisy-speech[s3prl,superb,fairseq]'")
    names = list(dict.fromkeys(arguments.upstreams or list_names(arguments.policy)))
    tasks = choose_tasks(arguments)
    check_names(names, arguments.policy)
    check_device(arguments.device)
    if arguments.calibrate_on:
        audio.find(arguments.calibrate_on)
    corpora = {task: prepare_corpus(task, arguments, root) for task in tasks}
    upstreams = make_upstreams(
        names,
        arguments.model,
        arguments.policy,
        root / "policies",
        console.print,
        limit=QUICK_LIMIT if arguments.quick else None,
        recordings=arguments.calibrate_on,
    )
    failures: list[str] = []
    if not arguments.table:
        runs = [run for task, corpus in corpora.items() for run in make_runs(task, corpus, upstreams, arguments, root)]
        failures = finish_runs(runs, jobs=arguments.jobs, overwrite=arguments.overwrite)
        if arguments.drop_cache and not failures:
            for task in tasks:
                shutil.rmtree(name_cache(task, arguments), ignore_errors=True)
    if arguments.time:
        timing.measure(upstreams, corpora, checkpoints.digest(arguments.model), arguments.device, root / TIMES)
    return failures


def read_rows_of_other_folders(name: str, rows: list[Row], made: list[Row], digest: str) -> list[Row]:
    """Read the rows of results/NAME.json from runs of the same network and settings that were made in other folders.

    Log-mel features belong to no network; their rows stay if all versions are the same. Rows from before settings were
    stored with them stay until there is a run of their task and upstream.

    Args:
        name: name of the file.
        rows: rows of this folder that go into the table.
        made: rows of all runs of the network in this folder, including those with other settings.
        digest: digest of the network.
    """
    if not (RESULTS / f"{name}.json").is_file():
        return []
    result = read_result(name)
    models = [digest[:12], *([None] if result["versions"] == list_versions() else [])]
    here = {_choose(row, OF_RUN) for row in made}
    of_upstreams = {_choose(row, OF_UPSTREAM): row["upstream_digest"] for row in rows}

    def has_todays_settings(row: Row) -> bool:
        of_upstream = of_upstreams.get(_choose(row, OF_UPSTREAM))
        if "task_digest" not in row:
            return of_upstream is None
        is_todays = row["task_digest"] == digest_today(row["task"], name == "minisuperb_published")
        return is_todays and of_upstream in (None, row["upstream_digest"])

    others = (row for row in result["rows"] if _choose(row, OF_RUN) not in here)
    return [row for row in others if row["model"] in models and has_todays_settings(row)]


def _choose(row: Row, fields: Sequence[str]) -> tuple[Any, ...]:
    return tuple(row[field] for field in fields)


def main() -> None:
    arguments = parse_arguments()
    root = name_root(arguments)
    timing.read_factors(root / TIMES)  # raises errors before anything is run
    failures = measure(arguments, root) if arguments.time or not arguments.table else []
    digest = checkpoints.digest(arguments.model)
    rows = read_rows(root / "runs", timing.read_factors(root / TIMES), partial(belongs_to_table, arguments, digest))
    if not rows:
        raise OutputError(f"{root}: no run of {arguments.model} is finished")
    for path in report.write_report(rows, root):
        console.print(str(path), soft_wrap=True)
    if not arguments.quick and (arguments.model, arguments.out.resolve()) == (MODEL, OUT.resolve()):
        name = "minisuperb" if arguments.data == "small" else f"minisuperb_{arguments.data}"
        made = read_rows(root / "runs", {}, partial(is_of_model, digest))
        table = [arguments.model, "--table", *([] if arguments.data == "small" else ["--data", arguments.data])]
        write_result(name, [*read_rows_of_other_folders(name, rows, made, digest), *rows], table)
    console.print(report.render_markdown(rows), markup=False, soft_wrap=True)
    if failures:
        sys.exit(f"{len(failures)} of the runs failed; the same command tries them again")


if __name__ == "__main__":
    try:
        run_script(main)
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on")
