"""Kills extractions at random moments, and checks that nothing is lost, repeated or damaged.

    python -m benchmarks.robustness.kills --count 60 --seed 0

Two shards write into one folder at the same time. One of them, or both, are killed (SIGKILL) and restarted, until both
have finished; then the next folder is begun, until all kills are done. The checks for each folder: every recording's
file exists and equals that of an uninterrupted run bit by bit; the journals list each recording once; the index is
complete, and the same when it is rebuilt; no lock and no partial file is left; and another run finds everything
finished. The seed decides the recordings and the moments; how far a process is by then depends on the machine.
Processes are forked from this one, which has imported everything: starting Python 60 times would take minutes.
"""

from __future__ import annotations

import csv
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy
import soundfile
import torch
from safetensors import safe_open

from benchmarks.shared.script import make_parser, parse_positive, run_script
from daisy import Backbone, BackboneConfig, EarlyExitEncoder, audio, policies
from daisy.audio import Recording
from daisy.extraction import Extractor, rebuild_index

NUM_RECORDINGS = 24
CONFIG = BackboneConfig(
    num_layers=3,
    width=64,
    ffn_width=128,
    num_heads=4,
    conv_layers=((32, 10, 5), *((32, 3, 2),) * 4, *((32, 2, 2),) * 2),
    pos_kernel=16,
    pos_groups=4,
)
KINDS: dict[str, dict[str, Any]] = {
    "safetensors": {},
    "npy, all layers": {"format": "npy", "layers": "all"},
    "windows, float16": {"window_sec": 0.6, "context_sec": 0.1, "dtype": "float16"},
}
"""Settings of the extractions, in turn, that are not the usual ones."""


@dataclass
class Outcome:
    """Result of the extractions of one kind."""

    kills: int = 0
    folders: int = 0
    faults: list[str] = field(default_factory=list)


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--count", type=parse_positive, default=60, help="number of kills; 60 if not given")
    parser.add_argument("--seed", type=int, default=0, help="seed of recordings and moments; 0 if not given")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # threads are not inherited by forks
    with tempfile.TemporaryDirectory() as name:
        outcomes = kill_often(Path(name), arguments.count, random.Random(arguments.seed))
    faults = [fault for outcome in outcomes.values() for fault in outcome.faults]
    for kind, outcome in outcomes.items():
        print(f"{kind}: {outcome.kills} kills, {outcome.folders} folders, {len(outcome.faults)} faults")
    for fault in faults:
        print(fault)
    kills, folders = (sum(getattr(outcome, what) for outcome in outcomes.values()) for what in ("kills", "folders"))
    verdict = f"{len(faults)} faults" if faults else "nothing lost, repeated or damaged; every index whole"
    print(f"{kills} kills, {folders} folders of {NUM_RECORDINGS} recordings: {verdict}")
    sys.exit(bool(faults))


def kill_often(place: Path, count: int, generator: random.Random) -> dict[str, Outcome]:
    """Fill one folder after another until ``count`` processes have been killed.

    Args:
        place: an empty folder.
        count: number of kills.
        generator: random generator of the recordings and the moments.
    """
    recordings = write_recordings(place / "recordings", generator.randrange(2**32))
    outcomes = {kind: Outcome() for kind in KINDS}
    durations: dict[str, float] = {}
    while sum(outcome.kills for outcome in outcomes.values()) < count:
        kind = min(outcomes, key=lambda kind: outcomes[kind].kills)
        outcome, expected = outcomes[kind], place / kind
        if kind not in durations:
            durations[kind] = time_alone(kind, recordings, expected)
        out = place / f"{kind} {outcome.folders}"
        left = count - sum(outcome.kills for outcome in outcomes.values())
        outcome.kills += fill_folder(kind, recordings, out, durations[kind], left, generator)
        outcome.folders += 1
        outcome.faults += [f"{out.name}: {fault}" for fault in find_faults(kind, recordings, out, expected)]
    return outcomes


def write_recordings(folder: Path, seed: int) -> list[Recording]:
    """Write noise of 0.2 to 1.4 s."""
    generator = numpy.random.default_rng(seed)
    folder.mkdir()
    for index in range(NUM_RECORDINGS):
        samples = 0.1 * generator.standard_normal(int(generator.integers(3200, 22400)))
        soundfile.write(folder / f"{index:02}.wav", samples, 16000)
    return audio.find([folder])


