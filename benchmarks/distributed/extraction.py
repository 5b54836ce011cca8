"""Extraction on Ray: agreement with the local engine, overhead, speed, memory, and the effect of kills.

    python -m benchmarks.distributed.extraction                     # results/distributed_extraction.json
    python -m benchmarks.distributed.extraction --minutes 9         # for 9 minutes; the same command continues
    python -m benchmarks.distributed.extraction --parts kills       # one part
    python -m benchmarks.distributed.extraction --quick             # a few recordings; no results file

- equality: exits, index and states compared with those of the local engine.
- speed: the local engine, one and two workers, in turns, on a running cluster; the start of workers is separate.
- memory: peak memory of the process that distributes the work, with 1,000 and 100,000 recordings of 0.1 s.
- driver: the same without a model and without encoding, up to 1,000,000 recordings: the cost of their number alone.
- kills: workers and drivers killed at random moments, each with its whole process.
- nodes: two nodes on this machine, one of which is killed in the middle of the run.

Only processes that this script has started are killed. Each extraction runs in a process of its own.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.distributed.clusters import Cluster, start_cluster
from benchmarks.distributed.failures import kill_often, lose_a_node
from benchmarks.distributed.run_extraction import Order, compare_folders, run
from benchmarks.distributed.steps import Step, add_options, run_steps
from benchmarks.shared.recordings import DATA, TEST_SETS, make_noise, read_index
from benchmarks.shared.results import Row
from benchmarks.shared.script import make_parser, module_command, module_environment, run_script
from benchmarks.speed.measures import make_row
from daisy import audio

PARTS = ("equality", "speed", "memory", "driver", "kills", "nodes")
SPEED_TURNS = 3
SHORT_SEC = 0.1
KILLS_AT_ONCE = 5
"""Number of kills in one step of the part kills."""
MAX_LINKS = 50_000
"""Maximum number of hard links to a file; file systems have limits."""


def main() -> None:
    parser = make_parser(__doc__, quick="a few recordings and kills; nothing is written")
    add_options(parser, PARTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="daisy-", ignore_cleanup_errors=True) as name:
        place = Path(name)
        inputs = write_inputs(place / "inputs.tsv", 4 if arguments.quick else 60)
        steps = (step for part in arguments.parts for step in list_steps(part, place, inputs, arguments.quick))
        run_steps("distributed_extraction", steps, arguments)


def list_steps(part: str, place: Path, inputs: Path, quick: bool) -> Iterator[Step]:
    """List the measurements of one part."""
    if part == "equality":
        yield _make_step(part, {}, lambda order, out, cluster: measure_equality(order, out), place, inputs)
    elif part == "speed":
        turns = 1 if quick else SPEED_TURNS
        yield _make_step(part, {}, lambda order, out, cluster: measure_speed(order, out, turns), place, inputs)
    elif part == "memory":
        for count in (100, 300) if quick else (1000, 100_000):
            for workers in (0, 1):
                yield _make_step(
                    part,
                    {"num_recordings": count, "engine": "ray" if workers else "local"},
                    lambda order, out, cluster, count=count, workers=workers: measure_memory(
                        order, out, count, workers
                    ),
                    place,
                    inputs,
                )
    elif part == "driver":
        for count in (1000, 20_000) if quick else (10_000, 100_000, 1_000_000):
            yield Step(
                key={"measure": part, "num_recordings": count},
                measure=lambda count=count: measure_driver(place, count),  # type: ignore[misc]
            )
    elif part == "kills":
        for seed in range(1) if quick else range(20 // KILLS_AT_ONCE):
            yield _make_step(
                part,
                {"seed": seed},
                lambda order, out, cluster, seed=seed: kill_often(
                    order, out, 3 if quick else KILLS_AT_ONCE, random.Random(seed)
                ),
                place,
                inputs,
            )
    else:
        yield _make_step(part, {}, lambda order, out, cluster: lose_a_node(order, out, cluster), place, inputs, 1)


def _make_step(
    part: str,
    key: dict[str, Any],
    measure: Callable[[Order, Path, Cluster], list[Row]],
    place: Path,
    inputs: Path,
    num_cpus: int = 2,
) -> Step:
    """Make a step that has its own cluster and folder."""

    def run_it() -> list[Row]:
        with (
            tempfile.TemporaryDirectory(dir=place, ignore_cleanup_errors=True) as out,
            start_cluster(num_cpus) as cluster,
        ):
            return measure(Order(inputs=str(inputs), out="", address=cluster.address), Path(out), cluster)

    return Step(key={"measure": part, **key}, measure=run_it)


def write_inputs(manifest: Path, limit: int) -> Path:
    """Write a manifest with at most ``limit`` recordings of the test split of each shared set."""
    lines = [str(DATA)]
    for set_name in TEST_SETS:
        for row in read_index(set_name, "test", limit):
            path = f"{set_name}/{row['path']}"
            lines.append(f"{path}\t{audio.num_samples(DATA / path, 16000)}")
    manifest.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return manifest


def measure_equality(order: Order, place: Path) -> list[Row]:
    """Extract with both engines and compare their output."""
    local = run(replace(order, out=str(place / "local")))
    ray = run(replace(order, out=str(place / "ray"), workers=2))
    return [
        make_row(
            "equality",
            engine="ray",
            workers=2,
            audio_sec=ray["audio_sec"],
            num_recordings=ray["num_recordings"],
            seconds=ray["seconds"],
            local_seconds=local["seconds"],
            **compare_folders(place / "ray", place / "local"),
        )
    ]


def measure_speed(order: Order, place: Path, turns: int) -> list[Row]:
    """Measure seconds and hours of audio per hour; everything except the start of Ray's workers counts as overhead."""
    seconds: dict[int, list[float]] = {0: [], 1: [], 2: []}
    starts: dict[int, list[float]] = {0: [], 1: [], 2: []}
    busy: dict[int, list[float]] = {0: [], 1: [], 2: []}
    for turn in range(turns):
        for workers in seconds:
            result = run(replace(order, out=str(place / f"{workers}-{turn}"), workers=workers))
            seconds[workers].append(result["seconds"])
            starts[workers].append(result["start_sec"])
            busy[workers].append(result["seconds"] - result["start_sec"])
    rows = []
    for workers, times in seconds.items():
        overhead = statistics.median(mine / local for mine, local in zip(busy[workers], busy[0], strict=True)) - 1
        rows.append(
            make_row(
                "speed",
                engine="ray" if workers else "local",
                workers=max(workers, 1),
                audio_sec=result["audio_sec"],
                seconds=statistics.median(times),
                start_sec=statistics.median(starts[workers]),
                busy_sec=statistics.median(busy[workers]),
                overhead=overhead,
                audio_hours_per_hour=result["audio_sec"] / statistics.median(busy[workers]),
            )
        )
    return rows


