"""Upstream seconds for a second of test audio: all upstreams in one sitting, one recording after the other."""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path

import torch
from tasks import TASKS
from torch import Tensor
from upstreams import Upstream

from daisy import audio, files

RATE = 16000
RECORDINGS, REPEATS = 8, 3
HEARD = ("clean", "0")
"""Conditions that are timed."""


def recordings(task: str, corpus: Path, condition: str) -> list[Tensor]:
    """Test recordings of a task, evenly from its list."""
    paths = sorted(corpus.glob(TASKS[task].test_audio.format(condition=condition)))
    step = max(1, len(paths) // RECORDINGS)
    return [audio.read(path, RATE) for path in paths[::step][:RECORDINGS]]


@torch.no_grad()
def factors(found: list[Upstream], waveforms: list[Tensor]) -> dict[str, list[float]]:
    """Upstream name to real-time factors, one a repeat; the upstreams take turns recording by recording."""
    import s3prl.hub

    from s3prl_upstream import register

    register()
    models = {}
    for upstream in found:
        given = dict(zip(upstream.arguments[::2], upstream.arguments[1::2], strict=True))
        entry = getattr(s3prl.hub, given["-u"])
        models[upstream.name] = entry(ckpt=given.get("-k"), model_config=given.get("-g")).eval()
    seconds = {name: [0.0] * (REPEATS + 1) for name in models}
    for repeat in range(REPEATS + 1):  # the first warms up
        for waveform in waveforms:
            for name, model in models.items():
                start = time.perf_counter()
                model([waveform])
                seconds[name][repeat] += time.perf_counter() - start
    total = sum(len(waveform) for waveform in waveforms) / RATE
    return {name: [value / total for value in values[1:]] for name, values in seconds.items()}


def measure(found: list[Upstream], corpora: dict[str, Path], path: Path) -> None:
    """Time these upstreams on the tasks' test audio, and put the medians into a file, beside those that are there."""
    known = read(path)
    for task, corpus in corpora.items():
        for condition in HEARD:
            timed = factors(found, recordings(task, corpus, condition))
            for name, values in timed.items():
                known[f"{task} {name} {condition}"] = statistics.median(values)
    files.write_json(path, known)


def read(path: Path) -> dict[str, float]:
    """What was measured: "task upstream condition" to the real-time factor."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
