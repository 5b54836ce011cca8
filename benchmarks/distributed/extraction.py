"""Extraction on Ray: equal to the local engine, its overhead, speed and memory, and what kills do to it.

    python -m benchmarks.distributed.extraction                     # results/distributed_extraction.json
    python -m benchmarks.distributed.extraction --quick             # a few recordings; no results file
    python -m benchmarks.distributed.extraction --parts kills       # one part; no results file

- equality: exits, index and states beside the local engine's.
- speed: the local engine, one and two workers, in turns, on a cluster that runs already; a worker's start is apart.
- memory: of the process that hands out the work, at 1,000 and 100,000 recordings of 0.1 s.
- kills: workers and drivers at random moments; a worker is killed with its process, a driver likewise.
- nodes: two nodes on this machine, one of which leaves in the middle.

Processes that are killed are those that this one has started. Each extraction is a process of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import statistics
import subprocess
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from benchmarks.distributed.clusters import Cluster, start_cluster
from benchmarks.distributed.run_extraction import Order, run, start
from benchmarks.shared.recordings import DATA, TEST_SETS, make_noise, read_index
from benchmarks.shared.results import Row, write_result
from benchmarks.shared.script import make_parser, run_script
from benchmarks.speed.measures import make_row
from daisy import audio
from daisy.errors import DaisyError

PARTS = ("equality", "speed", "memory", "kills", "nodes")
SPEED_TURNS = 3
SHORT_SEC = 0.1


def main() -> None:
    parser = make_parser(__doc__, quick="a few recordings and kills; nothing is written")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--seed", type=int, default=0, help="of the moments of kills; 0 if not given")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="daisy-", ignore_cleanup_errors=True) as name:
        place = Path(name)
        inputs = write_inputs(place / "inputs.tsv", 4 if arguments.quick else 60)
        for part in arguments.parts:
            (place / part).mkdir()
            with start_cluster(1 if part == "nodes" else 2) as cluster:
                order = Order(inputs=str(inputs), out="", address=cluster.address)
                if part == "equality":
                    rows += measure_equality(order, place / part)
                elif part == "speed":
                    rows += measure_speed(order, place / part, 1 if arguments.quick else SPEED_TURNS)
                elif part == "memory":
                    rows += measure_memory(order, place / part, (100, 300) if arguments.quick else (1000, 100_000))
                elif part == "kills":
                    rows += kill_often(order, place / part, 3 if arguments.quick else 20, random.Random(arguments.seed))
                else:
                    rows += lose_a_node(order, place / part, cluster)
    if not arguments.quick and set(arguments.parts) == set(PARTS):
        write_result("distributed_extraction", rows)


def write_inputs(manifest: Path, limit: int) -> Path:
    """Write a manifest of so many recordings of each shared set's test split."""
    lines = [str(DATA)]
    for set_name in TEST_SETS:
        for row in read_index(set_name, "test", limit):
            path = f"{set_name}/{row['path']}"
            lines.append(f"{path}\t{audio.num_samples(DATA / path, 16000)}")
    manifest.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return manifest


def measure_equality(order: Order, place: Path) -> list[Row]:
    """Extract with both engines and compare what they wrote."""
    local = run(replace(order, out=str(place / "local")))
    ray = run(replace(order, out=str(place / "ray"), workers=2))
    difference = compare_folders(place / "ray", place / "local")
    return [
        make_row(
            "equality",
            engine="ray",
            workers=2,
            audio_sec=ray["audio_sec"],
            num_recordings=ray["num_recordings"],
            seconds=ray["seconds"],
            local_seconds=local["seconds"],
            same_index=True,
            max_abs_diff_over_std=difference,
        )
    ]


def compare_folders(out: Path, expected: Path) -> float:
    """Check that two folders have the same index but for times, and compare their states.

    Returns:
        The largest difference of a recording's states, in standard deviations of it.

    Raises:
        DaisyError: where the index is another one, or the journal has a recording twice.
    """
    index, expected_index = read_index_file(out), read_index_file(expected)
    if index != expected_index:
        raise DaisyError(f"{out}: its index differs from the local engine's")
    lines = Counter(json.loads(line)["path"] for line in (out / "journal.jsonl").read_text().splitlines()[1:])
    if set(lines.values()) != {1} or len(lines) != len(index):
        raise DaisyError(f"{out}: its journal has {sum(lines.values())} lines for {len(index)} recordings")
    return max(
        float((load_file(out / name)["states"] - states).abs().max() / states.std())
        for name, states in ((row[1], load_file(expected / row[1])["states"]) for row in index)
    )


def read_index_file(out: Path) -> list[tuple[str, str, float, int]]:
    """Read path, output, duration and exit layer of each recording; refuse failures."""
    index = json.loads((out / "index.json").read_text())
    if index["failed"]:
        raise DaisyError(f"{out}: {len(index['failed'])} recordings failed")
    return [(row["path"], row["output"], row["duration_sec"], row["exit_layer"]) for row in index["recordings"]]


def measure_speed(order: Order, place: Path, turns: int) -> list[Row]:
    """Measure seconds and audio hours an hour; all beyond the start of Ray's workers counts as overhead."""
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


