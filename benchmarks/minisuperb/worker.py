"""One run: trains a task on an upstream, scores it on every test set, and writes result.json. Goes on where it stopped.

    python benchmarks/minisuperb/worker.py FOLDER        # holds run.json; benchmarks/minisuperb/run.py makes it

One process for training and all test sets: s3prl's start takes longer than many of them.
"""

from __future__ import annotations

import contextlib
import json
import pickle
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import yaml
from filelock import FileLock, Timeout
from tasks import HERE, TASKS, scored_checkpoint

from daisy import _files
from daisy.errors import DaisyError, OutputError

S3prl = Callable[[Sequence[str]], None]


def s3prl() -> S3prl:
    """s3prl's run_downstream with daisy's upstreams and this folder's downstreams."""
    import s3prl.downstream

    from s3prl_upstream.run_downstream import run

    if str(HERE / "downstream") not in s3prl.downstream.__path__:
        s3prl.downstream.__path__.append(str(HERE / "downstream"))
    return run


def said(folder: Path, name: str, call: Callable[[], None]) -> str:
    """Run something; what it prints goes to a file, after what an earlier sitting printed, and is returned."""
    path = folder / f"{name}.log"
    with open(path, "a", encoding="utf-8", buffering=1) as stream, contextlib.redirect_stdout(stream):
        call()
    return path.read_text(encoding="utf-8")


def train(spec: dict, folder: Path, run: S3prl) -> dict:
    """Train to the last step; a training that is whole is left alone. Seconds are of one sitting, or unknown."""
    out, config, done = folder / "train", folder / "config.yaml", folder / "train.json"
    if done.is_file():
        return json.loads(done.read_text(encoding="utf-8"))
    drop_broken(out)
    _files.write(config, yaml.safe_dump(spec["config"], sort_keys=False).encode())
    options = ["-m", "train", "-d", TASKS[spec["task"]].downstream, "-c", str(config), "-p", str(out), "-a"]
    options += spec.get("training_upstream") or spec["upstream"]
    options += ["--seed", str(spec["seed"]), "--device", spec["device"], *spec["options"]]
    runner = spec["config"]["runner"]
    resumed = any(out.glob("states-*.ckpt"))
    start, used = time.perf_counter(), time.process_time()
    if (out / f"states-{runner['total_steps']}.ckpt").is_file():  # killed between its end and the file that says so
        text = (folder / "train.log").read_text(encoding="utf-8")
    else:
        text = said(folder, "train", lambda: run([*options, *cache_options(spec)]))
    metric = TASKS[spec["task"]].metrics[0]
    found = {
        "resumed": resumed,
        "train_sec": None if resumed else round(time.perf_counter() - start, 1),
        "train_cpu_sec": None if resumed else round(time.process_time() - used, 1),
        "dev": metric.values(text, runner["eval_dataloaders"][0]),
        "dev_every_steps": runner["eval_step"],
    }
    _files.write_json(done, found)
    return found


def evaluate(spec: dict, folder: Path, condition: str | None, run: S3prl) -> dict:
    """Score one test set; one that was scored is left alone."""
    task, name = TASKS[spec["task"]], condition or "test"
    out = folder / f"test-{name}" if condition else folder / "test"
    done = out / "result.json"
    if done.is_file():
        return json.loads(done.read_text(encoding="utf-8"))
    out.mkdir(parents=True, exist_ok=True)
    total_steps = spec["config"]["runner"]["total_steps"]
    scored = scored_checkpoint(folder / "train", total_steps, spec["data"] == "published")
    split, override = task.evaluation(condition, Path(spec["corpus"]), out)
    if spec.get("training_upstream"):
        override += f",,args.upstream_model_config={spec['upstream'][spec['upstream'].index('-g') + 1]!r}"
    options = ["-m", "evaluate", "-e", str(scored), "-t", split, "-o", override, "--device", spec["device"]]
    start = time.perf_counter()
    text = said(out, "evaluate", lambda: run([*options, *cache_options(spec)]))
    metrics = {metric.name: metric.value(text, split, out / "evaluate.log") for metric in task.metrics}
    found = {
        "condition": name,
        "checkpoint": scored.name,
        "metrics": metrics | (task.also(out, split) if task.also else {}),
        "evaluate_sec": round(time.perf_counter() - start, 1),
        "exits": exits(out, split),
    }
    _files.write_json(done, found)
    return found


def exits(folder: Path, split: str) -> dict | None:
    """What the exit log sums up of a split; None for upstreams without exits.

    Raises:
        OutputError: where the summary cannot be read.
    """
    path = folder / "exits_summary.json"
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))["runs"][-1]["splits"][split]
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise OutputError(f"{path}: has no split {split} ({error})") from None


def cache_options(spec: dict) -> list[str]:
    """Where the upstream's states are kept; not part of what a run is."""
    if not spec["cache"]:
        return []
    return ["--cache", spec["cache"], "--cache-full", *(["--cache-mean"] if TASKS[spec["task"]].pooled else [])]


def drop_broken(folder: Path) -> None:
    """Remove checkpoints that a kill cut off while s3prl wrote them: it would go on from the newest, and fail."""
    import torch

    for path in sorted(folder.glob("*.ckpt")):
        try:
            torch.load(path, map_location="cpu", weights_only=False)
        except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError):
            path.unlink()


def work(folder: Path, start: Callable[[], S3prl] = s3prl) -> dict:
    """Finish the run that a folder's run.json describes.

    Raises:
        DaisyError: where s3prl refuses or ends without a result, or another process is at this run.
    """
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        with lock:
            spec = json.loads((folder / "run.json").read_text(encoding="utf-8"))
            run = start()
            result = train(spec, folder, run)
            result["tests"] = [evaluate(spec, folder, condition, run) for condition in spec["conditions"]]
            _files.write_json(folder / "result.json", result)
            return result
    except Timeout:
        raise OutputError(f"{folder}: another process is at this run") from None


if __name__ == "__main__":
    try:
        work(Path(sys.argv[1]))
    except DaisyError as error:
        sys.exit(f"{Path(sys.argv[0]).name}: {error}")
