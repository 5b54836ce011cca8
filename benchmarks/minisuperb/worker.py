"""One run: trains a task on an upstream, scores every test set, and writes result.json. Continues where it stopped.

    python -m benchmarks.minisuperb.worker FOLDER        # with the run.json that run.py writes

Training and all test sets share a process, because s3prl takes longer to start than many test sets take.
"""

from __future__ import annotations

import contextlib
import json
import pickle
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from benchmarks.minisuperb.tasks import HERE, TASKS, choose_checkpoint
from benchmarks.shared.rendering import describe_processor
from benchmarks.shared.results import describe_machine
from benchmarks.shared.script import make_parser, run_script
from daisy import _files, _locks
from daisy.errors import OutputError

RunDownstream = Callable[[Sequence[str]], None]
"""Function that takes run_downstream's command line."""
LOCK = ".lock"
"""Lock file in the folder of a run that a process is working on."""


def load_s3prl() -> RunDownstream:
    """Load s3prl's run_downstream with daisy's upstreams and this folder's downstreams."""
    import s3prl.downstream

    from s3prl_upstream.run_downstream import run

    if str(HERE / "downstream") not in s3prl.downstream.__path__:
        s3prl.downstream.__path__.append(str(HERE / "downstream"))
    return run


def run_logged(folder: Path, name: str, call: Callable[[], None]) -> str:
    """Run a function; append what it prints to a file, and return it."""
    path = folder / f"{name}.log"
    with open(path, "a", encoding="utf-8", buffering=1) as stream, contextlib.redirect_stdout(stream):
        call()
    return path.read_text(encoding="utf-8")


def train(spec: dict[str, Any], folder: Path, run: RunDownstream) -> dict[str, Any]:
    """Train to the last step, unless that is done. Seconds are of a single run, or None if the training was resumed."""
    out, config, done = folder / "train", folder / "config.yaml", folder / "train.json"
    if done.is_file():
        return json.loads(done.read_text(encoding="utf-8"))
    remove_broken(out)
    _files.write(config, yaml.safe_dump(spec["config"], sort_keys=False).encode())
    options = ["-m", "train", "-d", TASKS[spec["task"]].downstream, "-c", str(config), "-p", str(out), "-a"]
    options += spec.get("training_upstream") or spec["upstream"]
    options += ["--seed", str(spec["seed"]), "--device", spec["device"], *spec["options"]]
    runner = spec["config"]["runner"]
    resumed = any(out.glob("states-*.ckpt"))
    start, used = time.perf_counter(), time.process_time()
    if (out / f"states-{runner['total_steps']}.ckpt").is_file():  # killed after its end, before train.json was written
        text = (folder / "train.log").read_text(encoding="utf-8")
    else:
        text = run_logged(folder, "train", lambda: run([*options, *make_cache_options(spec)]))
    metric = TASKS[spec["task"]].metrics[0]
    result = {
        "resumed": resumed,
        "train_sec": None if resumed else round(time.perf_counter() - start, 1),
        "train_cpu_sec": None if resumed else round(time.process_time() - used, 1),
        "dev": metric.read_all(text, runner["eval_dataloaders"][0]),
        "dev_every_steps": runner["eval_step"],
    }
    _files.write_json(done, result)
    return result


def evaluate(spec: dict[str, Any], folder: Path, condition: str | None, run: RunDownstream) -> dict[str, Any]:
    """Score one test set, unless that is done."""
    task, name = TASKS[spec["task"]], condition or "test"
    out = folder / f"test-{name}" if condition else folder / "test"
    done = out / "result.json"
    if done.is_file():
        return json.loads(done.read_text(encoding="utf-8"))
    out.mkdir(parents=True, exist_ok=True)
    total_steps = spec["config"]["runner"]["total_steps"]
    scored = choose_checkpoint(folder / "train", total_steps, spec["data"] == "published")
    split, override = task.locate_test_set(condition, Path(spec["corpus"]), out)
    if spec.get("training_upstream"):
        override += f",,args.upstream_model_config={spec['upstream'][spec['upstream'].index('-g') + 1]!r}"
    options = ["-m", "evaluate", "-e", str(scored), "-t", split, "-o", override, "--device", spec["device"]]
    start = time.perf_counter()
    text = run_logged(out, "evaluate", lambda: run([*options, *make_cache_options(spec)]))
    metrics = {metric.name: metric.read_last(text, split, out / "evaluate.log") for metric in task.metrics}
    result = {
        "condition": name,
        "checkpoint": scored.name,
        "metrics": metrics | (task.score_more(out, split) if task.score_more else {}),
        "evaluate_sec": round(time.perf_counter() - start, 1),
        "exits": read_exits(out, split),
    }
    _files.write_json(done, result)
    return result


def read_exits(folder: Path, split: str) -> dict[str, Any] | None:
    """Read the exit log's summary of a split; None for upstreams without exits.

    Raises:
        OutputError: if the summary cannot be read.
    """
    path = folder / "exits_summary.json"
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))["runs"][-1]["splits"][split]
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise OutputError(f"{path}: has no split {split} ({error})") from None


def make_cache_options(spec: dict[str, Any]) -> list[str]:
    """Make the options for caching the upstream's states; they are not part of a run's identity."""
    if not spec["cache"]:
        return []
    return ["--cache", spec["cache"], "--cache-full", *(["--cache-mean"] if TASKS[spec["task"]].pooled else [])]


def remove_broken(folder: Path) -> None:
    """Remove checkpoints truncated by a kill while s3prl wrote them: it would resume from the newest, and fail."""
    import torch

    for path in sorted(folder.glob("*.ckpt")):
        try:
            torch.load(path, map_location="cpu", weights_only=False)
        except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError):
            path.unlink()


@contextlib.contextmanager
def hold_run(folder: Path) -> Iterator[None]:
    """Keep other processes from working on the run in a folder, within a context.

    Raises:
        OutputError: if another process is working on it.
    """
    path = folder / LOCK
    lock = _locks.acquire(path)
    if lock is None:
        raise OutputError(f"{folder}: {_locks.describe_holder(path)} is at this run")
    try:
        yield
    finally:
        lock.release()


def work(folder: Path, start: Callable[[], RunDownstream] = load_s3prl) -> dict[str, Any]:
    """Finish the run that a folder's run.json describes.

    Raises:
        DaisyError: if s3prl fails or ends without a result, or another process is working on this run.
    """
    with hold_run(folder):
        spec = json.loads((folder / "run.json").read_text(encoding="utf-8"))
        run = start()
        result = train(spec, folder, run)
        result["processor"] = describe_processor(describe_machine())
        result["tests"] = [evaluate(spec, folder, condition, run) for condition in spec["conditions"]]
        _files.write_json(folder / "result.json", result)
        return result


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("folder", type=Path)
    work(parser.parse_args().folder)


if __name__ == "__main__":
    run_script(main)