def measure_memory(order: Order, place: Path, counts: tuple[int, ...]) -> list[Row]:
    """Measure the peak of the process that hands out the work, at numbers of short recordings."""
    rows = []
    for count in counts:
        inputs = write_short_recordings(place / f"{count}", count)
        for workers in (0, 1):
            out = place / f"out-{count}-{workers}"
            result = run(
                replace(order, inputs=str(inputs), out=str(out), workers=workers, layer=1, shards="safetensors")
            )
            rows.append(
                make_row(
                    "memory",
                    engine="ray" if workers else "local",
                    workers=max(workers, 1),
                    num_recordings=result["num_recordings"],
                    audio_sec=result["audio_sec"],
                    seconds=result["seconds"],
                    peak_bytes=result["peak_bytes"],
                )
            )
    return rows


def write_short_recordings(folder: Path, count: int) -> Path:
    """Write one short recording, and give it so many names."""
    folder.mkdir()
    samples = make_noise(int(SHORT_SEC * 16000), torch.Generator().manual_seed(0))
    (folder / "0.wav").write_bytes(audio.encode_wav(samples, 16000))
    for index in range(1, count):
        os.link(folder / "0.wav", folder / f"{index}.wav")
    return folder


def kill_often(order: Order, place: Path, count: int, generator: random.Random) -> list[Row]:
    """Fill folder after folder, killing workers and drivers on the way, until so many have been killed."""
    expected = run(replace(order, out=str(place / "local"), batch_sec=2.0))
    killed: Counter[str] = Counter()
    repeated = folders = 0
    while killed.total() < count:
        out = place / f"out-{folders}"
        again, victims = fill_folder(replace(order, out=str(out), workers=2, batch_sec=2.0), count, killed, generator)
        killed += victims
        repeated += again
        folders += 1
        difference = compare_folders(out, place / "local")
        if difference > 1e-4 or list(out.rglob("*.part")):
            raise DaisyError(f"{out}: states differ by {difference}, or half-written files are left")
    return [
        make_row(
            "kills",
            engine="ray",
            workers=2,
            audio_sec=expected["audio_sec"] * folders,
            killed=killed.total(),
            killed_workers=killed["worker"],
            killed_drivers=killed["driver"],
            repeated=repeated,
            lost=0,  # else compare_folders has refused
        )
    ]


def fill_folder(order: Order, count: int, killed: Counter[str], generator: random.Random) -> tuple[int, Counter[str]]:
    """Extract to the end, with kills at random moments.

    Returns:
        Recordings that were encoded again, though whole files of theirs were there; and the kills.
    """
    out, status = Path(order.out), Path(f"{order.out}.status")
    victims: Counter[str] = Counter()
    stamps: dict[str, int] = {}
    repeated = 0
    while True:
        status.unlink(missing_ok=True)
        driver = start(replace(order, status=str(status)))
        while driver.poll() is None:
            time.sleep(generator.uniform(0.2, 3.0))
            workers = read_workers(status)
            if killed.total() + victims.total() >= count or not workers or driver.poll() is not None:
                continue
            kind = generator.choice(["worker", "worker", "driver"])
            before = stamp_files(out)
            repeated += sum(stamps.get(name, stamp) != stamp for name, stamp in before.items())
            stamps = before
            with contextlib.suppress(ProcessLookupError):
                os.kill(driver.pid if kind == "driver" else workers[-1], signal.SIGKILL)
                victims[kind] += 1
        text = driver.stdout.read() if driver.stdout else ""
        if driver.returncode == 0:
            after = stamp_files(out)
            repeated += sum(stamps.get(name, stamp) != stamp for name, stamp in after.items())
            return repeated, victims
        if driver.returncode != -signal.SIGKILL:
            raise subprocess.CalledProcessError(driver.returncode, "extraction", text)


def read_workers(status: Path) -> list[int]:
    """Read the workers' processes that still run; none before something is finished."""
    try:
        workers = json.loads(status.read_text())["workers"]
    except (OSError, ValueError):
        return []
    return [worker["pid"] for worker in workers if Path(f"/proc/{worker['pid']}").exists()]


def stamp_files(out: Path) -> dict[str, int]:
    """Tell when each feature file was written."""
    stamps = {}
    for path in out.rglob("[!.]*.safetensors"):
        with contextlib.suppress(FileNotFoundError):
            stamps[str(path)] = path.stat().st_mtime_ns
    return stamps


def lose_a_node(order: Order, place: Path, cluster: Cluster) -> list[Row]:
    """Extract on two nodes; when both have begun, one is taken away."""
    expected = run(replace(order, out=str(place / "local"), batch_sec=2.0))
    second = cluster.add_node(1)
    status, out = place / "status", place / "out"
    process = start(replace(order, out=str(out), workers=2, batch_sec=2.0, status=str(status)))
    while process.poll() is None and len(read_nodes(status)) < 2:
        time.sleep(0.1)
    cluster.kill_node(second)
    text, _ = process.communicate()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, "extraction")
    result: dict[str, Any] = json.loads(text.splitlines()[-1])
    return [
        make_row(
            "nodes",
            engine="ray",
            workers=2,
            audio_sec=expected["audio_sec"],
            seconds=result["seconds"],
            nodes=result["nodes"],
            killed=1,
            repeated=result["repeated"],
            lost_workers=result["lost"],
            max_abs_diff_over_std=compare_folders(out, place / "local"),
        )
    ]


def read_nodes(status: Path) -> set[str]:
    """Read the nodes on which workers are ready."""
    try:
        return {worker["node"] for worker in json.loads(status.read_text())["workers"]}
    except (OSError, ValueError):
        return set()


if __name__ == "__main__":
    run_script(main)
