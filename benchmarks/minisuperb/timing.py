"""Upstream seconds for a second of test audio: all upstreams in one sitting, one recording after the other."""

from __future__ import annotations

import datetime
import json
import statistics
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from tasks import TASKS
from torch import Tensor, nn
from upstreams import Upstream

from daisy import _files, audio
from daisy.errors import OutputError

RATE = 16000
RECORDINGS, REPEATS = 8, 3
HEARD = ("clean", "0")
"""Conditions that are timed."""


def recordings(task: str, corpus: Path, condition: str) -> list[Tensor]:
    """Test recordings of a task, evenly from its list."""
    paths = sorted(corpus.glob(TASKS[task].test_audio.format(condition=condition)))
    chosen = dict.fromkeys(torch.linspace(0, len(paths) - 1, RECORDINGS).round().int().tolist())
    return [audio.read(paths[index], RATE) for index in chosen]


def load(found: list[Upstream], device: str) -> dict[str, nn.Module]:
    """Upstream name to s3prl's model of it."""
    import s3prl.hub

    from s3prl_upstream import register

    register()
    models = {}
    for upstream in found:
        given = dict(zip(upstream.arguments[::2], upstream.arguments[1::2], strict=True))
        entry = getattr(s3prl.hub, given["-u"])
        models[upstream.name] = entry(ckpt=given.get("-k"), model_config=given.get("-g")).eval().to(device)
    return models


@torch.no_grad()
def factors(models: Mapping[str, nn.Module], waveforms: list[Tensor], device: str) -> dict[str, list[float]]:
    """Upstream name to real-time factors, one a repeat; the upstreams take turns recording by recording."""
    seconds = {name: [0.0] * (REPEATS + 1) for name in models}
    for repeat in range(REPEATS + 1):  # the first warms up
        for waveform in waveforms:
            there = waveform.to(device)
            for name, model in models.items():
                start = time.perf_counter()
                model([there])
                if there.is_cuda:
                    torch.cuda.synchronize()
                seconds[name][repeat] += time.perf_counter() - start
    total = sum(len(waveform) for waveform in waveforms) / RATE
    return {name: [value / total for value in values[1:]] for name, values in seconds.items()}


def measure(found: list[Upstream], corpora: dict[str, Path], device: str, path: Path) -> None:
    """Time these upstreams on the tasks' test audio, on one thread, and write the medians in place of older ones."""
    torch.set_num_threads(1)
    models = load(found, device)
    known = {}
    for task, corpus in corpora.items():
        for condition in HEARD:
            timed = factors(models, recordings(task, corpus, condition), device)
            known |= {f"{task} {name} {condition}": statistics.median(values) for name, values in timed.items()}
    when = datetime.date.today().isoformat()
    _files.write_json(path, {"date": when, "device": device, "threads": 1, "real_time_factors": known})


def read(path: Path) -> dict[str, float]:
    """What was measured: "task upstream condition" to the real-time factor.

    Raises:
        OutputError: where the file holds something else.
    """
    if not path.is_file():
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))["real_time_factors"]
    except (ValueError, KeyError, TypeError):
        raise OutputError(f"{path}: no measured times; remove it") from None
