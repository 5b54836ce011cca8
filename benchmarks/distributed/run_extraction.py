"""Run one extraction in a process of its own, and print its time, memory and counts as JSON.

    python -m benchmarks.distributed.run_extraction '{"inputs": "recordings", "out": "features", "workers": 2}'

Other scripts start it in this way; see `Order` for the options.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

import daisy
from benchmarks.shared.script import make_parser, module_command, module_environment, run_script
from benchmarks.speed.memory import read_peak_bytes
from daisy import _files, audio, checkpoints
from daisy.distributed.extraction import RayEngine
from daisy.errors import DaisyError
from daisy.extraction import Extractor


@dataclass(frozen=True, kw_only=True)
class Order:
    """Options of one extraction.

    Args:
        inputs: a folder or a manifest.
        out: the folder to fill.
        checkpoint: a bundled model's name, or a file.
        layer: layer at which all recordings leave; 0 uses the default policy.
        workers: number of Ray workers; 0 uses the local engine.
        address: address of a Ray cluster; if empty, one is started.
        batch_sec: seconds of audio in a batch.
        shards: kind of shard files; if empty, each recording has its own file.
        shard_mb: size of the shards in MB.
        status: file that lists the workers' processes, rewritten whenever a recording is finished; empty for none.
    """

    inputs: str
    out: str
    checkpoint: str = "daisy-mini"
    layer: int = 0
    workers: int = 0
    address: str = ""
    batch_sec: float = 30.0
    shards: str = ""
    shard_mb: float = 64.0
    status: str = ""


def start(order: Order) -> subprocess.Popen[str]:
    """Start an extraction in a process of its own."""
    command = module_command("benchmarks.distributed.run_extraction", [json.dumps(asdict(order))])
    environment = {**module_environment(), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def run(order: Order) -> dict[str, Any]:
    """Run an extraction in a process of its own, and return its measurements.

    Returns:
        ``seconds`` without Python's start-up, ``start_sec`` (those until a worker was ready), ``peak_bytes`` of its
        process, ``audio_sec``, ``num_recordings``, ``num_resumed``, and Ray's ``lost``, ``repeated`` and ``nodes``.
    """
    process = start(order)
    text, _ = process.communicate()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, process.args)
    result: dict[str, Any] = json.loads(text.splitlines()[-1])
    return result


def extract(order: Order) -> dict[str, Any]:
    """Run the extraction in this process."""
    torch.set_num_threads(1)
    recordings = audio.find([order.inputs])
    policy = {"layer": order.layer} if order.layer else {}
    encoder = daisy.load(order.checkpoint).encoder("fixed" if order.layer else "forecast", keep="last", **policy)
    engine = RayEngine(order.address or None, workers=order.workers) if order.workers else None
    extractor = Extractor(
        encoder,
        order.out,
        checkpoint=checkpoints.digest(order.checkpoint),
        batch_sec=order.batch_sec,
        engine=engine,
        shards=order.shards or None,  # type: ignore[arg-type]
        shard_mb=order.shard_mb,
    )

    def write_status(count: int) -> None:
        if order.status and engine is not None:
            workers = [worker._asdict() for worker in engine.tally.workers]
            content = {"driver": os.getpid(), "workers": workers, "repeated": engine.tally.repeated}
            _files.write_json(Path(order.status), content)

    begun = time.perf_counter()
    report = extractor.run(recordings, progress=write_status)
    seconds = time.perf_counter() - begun
    tally = engine.tally if engine is not None else None
    return {
        "seconds": seconds,
        "start_sec": tally.start_sec if tally else 0.0,
        "peak_bytes": read_peak_bytes(),
        "audio_sec": sum(row.duration_sec for row in report.rows),
        "num_recordings": len(report.rows),
        "num_resumed": report.num_resumed,
        "lost": tally.lost if tally else 0,
        "repeated": tally.repeated if tally else 0,
        "nodes": len({worker.node for worker in tally.workers}) if tally else 1,
    }


def compare_folders(out: Path, expected: Path) -> dict[str, float]:
    """Compare the output of an extraction with that of the local engine.

    Returns:
        ``lost``: number of recordings whose index entry differs from the local engine's, apart from times; ``double``:
        number of journal lines beyond one for each recording; ``max_abs_diff_over_std``: the largest difference of the
        other recordings' states, in standard deviations of a recording's states.
    """
    index, expected_index = read_index_file(out), read_index_file(expected)
    kept = set(index) & set(expected_index)
    lines = Counter(json.loads(line)["path"] for line in (out / "journal.jsonl").read_text().splitlines()[1:])
    differences = [
        float((load_file(out / name)["states"] - states).abs().max() / states.std())
        for name, states in ((row[1], load_file(expected / row[1])["states"]) for row in kept)
    ]
    return {
        "lost": len(expected_index) - len(kept),
        "double": len(index) - len(set(index)) + lines.total() - len(lines),
        "max_abs_diff_over_std": max(differences, default=float("nan")),
    }


def read_index_file(out: Path) -> list[tuple[str, str, float, int]]:
    """Read path, output, duration and exit layer of each recording; raise an error if any recording failed."""
    index = json.loads((out / "index.json").read_text())
    if index["failed"]:
        raise DaisyError(f"{out}: {len(index['failed'])} recordings failed")
    return [(row["path"], row["output"], row["duration_sec"], row["exit_layer"]) for row in index["recordings"]]


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("order", help="an Order as JSON")
    print(json.dumps(extract(Order(**json.loads(parser.parse_args().order)))))


if __name__ == "__main__":
    run_script(main)
