"""Damaged audio files: none may end a command, crash the reading library, fill the memory or give wrong numbers.

    python -m benchmarks.robustness.audio --count 500 --seed 0

Each file is read as a whole, in parts and by its header, in a process with limited memory whose crashes are detected;
then all are extracted in one run, also in windows. Prints a table and all problems; the exit status is 1 if there were
any.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy
import torch

import daisy
from benchmarks.robustness.damage import FORMATS, mutate, write_original
from benchmarks.shared.script import make_parser, module_command, module_environment, parse_positive, run_script
from daisy import AudioError, EarlyExitEncoder, audio, checkpoints, policies
from daisy.extraction import Extractor

PART = 5003
"""Number of samples in a part."""
MEMORY_BYTES = 2**30
"""Memory limit for reading a file; the files here decode to less than 1 MB."""
TIMEOUT_SEC = 600
LENGTH_SLACK = 4 * 1152
"""Tolerance of an MP3 header's length, in samples at 16 kHz: two frames at 8 kHz."""


def main() -> None:
    """Damage files, have them read, and print the results."""
    parser = make_parser(__doc__)
    parser.add_argument("--count", type=parse_positive, default=500, help="Number of files.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of the recordings and of the damage.")
    parser.add_argument("--keep", type=Path, help="Folder for the files, which are then kept.")
    parser.add_argument("--read", nargs=3, metavar=("FOLDER", "FIRST", "RESULTS"), help=argparse.SUPPRESS)
    parser.add_argument("--extract", nargs=2, metavar=("FOLDER", "OUT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.read:
        read_files(Path(arguments.read[0]), int(arguments.read[1]), Path(arguments.read[2]))
    elif arguments.extract:
        extract_files(Path(arguments.extract[0]), Path(arguments.extract[1]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            counts, problems = run(arguments.keep or Path(folder), arguments.count, arguments.seed)
        print_table(counts)
        print("\n".join(problems))
        print(f"{arguments.count} damaged files, seed {arguments.seed}: {len(problems)} problems")
        sys.exit(1 if problems else 0)


def run(folder: Path, count: int, seed: int) -> tuple[Counter[tuple[str, str]], list[str]]:
    """Damage files and read them.

    Args:
        folder: folder to work in.
        count: number of files.
        seed: seed of the damage.

    Returns:
        The number of files by ending and outcome, and a line for each problem.
    """
    files = folder / "files"
    make_files(files, count, seed)
    counts: Counter[tuple[str, str]] = Counter()
    problems: list[str] = []
    for result in have_them_read(files, count, folder / "results.jsonl"):
        counts[result["ending"], result["outcome"]] += 1
        problems += result["problems"]
    return counts, problems + have_them_extracted(files, folder / "out", count)


def make_files(folder: Path, count: int, seed: int) -> None:
    """Write damaged files, ``0000.wav`` and so on, of all formats in turn."""
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        ending, format, subtype = FORMATS[index % len(FORMATS)]
        path = folder / f"{index:04}.{ending}"
        generator = numpy.random.default_rng([seed, index])
        write_original(path, format, subtype, generator)
        path.write_bytes(mutate(path.read_bytes(), generator))


def have_them_read(folder: Path, count: int, results_path: Path) -> Iterator[dict]:
    """Read all files in separate processes; if one crashes, another continues after the file."""
    first = 0
    while first < count:
        command = module_command("benchmarks.robustness.audio", ["--read", str(folder), str(first), str(results_path)])
        done = subprocess.run(
            command, env=module_environment(), capture_output=True, text=True, timeout=TIMEOUT_SEC, check=False
        )
        results = [json.loads(line) for line in results_path.read_text("utf-8").splitlines()]
        yield from results
        first += len(results)
        if first < count:
            reason = f"the process that read it ended with status {done.returncode}: {done.stderr[-500:]}"
            path = list_files(folder)[first]
            yield {"ending": path.suffix, "outcome": "crashed", "problems": [f"{path}: {reason}"]}
            first += 1


def read_files(folder: Path, first: int, results_path: Path) -> None:
    """Read files with limited memory, and write a JSON line for each to a file, as libsndfile prints to stdout."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES, used + MEMORY_BYTES))
    with open(results_path, "w", encoding="utf-8") as stream:
        for path in list_files(folder)[first:]:
            print(json.dumps(read_file(path)), file=stream, flush=True)


def read_file(path: Path) -> dict:
    """Read a file in all ways, and return the outcome."""
    problems: list[str] = []
    whole, parts, length = (attempt(way, path, problems) for way in (audio.read, read_in_parts, audio.num_samples))
    if isinstance(whole, torch.Tensor):
        if not bool(whole.isfinite().all()):
            problems.append(f"{path}: not a number, or infinite")
        if not isinstance(parts, torch.Tensor) or not torch.equal(parts, whole):
            problems.append(f"{path}: {describe(whole)}, but in parts {describe(parts)}")
        if not isinstance(length, int) or abs(length - len(whole)) > (LENGTH_SLACK if path.suffix == ".mp3" else 0):
            problems.append(f"{path}: {describe(whole)}, but by its header {length}")
    elif isinstance(parts, torch.Tensor):
        problems.append(f"{path}: refused ({whole}), but in parts {describe(parts)}")
    return {
        "ending": path.suffix,
        "outcome": "read" if isinstance(whole, torch.Tensor) else "refused",
        "problems": problems,
    }


def attempt(way, path: Path, problems: list[str]):
    """Return the result of one way of reading, or why the file is refused; note errors that are not daisy's own."""
    try:
        return way(path)
    except AudioError as error:
        text = str(error)
        if "\n" in text or not text.startswith(f"{path}: ") or "memory" in text:
            problems.append(f"{path}: refused with {text!r}")
        return text
    except Exception as error:
        problems.append(f"{path}: {type(error).__name__} from {way.__name__}: {error}")
        return None


def read_in_parts(path: Path) -> torch.Tensor:
    """Read a file part by part."""
    file = audio.AudioFile(path)
    starts = range(0, file.num_samples, PART)
    return torch.cat([file.read(start, min(start + PART, file.num_samples)) for start in starts])


def describe(result) -> str:
    """Describe a result in short."""
    return f"{len(result)} samples" if isinstance(result, torch.Tensor) else str(result)


def have_them_extracted(folder: Path, out: Path, count: int) -> list[str]:
    """Extract all files in one process, whole and in windows, and check what was written."""
    done = subprocess.run(
        module_command("benchmarks.robustness.audio", ["--extract", str(folder), str(out)]),
        env=module_environment(),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SEC,
        check=False,
    )
    if done.returncode:
        return [f"extraction ended with status {done.returncode}: {done.stderr[-500:]}"]
    return check_features(out, count)


def check_features(out: Path, count: int) -> list[str]:
    """Check that the extractions have processed every file, and that all features are finite."""
    problems = []
    for run_folder in sorted(out.iterdir()):
        index = json.loads((run_folder / "index.json").read_text())
        if (dealt := len(index["recordings"]) + len(index["failed"])) != count:
            problems.append(f"{run_folder}: the index has {dealt} of {count} files")
        for row in index["recordings"]:
            states = numpy.load(run_folder / row["output"])
            if not numpy.isfinite(states).all():
                problems.append(f"{row['path']}: states that are no numbers")
    return problems


def extract_files(folder: Path, out: Path) -> None:
    """Extract with the bundled model, whole and in windows."""
    model = daisy.load("daisy-mini")
    encoder = EarlyExitEncoder(model.backbone, model.heads, policies.Fixed(layer=2), keep="last")
    recordings = audio.find([folder])
    for name, window in (("whole", None), ("windows", 0.4)):
        extractor = Extractor(
            encoder,
            out / name,
            checkpoint=checkpoints.digest("daisy-mini"),
            format="npy",
            window_sec=window,
            context_sec=0.1,
        )
        extractor.run(recordings)


def list_files(folder: Path) -> list[Path]:
    """List the damaged files in their order."""
    return sorted(folder.iterdir())


def print_table(counts: Counter[tuple[str, str]]) -> None:
    """Print how many files of each ending were read, were refused, and crashed their reader."""
    outcomes = ("read", "refused", "crashed")
    print(f"{'':8}" + "".join(f"{outcome:>9}" for outcome in outcomes))
    for ending in sorted({ending for ending, _ in counts}):
        print(f"{ending:8}" + "".join(f"{counts[ending, outcome]:9}" for outcome in outcomes))


if __name__ == "__main__":
    run_script(main)
