"""What measurements share: the shared recordings, and the form of results/NAME.json."""

from __future__ import annotations

import csv
import datetime
import json
import os
import platform
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch
from torch import Tensor

from daisy import _files, audio
from daisy.audio import mixing
from daisy.errors import DaisyError

HERE = Path(__file__).parent
RESULTS = HERE / "results"
SHARED = Path(os.environ.get("DAISY_SHARED", HERE.parents[1] / "shared"))
DATA = SHARED / "data"
SNRS_DB: tuple[float | None, ...] = (None, 20.0, 10.0, 5.0, 0.0, -5.0)


@dataclass(frozen=True)
class Utterance:
    """A recording of the shared sets."""

    waveform: Tensor
    speaker: str
    """Speaker, or the group that stands for one."""
    set: str


def rows(set_name: str, split: str) -> list[dict[str, str]]:
    """Lines of a set's index.csv."""
    index = DATA / set_name / "index.csv"
    if not index.is_file():
        sys.exit(f"{index}: not there; set DAISY_SHARED to the folder that holds data/ and models/")
    with open(index, newline="", encoding="utf-8") as stream:
        return [row for row in csv.DictReader(stream) if row["split"] == split]


def utterances(sets: Iterable[str], split: str, limit: int | None = None) -> list[Utterance]:
    """Recordings of a split, in the index's order; at most ``limit`` a set, evenly spread."""
    found = []
    for name in sets:
        chosen = rows(name, split)
        if limit is not None and len(chosen) > limit:
            chosen = chosen[:: -(-len(chosen) // limit)]
        for row in chosen:
            speaker = row["speaker"] or row.get("group") or row["path"]
            found.append(Utterance(audio.read(DATA / name / row["path"]), f"{name}:{speaker}", name))
    return found


def noises(split: str) -> mixing.NoiseBank:
    """All recordings of a split of the noise set."""
    return mixing.NoiseBank([audio.read(DATA / "noise" / row["path"]) for row in rows("noise", split)])


def write(name: str, measured: list[dict], results: Path = RESULTS, arguments: Sequence[str] | None = None) -> None:
    """results/NAME.json, in the form that the README's tables are made from.

    Args:
        name: of the file.
        measured: rows.
        results: where.
        arguments: that make all rows, where this call made a part; else those of the call.
    """
    command = Path(sys.argv[0]).resolve()
    inside = command.relative_to(HERE.parent) if command.is_relative_to(HERE.parent) else command.name
    _files.write_json(
        results / f"{name}.json",
        {
            "name": name,
            "command": shlex.join(["python", str(inside), *(sys.argv[1:] if arguments is None else arguments)]),
            "date": datetime.date.today().isoformat(),
            "machine": _machine(),
            "versions": _versions(),
            "rows": measured,
        },
    )
    print(f"{results / name}.json: {len(measured)} rows")


def guarded(main: Callable[[], None]) -> None:
    """Run a script; what daisy refuses is one line."""
    try:
        main()
    except DaisyError as error:
        sys.exit(f"{Path(sys.argv[0]).name}: {error}")


def read(name: str) -> dict:
    """A result that was written."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def positive(text: str) -> int:
    """A whole number above 0, for argparse."""
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def kept(name: str) -> list[dict]:
    """Rows of results/NAME.json beside which others are to stand; none where there is no such file.

    Raises:
        DaisyError: where they are of another machine or other versions, so that one file cannot say how it was made.
    """
    if not (RESULTS / f"{name}.json").is_file():
        return []
    result = read(name)
    before, now = ({**made, "threads": None} for made in (result["machine"], _machine()))
    if (before, result["versions"]) != (now, _versions()):
        raise DaisyError(
            f"results/{name}.json was measured on another machine or with other versions: --quick writes nothing; "
            "to measure all anew remove the file"
        )
    return result["rows"]


def _machine() -> dict[str, object]:
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
    } | ({"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {})


def _versions() -> dict[str, str]:
    packages = (
        "torch",
        "torchaudio",
        "numpy",
        "soundfile",
        "fairseq",
        "fairseq-fixed",
        "s3prl",
        "transformers",
        "daisy-speech",
    )
    return {"python": platform.python_version()} | {p: v for p in packages if (v := _version(p))}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
