"""Recordings: found in folders, by patterns or in fairseq's manifests, with their speakers."""

from __future__ import annotations

import csv
import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from daisy.audio.archives import find_member
from daisy.audio.files import SUFFIXES, read_header
from daisy.audio.tables import describe_table
from daisy.errors import AudioError, UsageError
from daisy.models.lengths import MIN_SAMPLES


@dataclass(frozen=True, kw_only=True)
class Recording:
    """A file to read, and the name by which its results are known."""

    path: Path
    """Absolute."""
    name: str
    """Path relative to the folder or manifest root that it was found under."""


def find(inputs: Sequence[str | Path]) -> list[Recording]:
    """Find the recordings that files, folders (searched through), globs or fairseq manifests (``.tsv``) name.

    Files are not opened here: an unreadable one is refused when it is read.

    Args:
        inputs: paths or patterns.

    Returns:
        Each recording once, in the inputs' order; those of a folder by name.

    Raises:
        UsageError: where an input does not exist, or nothing at all was found.
    """
    recordings: dict[Path, Recording] = {}
    for text in map(str, inputs):
        if not text:
            raise UsageError("an empty name among the inputs")
        for recording in _expand(text):
            recordings.setdefault(recording.path, recording)
    if not recordings:
        raise UsageError(f"no recordings in {', '.join(map(str, inputs)) or 'an empty list'}")
    return list(recordings.values())


def read_manifest(path: str | Path) -> list[Recording]:
    """Read a fairseq manifest: the root folder, then ``path<TAB>num_samples`` lines.

    Args:
        path: of the manifest.

    Returns:
        Its recordings, in its order.

    Raises:
        UsageError: where it is not one.
    """
    path = Path(path)
    if path.is_dir():
        raise UsageError(f"{path}: is a folder", remedy="make_manifest", path=path)
    if not path.is_file():
        raise UsageError(f"{path}: no such manifest (looked for from {Path.cwd()})")
    try:
        root, *lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise UsageError(f"{path}: not a fairseq manifest ({error})") from None
    if table := describe_table(root):
        raise UsageError(f"{path}: {table}; a fairseq manifest begins with the folder of its recordings", remedy="list")
    names = [line.split("\t")[0] for line in lines if line.strip()]
    return [Recording(path=_absolute(path.parent / root / name), name=name) for name in names]


def format_manifest_line(recording: Recording, root: str | Path, sample_rate: int = 16000) -> str:
    """Format a recording's line in a fairseq manifest: its path below a root, and its length by its header.

    Args:
        recording: to list.
        root: the manifest's folder.
        sample_rate: that fairseq trains at, in Hz.

    Returns:
        The line, without its end.

    Raises:
        UsageError: where it is not below the root.
        AudioError: where its header is not readable, or says that it is too short or of another rate.
    """
    if not recording.path.is_relative_to(root):
        raise UsageError(f"{recording.path}: is not below the root {root}", remedy="root")
    info = read_header(recording.path)
    if info.samplerate != sample_rate:
        raise AudioError(
            f"{recording.path}: {info.samplerate} Hz, and fairseq takes {sample_rate} Hz only: resample it"
        )
    if info.frames < MIN_SAMPLES:
        raise AudioError(f"{recording.path}: too short: {info.frames} samples, one frame needs {MIN_SAMPLES}")
    return f"{recording.path.relative_to(root)}\t{info.frames}"


def count_repeats(num_samples: Sequence[int], speakers: Sequence[str], power: float) -> list[int]:
    """Count how often to list each recording, so that nobody's voice outweighs the others'.

    Speakers are drawn in proportion to (their samples) ** (1 - power): 0 lists everything once, 1 hears all speakers
    equally long. The speaker with the most samples is listed once.

    Args:
        num_samples: of each recording.
        speakers: of each recording.
        power: 0 to 1.

    Returns:
        A number for each recording, at least 1.
    """
    totals: dict[str, int] = {}
    for count, speaker in zip(num_samples, speakers, strict=True):
        totals[speaker] = totals.get(speaker, 0) + count
    most = max(totals.values(), default=1)
    return [round((most / totals[speaker]) ** power) for speaker in speakers]


def read_speakers(path: str | Path) -> dict[str, str]:
    """Read a CSV file with the columns ``path`` (as in the manifest) and ``speaker``.

    Args:
        path: of the file.

    Returns:
        Speakers by path.

    Raises:
        UsageError: where it is not one.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as stream:
            return {row["path"]: row["speaker"] or "" for row in csv.DictReader(stream)}
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from None
    except (UnicodeDecodeError, KeyError, csv.Error):
        raise UsageError(f"{path}: not a CSV file with the columns path and speaker") from None


def assign_speakers(recordings: Sequence[Recording], table: str | Path | None, root: str | Path) -> list[str]:
    """Look up each recording's speaker.

    Args:
        recordings: of which to tell the speakers.
        table: a CSV file of `read_speakers`; without one, every recording counts as another speaker's.
        root: the folder below which the table's paths are.

    Returns:
        A name for each recording.

    Raises:
        UsageError: where the file is none, or lacks a recording.
    """
    if table is None:
        return [str(recording.path) for recording in recordings]
    known = {_absolute(Path(root) / path): speaker for path, speaker in read_speakers(table).items() if path}
    unknown = [recording.path for recording in recordings if not known.get(_absolute(recording.path))]
    if unknown:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise UsageError(
            f"{table}: names no speaker of {unknown[0]}{more}; its paths are taken below {root}", remedy="root"
        )
    return [known[_absolute(recording.path)] for recording in recordings]


def _absolute(path: Path) -> Path:
    """Without ".." and without following links, so that a name stays the name it was given."""
    return Path(os.path.abspath(path))


def _expand(text: str) -> list[Recording]:
    path = Path(text)
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
        return [Recording(path=_absolute(file), name=str(file.relative_to(path))) for file in files]
    if path.suffix == ".tsv":
        return read_manifest(path)
    if path.exists() or find_member(path):
        return [Recording(path=_absolute(path), name=path.name)]
    matches = sorted(match for match in glob.glob(text, recursive=True) if Path(match).exists())
    if not matches:
        raise UsageError(f"{text}: no such file, folder or manifest, and as a pattern it matches nothing")
    return [recording for match in matches for recording in _expand(match)]