def measure_memory(order: Order, place: Path, count: int, workers: int) -> list[Row]:
    """Measure the peak memory of the process that distributes the work, for a number of short recordings."""
    inputs = write_short_recordings(place / "in", count)
    result = run(
        replace(order, inputs=str(inputs), out=str(place / "out"), workers=workers, layer=1, shards="safetensors")
    )
    return [
        make_row(
            "memory",
            engine="ray" if workers else "local",
            workers=max(workers, 1),
            num_recordings=result["num_recordings"],
            audio_sec=result["audio_sec"],
            seconds=result["seconds"],
            peak_bytes=result["peak_bytes"],
        )
    ]


def measure_driver(place: Path, count: int) -> list[Row]:
    """Measure `benchmarks.distributed.driver_memory`, which encodes nothing, in a process of its own."""
    with tempfile.TemporaryDirectory(dir=place) as folder:
        inputs = write_short_recordings(Path(folder) / "in", count)
        command = module_command("benchmarks.distributed.driver_memory", [str(inputs)])
        ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=module_environment())
    result: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return [make_row("driver", **result, peak_bytes_per_recording=result["peak_bytes"] / count)]


def write_short_recordings(folder: Path, count: int) -> Path:
    """Write short recordings as hard links to one file, or to several where links are limited."""
    folder.mkdir()
    samples = make_noise(int(SHORT_SEC * 16000), torch.Generator().manual_seed(0))
    for index in range(count):
        if index % MAX_LINKS == 0:
            first = folder / f"{index}.wav"
            first.write_bytes(audio.encode_wav(samples, 16000))
        else:
            os.link(first, folder / f"{index}.wav")
    return folder


if __name__ == "__main__":
    run_script(main)
