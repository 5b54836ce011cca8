"""Seconds that upstreams take per second of test audio: all upstreams in one run, alternating by recording."""

from __future__ import annotations

import importlib
import json
import statistics
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.minisuperb.tasks import TASKS
from benchmarks.minisuperb.upstreams import Upstream
from benchmarks.shared.recordings import SAMPLE_RATE, count_seconds
from daisy import _files, audio
from daisy.errors import OutputError

MAX_RECORDINGS, REPEATS = 8, 3
TIMED_CONDITIONS = ("clean", "0")
ENTRIES = {
    "daisy_local": "s3prl_upstream.hubconf",
    "hubert_local": "s3prl.upstream.hubert.hubconf",
    "fbank": "s3prl.upstream.baseline.hubconf",
}
"""Modules of the entries in s3prl.hub; importing the hub itself takes many seconds."""
OF_TIME = ("task", "upstream", "condition", "checkpoint", "device")
"""Fields that identify measured times."""
Factors = dict[tuple[str | None, ...], float]
"""Real-time factors by the values of `OF_TIME`."""


def read_recordings(task: str, corpus: Path, condition: str) -> list[Tensor]:
    """Read test recordings of a task, evenly spread over its list."""
    paths = sorted(corpus.glob(TASKS[task].test_audio.format(condition=condition)))
    chosen = dict.fromkeys(torch.linspace(0, len(paths) - 1, MAX_RECORDINGS).round().int().tolist())
    return [audio.read(paths[index], SAMPLE_RATE) for index in chosen]


def load_models(upstreams: list[Upstream], device: str) -> dict[str, nn.Module]:
    """Load s3prl's model of each upstream, by name."""
    models = {}
    for upstream in upstreams:
        options = dict(zip(upstream.arguments[::2], upstream.arguments[1::2], strict=True))
        entry = getattr(importlib.import_module(ENTRIES[options["-u"]]), options["-u"])
        models[upstream.name] = entry(ckpt=options.get("-k"), model_config=options.get("-g")).eval().to(device)
    return models


@torch.no_grad()
def time_models(models: Mapping[str, nn.Module], waveforms: list[Tensor], device: str) -> dict[str, list[float]]:
    """Time upstreams, which alternate by recording; return their real-time factors by name, one per repeat."""
    seconds = {name: [0.0] * (REPEATS + 1) for name in models}
    for repeat in range(REPEATS + 1):  # the first is a warm-up
        for waveform in waveforms:
            waveform = waveform.to(device)
            for name, model in models.items():
                start = time.perf_counter()
                model([waveform])
                if waveform.is_cuda:
                    torch.cuda.synchronize()
                seconds[name][repeat] += time.perf_counter() - start
    total = count_seconds(waveforms)
    return {name: [value / total for value in values[1:]] for name, values in seconds.items()}


def measure(upstreams: list[Upstream], corpora: dict[str, Path], checkpoint: str, device: str, path: Path) -> None:
    """Time upstreams on the tasks' test audio, on one thread, and write the medians, replacing their older ones.

    Args:
        upstreams: upstreams to time.
        corpora: folders of the tasks' corpora.
        checkpoint: digest of the upstreams' model.
        device: device to run on.
        path: path of the file; earlier measurements of others are kept.

    Raises:
        OutputError: if the file holds something else.
    """
    factors = read_factors(path)
    torch.set_num_threads(1)
    models = load_models(upstreams, device)
    for task, corpus in corpora.items():
        for condition in TIMED_CONDITIONS:
            repeats = time_models(models, read_recordings(task, corpus, condition), device)
            for name, values in repeats.items():
                of_model = None if name == "fbank" else checkpoint
                factors[task, name, condition, of_model, device] = statistics.median(values)
    times = [{**dict(zip(OF_TIME, key, strict=True)), "real_time_factor": value} for key, value in factors.items()]
    _files.write_json(path, {"threads": 1, "times": times})


def read_factors(path: Path) -> Factors:
    """Read the measured real-time factors.

    Raises:
        OutputError: if the file holds something else, such as times that do not name their model.
    """
    if not path.is_file():
        return {}
    try:
        times = json.loads(path.read_text(encoding="utf-8"))["times"]
        return {tuple(row[field] for field in OF_TIME): row["real_time_factor"] for row in times}
    except (ValueError, KeyError, TypeError):
        raise OutputError(f"{path}: no measured times of known models; remove it, and measure again") from None