def extract(kind: str, recordings: list[Recording], out: Path, shard: tuple[int, int] | None = None) -> int:
    """Extract, and return how many recordings were already finished."""
    settings = dict(KINDS[kind])
    torch.manual_seed(0)
    keep = settings.pop("layers", "last")
    encoder = EarlyExitEncoder(Backbone(CONFIG), None, policies.Fixed(layer=2), keep=keep)
    extractor = Extractor(encoder, out, checkpoint="0" * 64, batch_sec=0.01, **settings)  # one recording per batch
    report = extractor.run(recordings, shard=shard)
    if report.failed:
        raise RuntimeError(str(report.failed))
    return report.num_resumed


def time_alone(kind: str, recordings: list[Recording], out: Path) -> float:
    """Extract everything without a kill, and return the seconds it took."""
    start = time.perf_counter()
    if wait_for(fork(lambda: extract(kind, recordings, out))):
        raise RuntimeError(f"{out.name}: an extraction without kills failed")
    return time.perf_counter() - start


def fill_folder(
    kind: str, recordings: list[Recording], out: Path, duration: float, count: int, generator: random.Random
) -> int:
    """Run two shards to their ends, killing about ``count`` processes meanwhile; return the number of kills."""

    def begin(shard: int) -> int:
        return fork(lambda: extract(kind, recordings, out, (shard, 2)))

    processes = {shard: begin(shard) for shard in range(2)}
    kills = 0
    while processes and kills < count:
        time.sleep(generator.uniform(0, duration))
        victims = generator.sample(sorted(processes), min(len(processes), generator.choice([1, 1, 1, 2])))
        for shard in victims:
            os.kill(processes[shard], signal.SIGKILL)  # if it has ended it is a zombie, so its ID is not reused
        for shard in victims:
            status = wait_for(processes.pop(shard))
            if status == -signal.SIGKILL:
                kills += 1
                processes[shard] = begin(shard)
            elif status:
                raise RuntimeError(f"{out.name}: shard {shard} failed")
    if any(wait_for(process) for process in processes.values()):
        raise RuntimeError(f"{out.name}: a shard failed")
    return kills


def find_faults(kind: str, recordings: list[Recording], out: Path, expected: Path) -> list[str]:
    """List what is wrong in a folder that two shards have filled."""
    faults = []
    files = {path.name for path in expected.iterdir() if path.name != "journal.jsonl"}
    files |= {"journal-0-of-2.jsonl", "journal-1-of-2.jsonl"}
    present = {path.name for path in out.iterdir()}
    faults += [f"{name} is missing" for name in sorted(files - present)]
    faults += [f"{name} is left" for name in sorted(present - files)]
    paths = [str(recording.path) for recording in recordings]
    lines = [line for path in sorted(out.glob("journal*")) for line in path.read_text().splitlines()[1:]]
    if sorted(json.loads(line)["path"] for line in lines) != paths:
        faults.append(f"the journals have {len(lines)} lines for {len(paths)} recordings")
    index = (out / "index.json").read_bytes(), (out / "index.csv").read_bytes()
    listed = [row["path"] for row in json.loads(index[0])["recordings"]]
    if listed != paths or [row["path"] for row in csv.DictReader(index[1].decode().splitlines())] != paths:
        faults.append(f"the index lists {len(set(listed))} of {len(paths)} recordings")
    for row in json.loads(index[0])["recordings"]:
        if not holds_the_same(out / row["output"], expected / row["output"]):
            faults.append(f"{row['output']} differs from an uninterrupted run's")
    rebuild_index(out)
    if index != ((out / "index.json").read_bytes(), (out / "index.csv").read_bytes()):
        faults.append("the index made anew is another one")
    if wait_for(fork(lambda: int(extract(kind, recordings, out) != len(paths)), check=False)):
        faults.append("another run does not find everything finished")
    return faults


def holds_the_same(path: Path, expected: Path) -> bool:
    """Tell whether two feature files have the same content, except for the seconds taken."""
    if path.suffix == ".npy":
        return path.read_bytes() == expected.read_bytes()
    states, metadata = [], []
    for place in (path, expected):
        with safe_open(place, framework="pt") as file:
            states.append(file.get_tensor("states"))
            metadata.append({**json.loads(file.metadata()["daisy"]), "seconds": None})
    return torch.equal(*states) and states[0].dtype == states[1].dtype and metadata[0] == metadata[1]


def fork(work: Callable[[], int], *, check: bool = True) -> int:
    """Run a function in a forked process, whose exit status is 0 or, without ``check``, the returned number."""
    process = os.fork()
    if process:
        return process
    status = 1
    try:
        result = work()
        status = 0 if check else result
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def wait_for(process: int) -> int:
    """Wait for a process to end, and return its exit status."""
    _, status = os.waitpid(process, 0)
    return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    run_script(main)
