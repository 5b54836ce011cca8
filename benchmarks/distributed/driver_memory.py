"""Memory of the process that distributes an extraction, by number of recordings, without any encoding.

    python -m benchmarks.distributed.driver_memory FOLDER        # prints JSON

Everything is as in `daisy extract` except the engine, which takes the tasks and returns made-up rows, each with two
scores at six layers.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Generator, Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import daisy
from benchmarks.shared.script import make_parser, run_script
from benchmarks.speed.memory import read_peak_bytes
from daisy import EarlyExitEncoder, audio
from daisy.audio import Recording
from daisy.extraction import Extractor
from daisy.extraction.batch_encoder import Outcome
from daisy.extraction.journal import Row, stamp
from daisy.extraction.tasks import Task, TaskEncoder

LAYER = 6


class MadeUp:
    """An engine that encodes nothing and returns made-up rows."""

    has_workers = False

    def __init__(self) -> None:
        self.begin_bytes = self.end_bytes = 0
        """Memory when the first task arrives, and when all tasks are done."""

    def open(self, encoder: EarlyExitEncoder) -> AbstractContextManager[object]:
        return nullcontext()

    def encode(
        self, task_encoder: TaskEncoder, tasks: Iterable[Task], run_file: Path
    ) -> Generator[Iterable[Outcome], None, None]:
        for task in tasks:
            self.begin_bytes = self.begin_bytes or read_bytes()
            yield [
                (recording, make_row(recording, output, task.shard))
                for batch in task.batches
                for recording, output in zip(batch.recordings, batch.outputs, strict=True)
            ]
        self.end_bytes = read_bytes()


def make_row(recording: Recording, output: str, shard: str) -> Row:
    scores = [0.1234567 * layer + 1e-7 * len(output) for layer in range(LAYER)]
    return Row(
        path=str(recording.path),
        output=output,
        duration_sec=0.1,
        exit_layer=LAYER,
        num_layers=12,
        seconds=0.00123456789,
        scores={"entropy": scores, "regressed": list(scores)},
        source=stamp(recording),
        shard=shard,
    )


def read_bytes() -> int:
    """Read how much memory this process uses now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measure(folder: Path) -> dict[str, float]:
    """Measure the memory of this process, in bytes above what it used before."""
    encoder = daisy.load("daisy-mini").encoder("fixed", layer=LAYER, keep="last", scores=["entropy", "regressed"])
    before = read_bytes()
    recordings = audio.find([folder])
    listed = read_bytes()
    engine = MadeUp()
    with tempfile.TemporaryDirectory(prefix="daisy-") as out:
        report = Extractor(encoder, out, checkpoint="0" * 64, engine=engine, shards="safetensors").run(recordings)
    return {
        "num_recordings": len(report.rows),
        "list_bytes": listed - before,
        "begin_bytes": engine.begin_bytes - before,
        "end_bytes": engine.end_bytes - before,
        "peak_bytes": read_peak_bytes() - before,
    }


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("folder", type=Path, help="folder of recordings")
    print(json.dumps(measure(parser.parse_args().folder)))


if __name__ == "__main__":
    run_script(main)
