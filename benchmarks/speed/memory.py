"""Time and peak memory of daisy-mini by number of recordings, and by length, each in a process of its own.

    python benchmarks/memory.py              # results/memory.json
    python benchmarks/memory.py --quick      # a few; no results file

Recordings of four seconds, seven in a batch; and one recording of 1 s to an hour, in windows of 30 s and, up to four
minutes, in one run. Random audio with the default policy.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import speed_figures
import torch
from common import guarded, kept, write
from latency import RATE
from measures import row

import daisy
from daisy.cli.console import DEFAULT_POLICY
from daisy.encoder import EarlyExitEncoder
from daisy.extraction import windows


def by_utterances(quick: bool) -> list[dict]:
    """1 to 1,000 recordings of four seconds in batches of 30 s, each count in a process of its own."""
    counts = (1, 10, 30) if quick else (1, 3, 10, 30, 100, 300, 1000)
    return [row("utterances", size="mini", num_utterances=count, **alone("utterances", count)) for count in counts]


def by_length(quick: bool) -> list[dict]:
    """One recording of 1 s to an hour in windows of 30 s, and in one run up to four minutes; processes of their own."""
    lengths = (1, 10, 60) if quick else (1, 3, 10, 30, 60, 240, 600, 1800, 3600)
    rows = [row("length", size="mini", mode="windows", audio_sec=n, **alone("windows", n)) for n in lengths]
    return rows + [
        row("length", size="mini", mode="one run", audio_sec=n, **alone("whole", n)) for n in lengths if n <= 240
    ]


def alone(what: str, count: int) -> dict[str, float]:
    """Seconds and peak memory of a process of its own."""
    command = [sys.executable, __file__, "--child", what, str(count)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


@torch.no_grad()
def child(what: str, count: int) -> None:
    """Run, and print seconds and peak memory, of which what was there before it began is also said."""
    model = daisy.load("daisy-mini")
    encoder = EarlyExitEncoder(model.backbone, model.heads, model.policy(DEFAULT_POLICY), keep="last")
    generator = torch.Generator().manual_seed(0)
    encoder([0.1 * torch.randn(RATE, generator=generator)])
    before, start = peak_bytes(), time.perf_counter()
    if what == "utterances":
        for first in range(0, count, 7):
            batch = [0.1 * torch.randn(4 * RATE, generator=generator) for _ in range(min(7, count - first))]
            encoder(batch)
    elif what == "windows":
        read = lambda first, last: 0.1 * torch.randn(last - first, generator=generator)  # noqa: E731
        for _ in windows.run(encoder, read, count * RATE, window_sec=30.0):
            pass
    else:
        encoder([0.1 * torch.randn(count * RATE, generator=generator)])
    print(json.dumps({"seconds": time.perf_counter() - start, "peak_bytes": peak_bytes(), "before_bytes": before}))


def peak_bytes() -> int:
    """Of this process so far; getrusage would also count the one that started it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.child:
        child(arguments.child[0], int(arguments.child[1]))
        return
    if not arguments.quick:
        kept("memory")  # another machine's results are not written over
    rows = by_utterances(arguments.quick) + by_length(arguments.quick)
    if not arguments.quick:
        write("memory", rows)
        speed_figures.memory(rows)


if __name__ == "__main__":
    guarded(main)
