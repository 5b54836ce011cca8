"""Effects of killing workers, drivers and nodes during an extraction."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.distributed.clusters import Cluster
from benchmarks.distributed.run_extraction import Order, compare_folders, run, start
from benchmarks.shared.results import Row
from benchmarks.speed.measures import make_row
from daisy.errors import DaisyError


def kill_often(order: Order, place: Path, count: int, generator: random.Random) -> list[Row]:
    """Fill one folder after another, killing workers and drivers meanwhile, until there are ``count`` kills."""
    expected = run(replace(order, out=str(place / "local"), batch_sec=2.0))
    killed: Counter[str] = Counter()
    faults: list[dict[str, float]] = []
    repeated: Counter[str] = Counter()
    while killed.total() < count:
        out = place / f"out-{len(faults)}"
        again, victims = fill_folder(replace(order, out=str(out), workers=2, batch_sec=2.0), count, killed, generator)
        killed += victims
        repeated += again
        faults.append(compare_folders(out, place / "local"))
        if list(out.rglob("*.part")):
            raise DaisyError(f"{out}: half-written files are left")
    return [
        make_row(
            "kills",
            engine="ray",
            workers=2,
            audio_sec=expected["audio_sec"] * len(faults),
            killed=killed.total(),
            killed_workers=killed["worker"],
            killed_drivers=killed["driver"],
            repeated_batches=repeated["batch"],
            repeated_files=repeated["file"],
            lost=sum(fault["lost"] for fault in faults),
            double=sum(fault["double"] for fault in faults),
            max_abs_diff_over_std=max(fault["max_abs_diff_over_std"] for fault in faults),
        )
    ]


def fill_folder(
    order: Order, count: int, killed: Counter[str], generator: random.Random
) -> tuple[Counter[str], Counter[str]]:
    """Extract to the end, with kills at random moments.

    Returns:
        What was repeated, and the kills. ``batch`` counts the batches that a killed worker had begun and, at most, one
        for each worker of a killed driver; ``file`` counts the recordings whose files were already complete.
    """
    out, status = Path(order.out), Path(f"{order.out}.status")
    victims: Counter[str] = Counter()
    stamps: dict[str, int] = {}
    repeated: Counter[str] = Counter()
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
            repeated["file"] += sum(stamps.get(name, stamp) != stamp for name, stamp in before.items())
            stamps = before
            with contextlib.suppress(ProcessLookupError):
                os.kill(driver.pid if kind == "driver" else workers[-1], signal.SIGKILL)
                victims[kind] += 1
                repeated["batch"] += order.workers if kind == "driver" else 0
        text = driver.stdout.read() if driver.stdout else ""
        if driver.returncode == 0:
            after = stamp_files(out)
            repeated["file"] += sum(stamps.get(name, stamp) != stamp for name, stamp in after.items())
            repeated["batch"] += json.loads(text.splitlines()[-1])["repeated"]
            return repeated, victims
        repeated["batch"] += read_repeated(status)
        if driver.returncode != -signal.SIGKILL:
            raise subprocess.CalledProcessError(driver.returncode, "extraction", text)


def read_workers(status: Path) -> list[int]:
    """Read the process IDs of the workers that are still running; empty before any recording is finished."""
    try:
        workers = json.loads(status.read_text())["workers"]
    except (OSError, ValueError):
        return []
    return [worker["pid"] for worker in workers if Path(f"/proc/{worker['pid']}").exists()]


def read_repeated(status: Path) -> int:
    """Read how many batches a driver has repeated."""
    try:
        return int(json.loads(status.read_text())["repeated"])
    except (OSError, ValueError):
        return 0


def stamp_files(out: Path) -> dict[str, int]:
    """Return the time at which each feature file was written."""
    stamps = {}
    for path in out.rglob("[!.]*.safetensors"):
        with contextlib.suppress(FileNotFoundError):
            stamps[str(path)] = path.stat().st_mtime_ns
    return stamps


def lose_a_node(order: Order, place: Path, cluster: Cluster) -> list[Row]:
    """Extract on two nodes, and kill one as soon as both have begun."""
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
            repeated_batches=result["repeated"],
            lost_workers=result["lost"],
            **compare_folders(out, place / "local"),
        )
    ]


def read_nodes(status: Path) -> set[str]:
    """Read the nodes whose workers are ready."""
    try:
        return {worker["node"] for worker in json.loads(status.read_text())["workers"]}
    except (OSError, ValueError):
        return set()
