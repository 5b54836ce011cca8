"""Train exit heads from manifests, with resumption of stopped runs, and on several devices with torchrun."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from daisy import _files, _locks, checkpoints
from daisy.audio.mixing import NoiseBank
from daisy.audio.weighting import format_duration
from daisy.checkpoints import Model
from daisy.checkpoints.provenance import drop_notes_of_heads
from daisy.errors import OutputError, UsageError
from daisy.runtime.dtypes import check_device
from daisy.training.batches import HeadBatch, HeadBatches
from daisy.training.learner import HeadLearner, Log, describe_log, sum_logs
from daisy.training.settings import HeadTraining

STATE, LOG, EVENTS = "training.pt", "log.jsonl", "tensorboard"
RESULT, LOCK = "model.safetensors", ".training.lock"


@dataclass
class TrainingReport:
    """The result of a run."""

    num_updates: int
    """Updates in total."""
    num_resumed: int
    """Updates of earlier runs."""
    num_left_out: int
    """Recordings of the manifest that are too short."""
    train: Log = field(default_factory=dict)
    """Means over the last updates, by name."""
    valid: Log = field(default_factory=dict)
    """Means over the last validation."""


def train_heads(
    manifest: str | Path,
    model: Model,
    out: str | Path,
    settings: HeadTraining | None = None,
    *,
    valid: str | Path | None = None,
    labels: str | Path | None = None,
    noise: str | Path | None = None,
    checkpoint: str = "",
    save_interval: int = 200,
    log_interval: int = 20,
    tensorboard: bool = True,
    bfloat16: bool = False,
    overwrite: bool = False,
    progress: Callable[[int], None] = lambda count: None,
) -> TrainingReport:
    """Train exit heads on a frozen network, in plain PyTorch.

    Losses (`daisy.models.head_losses`), learning rates and Adam's arithmetic are the same as in the fairseq plugin:
    the same batches give the same losses, up to rounding. Batches are drawn differently than in fairseq. A stopped
    run resumes at the last saved update and gives the same heads, provided that the recordings in the manifests are
    unchanged, which is not checked. Under ``torchrun`` every process takes its share of the batches; gradients are
    summed, and the loss regressors' statistics are taken over all.

    Args:
        manifest: fairseq manifest of the training recordings.
        model: a HuBERT, or any network that daisy runs, on the device to train on; its heads are replaced, and
            with labels its own prediction head is dropped, as it has other units.
        out: folder for ``training.pt`` (from which a run resumes), ``log.jsonl`` and ``model.safetensors``.
        settings: settings of the training; None: the defaults.
        valid: manifest of recordings for validation, whenever the state is saved.
        labels: folder of ``SPLIT.km`` for each manifest and ``dict.km.txt`` (`daisy.extraction.make_labels`); None:
            the units are those predicted by the model's own prediction head on clean audio.
        noise: manifest of noise to mix into the heads' input; it is held in memory, 230 MB per hour at 16 kHz.
        checkpoint: digest of the model's file, which must be the same in a resumed run.
        save_interval: number of updates after which the state is saved.
        log_interval: number of updates after which means are logged.
        tensorboard: also write event files, where tensorboardX is installed.
        bfloat16: multiply in bfloat16.
        overwrite: start again where the folder holds another run.
        progress: called with the number of updates just made, or found already made.

    Returns:
        The result of the run. ``model`` has the new heads, and its provenance says so.

    Raises:
        UsageError: on invalid manifests, labels or settings, or where training diverges; the state that was saved
            last is kept.
        CheckpointError: without labels, where the model has no prediction head.
        OutputError: where the folder holds a run with other settings, is being written, or cannot be written.
        AudioError: where a recording cannot be read.
    """
    settings, out = settings or HeadTraining(), Path(out)
    rate = model.backbone.config.sample_rate
    batches = HeadBatches(manifest, settings, labels, sample_rate=rate)
    validation = None if valid is None else HeadBatches(valid, settings, labels, sample_rate=rate, training=False)
    noises = None if noise is None else NoiseBank.from_manifest(noise, rate)
    learner = HeadLearner(model, settings, batches.num_units, noises, bfloat16=bfloat16)
    described = {
        **asdict(settings),
        "manifest": _files.digest(Path(manifest)),
        "checkpoint": checkpoint,
        "labels": None if labels is None else _digest_labels(Path(labels), Path(manifest)),
        "noise": None if noises is None else noises.digest(),
        "precision": "bfloat16" if bfloat16 else "float32",
        "world_size": _world_size(),
    }
    with _sole_writer(out), ExitStack() as stack:
        if overwrite and _rank() == 0:
            _remove_old(out, model.path)
        logs = _resume(learner, out / STATE, json.loads(json.dumps(described)), overwrite)
        write_log = stack.enter_context(_open_logs(out, tensorboard, learner.num_updates))
        report = TrainingReport(
            num_updates=learner.num_updates, num_resumed=learner.num_updates, num_left_out=batches.num_left_out
        )
        progress(report.num_resumed)
        for batch in stack.enter_context(closing(_read_ahead(batches, _list_ahead(batches, learner)))):
            logs.append(learner.update(batch))
            progress(1)
            report.num_updates = learner.num_updates
            done = learner.num_updates == settings.max_update
            if learner.num_updates % log_interval == 0 or done:
                report.train, logs = describe_log(sum_logs(logs)), []
                lr = settings.learning_rate(learner.num_updates)
                write_log("train", learner.num_updates, {**report.train, "lr": lr})
            if learner.num_updates % save_interval == 0 or done:
                if validation is not None:
                    report.valid = validate(learner, validation)
                    write_log("valid", learner.num_updates, report.valid)
                _save(learner, out / STATE, described, logs)
        model.heads, model.policies = learner.heads.eval(), {}  # the policies were for other heads
        audio = format_duration(batches.duration_sec)
        said = {"heads": f"daisy train-heads, {report.num_updates} updates on {audio} of audio"}
        model.provenance = {**drop_notes_of_heads(model.provenance), **said}
        if labels is not None:
            model.final_head = None
        if _rank() == 0:
            checkpoints.save(model, out / RESULT)
    return report


def _digest_labels(labels: Path, manifest: Path) -> list[str]:
    """Compute digests of the files that determine the targets."""
    return [_files.digest(labels / name) for name in (f"{manifest.stem}.km", "dict.km.txt")]


@torch.no_grad()
def validate(learner: HeadLearner, batches: HeadBatches) -> Log:
    """Compute means over a manifest; the result is the same for the same heads."""
    was_training = learner.training
    learner.eval()
    logs = []
    for batch in batches.iterate(0, rank=_rank(), world_size=_world_size()):
        logs.append(learner(batch)[1])
    learner.train(was_training)
    return describe_log(sum_logs(_gather(logs)))


def _gather(logs: list[Log]) -> list[Log]:
    """Gather the logs of all processes, some of which may have none."""
    if not torch.distributed.is_initialized():
        return logs
    of_each: list[list[Log]] = [[]] * _world_size()
    torch.distributed.all_gather_object(of_each, logs)
    return [log for of_one in of_each for log in of_one]


def _list_ahead(batches: HeadBatches, learner: HeadLearner) -> Iterator[tuple[Sequence[int], int]]:
    """List the recordings of each remaining batch, and its epoch."""
    first, rank, world_size = learner.num_updates, _rank(), _world_size()
    length = len(batches.plan(0, rank, world_size))
    plan: list[list[int]] = []
    for update in range(first, learner.settings.max_update):
        epoch, place = divmod(update, length)
        if place == 0 or update == first:
            plan = batches.plan(epoch, rank, world_size)
        yield plan[place], epoch


def _read_ahead(batches: HeadBatches, places: Iterator[tuple[Sequence[int], int]]) -> Generator[HeadBatch, None, None]:
    """Read batches in turn; while one is used, a thread reads the next."""
    reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="daisy-batches")
    try:
        futures = (reader.submit(batches.read, indices, epoch) for indices, epoch in places)
        current = next(futures, None)
        while current is not None:
            following = next(futures, None)
            yield current.result()
            current = following
    finally:
        reader.shutdown(cancel_futures=True)


def _resume(learner: HeadLearner, path: Path, described: dict[str, Any], overwrite: bool) -> list[Log]:
    """Resume from a saved state, if there is one; return the logs of its last updates, which are in no mean yet."""
    if overwrite or not path.is_file():
        return []
    try:
        state = torch.load(path, map_location=learner.backbone.device, weights_only=True)
        before = state["settings"]
    except Exception as error:  # a damaged file can raise anything
        raise OutputError(f"{path}: damaged ({type(error).__name__})", remedy="overwrite") from None
    different = sorted(name for name in {*before, *described} if before.get(name) != described.get(name))
    if different:
        raise OutputError(f"{path.parent}: holds a run with another {', '.join(different)}", remedy="overwrite")
    learner.heads.load_state_dict(state["heads"])
    learner.optimizer.load_state_dict(state["optimizer"])
    learner.num_updates = int(state["num_updates"])
    logs: list[Log] = state["logs"]
    return logs


def _remove_old(out: Path, source: Path | None) -> None:
    """Remove another run's state and heads, except the model's own file, so that no kill can leave them behind."""
    for path in (out / STATE, out / RESULT):
        if source is None or path.resolve() != source.resolve():
            with _files.refusing(path):
                path.unlink(missing_ok=True)


def _cut_log(path: Path, num_updates: int) -> None:
    if path.is_file():
        lines = [line for line in _files.whole_lines(path) if json.loads(line)["update"] <= num_updates]
        _files.write(path, "".join(f"{line}\n" for line in lines).encode())


def _save(learner: HeadLearner, path: Path, described: dict[str, Any], logs: list[Log]) -> None:
    """Save the state from which a run resumes; only the first process does."""
    if _rank() != 0:
        return
    state = {
        "settings": json.loads(json.dumps(described)),
        "heads": learner.heads.state_dict(),
        "optimizer": learner.optimizer.state_dict(),
        "num_updates": learner.num_updates,
        "logs": logs,
    }
    _files.write(path, lambda stream: torch.save(state, stream))


@contextmanager
def _sole_writer(out: Path) -> Iterator[None]:
    """Hold the lock on the folder; of several processes under torchrun, the first holds it."""
    if _rank() != 0:
        yield
        return
    with _locks.write_alone(out, out / LOCK):
        yield


@contextmanager
def _open_logs(out: Path, tensorboard: bool, num_updates: int) -> Iterator[Callable[[str, int, Log], None]]:
    """Provide a function that logs means to ``log.jsonl``, and to event files where requested and possible.

    Entries of later updates are removed from both, as they will be made again or are another run's.
    """
    writers: dict[str, Any] = {}
    if _rank() == 0:
        _cut_log(out / LOG, num_updates)
        if not num_updates:
            shutil.rmtree(out / EVENTS, ignore_errors=True)
    next_update = num_updates + 1

    def write(kind: str, num_updates: int, means: Log) -> None:
        if _rank() != 0:
            return
        line = json.dumps({"kind": kind, "update": num_updates, **{name: round(v, 6) for name, v in means.items()}})
        _files.append(out / LOG, line + "\n")
        if tensorboard and kind not in writers:
            writers[kind] = _make_writer(out / EVENTS / kind, next_update)
        if writers.get(kind) is not None:
            for name, value in means.items():
                writers[kind].add_scalar(name, value, num_updates)

    try:
        yield write
    finally:
        for writer in writers.values():
            if writer is not None:
                writer.close()


def _make_writer(folder: Path, next_update: int) -> Any:
    """Make a writer of event files, starting from an update; None where tensorboardX is missing."""
    try:
        from tensorboardX import SummaryWriter
    except ModuleNotFoundError:
        return None
    return SummaryWriter(str(folder), purge_step=next_update)


@contextmanager
def join_processes(device: str) -> Iterator[str]:
    """Join the processes started by torchrun, if any, and yield the device of this one.

    Args:
        device: "cpu" or "cuda"; with GPUs each process takes its own.

    Raises:
        UsageError: on a GPU given by number under torchrun, without a GPU for each process, or where they cannot join.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        yield device
        return
    if ":" in device:
        raise UsageError(f"under torchrun each process takes a GPU of its own: say cuda, not {device}")
    if device == "cuda":
        device = str(check_device(f"cuda:{os.environ.get('LOCAL_RANK', '0')}"))
        torch.cuda.set_device(device)
    try:
        torch.distributed.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    except (RuntimeError, ValueError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise UsageError(f"WORLD_SIZE is {world_size}, and its processes cannot join: {reason}") from None
    try:
        yield device
    finally:
        torch.distributed.destroy_process_group()


def _rank() -> int:
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def _world_size() -> int:
    return torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
