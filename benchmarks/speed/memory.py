"""Time and peak memory of daisy-mini, by number and by length of recordings, each in a process of its own.

    python -m benchmarks.speed.memory              # results/memory.json
    python -m benchmarks.speed.memory --quick      # a few; no results file

Recordings of four seconds, in batches of seven; and one recording of 1 s to an hour, in windows of 30 s and, up to four
minutes, also in one run. The audio is random and the policy is the default.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from pathlib import Path

import torch

import daisy
from benchmarks.shared.recordings import SAMPLE_RATE, make_noise
from benchmarks.shared.results import Row, read_rows_beside, write_result
from benchmarks.shared.script import make_parser, module_command, module_environment, run_script
from benchmarks.speed.figures import draw_memory
from benchmarks.speed.measures import make_row
from daisy.cli.options import DEFAULT_POLICY
from daisy.encoder import EarlyExitEncoder
from daisy.extraction import Settings, windows

BATCH = 7
UTTERANCE_SEC = 4
WINDOW_SEC = 30.0
MAX_SEC_IN_ONE_RUN = 240


def measure_by_utterances(quick: bool) -> list[Row]:
    """Measure 1 to 1,000 recordings of four seconds, in batches of seven, each number in a process of its own."""
    counts = (1, 10, 30) if quick else (1, 3, 10, 30, 100, 300, 1000)
    return [
        make_row("utterances", size="mini", num_utterances=count, **measure_in_process("utterances", count))
        for count in counts
    ]


def measure_by_length(quick: bool) -> list[Row]:
    """Measure a recording of 1 s to an hour, in windows and, if it is short enough, in one run."""
    lengths = (1, 10, 60) if quick else (1, 3, 10, 30, 60, 240, 600, 1800, 3600)
    short = [seconds for seconds in lengths if seconds <= MAX_SEC_IN_ONE_RUN]
    return [
        make_row("length", size="mini", mode=mode, audio_sec=seconds, **measure_in_process(kind, seconds))
        for mode, kind, chosen in (("windows", "windows", lengths), ("one run", "whole", short))
        for seconds in chosen
    ]


def measure_in_process(kind: str, count: int) -> dict[str, float]:
    """Measure seconds and peak memory in a process of its own; see `run_child`."""
    command = module_command("benchmarks.speed.memory", ["--child", kind, str(count)])
    ended = subprocess.run(command, capture_output=True, text=True, check=True, env=module_environment())
    return json.loads(ended.stdout.splitlines()[-1])


@torch.no_grad()
def run_child(kind: str, count: int) -> None:
    """Run, and print the seconds, the peak memory, and the peak memory before the run.

    Args:
        kind: "utterances": recordings of four seconds; "windows", "whole": one recording, in windows or in one run.
        count: number of recordings, or length of the one in seconds.
    """
    encoder = daisy.load("daisy-mini").encoder(DEFAULT_POLICY, keep="last")
    generator = torch.Generator().manual_seed(0)
    encoder([make_noise(SAMPLE_RATE, generator)])
    before, start = read_peak_bytes(), time.perf_counter()
    if kind == "utterances":
        run_batches(encoder, count, generator)
    elif kind == "windows":
        run_windows(encoder, count, generator)
    else:
        encoder([make_noise(count * SAMPLE_RATE, generator)])
    seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds, "peak_bytes": read_peak_bytes(), "before_bytes": before}))


def run_batches(encoder: EarlyExitEncoder, count: int, generator: torch.Generator) -> None:
    """Run ``count`` recordings in batches."""
    for first in range(0, count, BATCH):
        encoder([make_noise(UTTERANCE_SEC * SAMPLE_RATE, generator) for _ in range(min(BATCH, count - first))])


def run_windows(encoder: EarlyExitEncoder, seconds: int, generator: torch.Generator) -> None:
    """Run a recording of ``seconds`` in windows, whose audio is drawn when it is read."""

    def read(first: int, last: int) -> torch.Tensor:
        return make_noise(last - first, generator)

    for _ in windows.run(encoder, read, seconds * SAMPLE_RATE, window_sec=WINDOW_SEC, context_sec=Settings.context_sec):
        pass


def read_peak_bytes() -> int:
    """Read the peak memory of this process so far; getrusage would include that of its parent process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def main() -> None:
    parser = make_parser(__doc__, quick="a few; nothing is written")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.child:
        run_child(arguments.child[0], int(arguments.child[1]))
        return
    if not arguments.quick:
        read_rows_beside("memory")  # refuses to overwrite another machine's results
    rows = measure_by_utterances(arguments.quick) + measure_by_length(arguments.quick)
    if not arguments.quick:
        write_result("memory", rows)
        draw_memory(rows)


if __name__ == "__main__":
    run_script(main)
