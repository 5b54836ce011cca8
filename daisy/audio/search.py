"""Find recordings: in files, folders with all that is below and linked into them, patterns, and manifests."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import soundfile

from daisy.audio import lhotse_manifests, media
from daisy.audio.archives import find_member
from daisy.audio.manifests import read_manifest
from daisy.audio.recordings import Recording, absolute
from daisy.errors import UsageError

SUFFIXES = frozenset(
    {f".{name.lower()}" for name in soundfile.available_formats()} - {".raw"}
    | {".adc", ".aif", ".aifc", ".bwf", ".mp1", ".mp2", ".mp3", ".mpga", ".oga", ".opus", ".snd", ".sph", ".wave"}
    | {".wv1", ".wv2"}
)
"""File name endings that a folder is searched for, as libsndfile reads them; NIST SPHERE has many."""
RAW_SUFFIXES = frozenset((".raw", ".pcm", ".vox", ".gsm", ".sln", ".g722"))
"""Endings of samples without a header, whose sample rate is unknown."""
IGNORED_FOLDERS = frozenset((".Trash", ".Trashes", "$RECYCLE.BIN", "__MACOSX", ".AppleDouble", "@eaDir"))
"""Folders that systems keep beside a user's files, for deleted files and for data about other files."""


@dataclass(kw_only=True)
class Findings:
    """Recordings that a search found, and files that it passed over."""

    recordings: list[Recording]
    skipped: Counter[str] = field(default_factory=Counter)
    """Number of files in folders that look like audio or video by their ending and were not taken, by ending."""
    unreadable: list[str] = field(default_factory=list)
    """Folders that could not be searched, with the reason."""

    def describe_rest(self) -> list[str]:
        """Make a line of the skipped files, "13 files skipped: .m4a (12), .raw (1)", and one for each unread folder."""
        lines = [f"not searched: {reason}" for reason in self.unreadable]
        if self.skipped:
            count = sum(self.skipped.values())
            by_ending = sorted(self.skipped.items(), key=lambda item: (-item[1], item[0]))
            line = f"{count} file{'s' if count > 1 else ''} skipped: "
            line += ", ".join(f"{ending} ({number})" for ending, number in by_ending)
            if readable := sorted(media.SUFFIXES.intersection(self.skipped)):
                line += f"; to read {', '.join(readable)}: {media.INSTALL}"
            lines.append(line)
        return lines


def find(inputs: Sequence[str | Path]) -> list[Recording]:
    """Find the recordings that files, folders (searched recursively), globs or manifests name.

    Manifests are fairseq's (``.tsv``) and lhotse's (``.jsonl``, ``.jsonl.gz``).

    Files are not opened here: an unreadable one raises an error when it is read.

    Args:
        inputs: paths or patterns.

    Returns:
        Each recording once, in the inputs' order; those of a folder by name.

    Raises:
        UsageError: where an input does not exist, or nothing at all was found.
    """
    return search(inputs).recordings


def search(inputs: Sequence[str | Path]) -> Findings:
    """Find recordings as `find` does, and report what was passed over.

    Links to folders are followed. Each folder is searched once, under its own name if it lies below the input; likewise
    a file that several linked folders hold is taken once. macOS's companion files, ``._x.wav``, are ignored.

    Args:
        inputs: paths or patterns.

    Returns:
        The recordings, and what was passed over.

    Raises:
        UsageError: where an input does not exist, or nothing at all was found.
    """
    findings = Findings(recordings=[])
    recordings: dict[Path, Recording] = {}
    for text in map(str, inputs):
        if not text:
            raise UsageError("an empty name among the inputs")
        for recording in _expand(text, findings):
            recordings.setdefault(recording.path, recording)
    if not recordings:
        places = ", ".join(map(str, inputs)) or "an empty list"
        raise UsageError("; ".join([f"no recordings in {places}", *findings.describe_rest()]))
    findings.recordings = list(recordings.values())
    return findings


def _expand(text: str, findings: Findings) -> list[Recording]:
    path = Path(text)
    if os.path.isdir(path):  # Path.is_dir() raises on long names
        files = sorted(_choose_files(path, findings))
        return [Recording(path=absolute(file), name=str(file.relative_to(path))) for file in files]
    if path.suffix == ".tsv" and (os.path.isfile(path) or not glob.has_magic(text)):
        return read_manifest(path)
    if path.name.endswith(lhotse_manifests.SUFFIXES) and os.path.isfile(path):
        return lhotse_manifests.read_lhotse_manifest(path)
    if os.path.exists(path) or find_member(path):
        return [Recording(path=absolute(path), name=path.name)]
    matches = _match(text)
    if not matches:
        raise UsageError(f"{text}: no such file, folder or manifest, and as a pattern it matches nothing")
    return [recording for match in matches for recording in _expand(match, findings)]


def _match(pattern: str) -> list[str]:
    """Expand a pattern; of several names by which links lead to one file or folder, take the shortest."""
    places: dict[tuple[str, str], str] = {}
    for match in glob.glob(pattern, recursive=True):
        folder, name = os.path.split(match.rstrip(os.sep))
        place = os.path.realpath(folder), name
        if os.path.exists(match) and (place not in places or _is_nearer(match, places[place])):
            places[place] = match
    return sorted(places.values())


def _is_nearer(path: str, other: str) -> bool:
    return (path.count(os.sep), path) < (other.count(os.sep), other)


def _choose_files(root: Path, findings: Findings) -> Iterator[Path]:
    suffixes = SUFFIXES | media.SUFFIXES if media.is_available() else SUFFIXES
    others = (media.SUFFIXES | RAW_SUFFIXES) - suffixes
    for path in _walk(root, findings):
        suffix = path.suffix.lower()
        if suffix in suffixes:
            yield path
        elif suffix in others:
            findings.skipped[suffix] += 1


def _walk(root: Path, findings: Findings) -> list[Path]:
    """List all files below a folder, and folders named like recordings; then the files that linked folders add.

    So files below the folder keep their own names, and links, which may be circular, only add files that nothing but
    links leads to.
    """
    searched: set[str] = set()
    linked: list[Path] = []
    paths = list(_walk_unlinked(root, searched, linked, findings))
    known = {os.path.realpath(path) for path in paths} if linked else set()
    while linked:
        level, linked = sorted(linked), []
        for folder in level:
            for path in _walk_unlinked(folder, searched, linked, findings):
                if (place := os.path.realpath(path)) not in known:
                    known.add(place)
                    paths.append(path)
    return paths


def _walk_unlinked(folder: Path, searched: set[str], linked: list[Path], findings: Findings) -> Iterator[Path]:
    """Walk through a folder not searched yet, without following links; collect the links to folders."""

    def note(error: OSError) -> None:
        findings.unreadable.append(f"{error.filename} ({error.strerror})")

    if os.path.realpath(folder) in searched:
        return
    for place, folders, files in os.walk(folder, onerror=note):
        searched.add(os.path.realpath(place))
        folders[:] = [name for name in folders if name not in IGNORED_FOLDERS and not name.startswith(".Trash-")]
        yield from (Path(place, name) for name in files if not name.startswith("._"))
        # Folders named like recordings are listed too, so that reading one says what it is.
        yield from (Path(place, name) for name in folders if Path(name).suffix.lower() in SUFFIXES)
        linked += [Path(place, name) for name in folders if os.path.islink(os.path.join(place, name))]
        folders[:] = [name for name in folders if os.path.realpath(os.path.join(place, name)) not in searched]
