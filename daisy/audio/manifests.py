"""Read and write fairseq's manifests: the root folder, then a line ``path<TAB>num_samples`` for each recording.

Lines are interpreted as fairseq 0.12.2 does (fairseq/data/audio/hubert_dataset.py, load_audio): they end at LF, CR or
both; blanks of every kind are stripped at their ends; paths are relative to the root, and a relative root is relative
to the working folder.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from daisy.audio import media
from daisy.audio.archives import find_file, find_member
from daisy.audio.decoding import count_samples, read_header
from daisy.audio.recordings import Recording, absolute
from daisy.audio.tables import describe_table
from daisy.errors import AudioError, UsageError
from daisy.models.lengths import MIN_SAMPLES

PLAIN_SUFFIXES = (".npy", ".wav", ".flac", ".ogg")
"""In other files' paths fairseq takes what follows a colon for a place in an archive (audio_utils.py, parse_path)."""
BREAKS = {"\t": "a tab", "\n": "a line feed", "\r": "a carriage return"}
"""Characters that end a field or a line."""


def read_manifest(path: str | Path) -> list[Recording]:
    """Read a fairseq manifest: the root folder, then ``path<TAB>num_samples`` lines.

    A relative root is taken from the working folder, as in fairseq, or from the manifest's own folder if the recordings
    are only there.

    Args:
        path: path of the manifest.

    Returns:
        The recordings, in the manifest's order.

    Raises:
        UsageError: where it is not a manifest, or it is not clear which folder a relative root means.
    """
    return read_manifest_lines(path)[0]


def read_manifest_lines(path: str | Path) -> tuple[list[Recording], list[str]]:
    """Read a fairseq manifest, and the lines of its recordings without blanks at their ends.

    Args:
        path: path of the manifest.

    Returns:
        The recordings as `read_manifest` returns them, and a line for each.

    Raises:
        UsageError: as in `read_manifest`.
    """
    path = Path(path)
    if os.path.isdir(path):  # Path.is_dir() raises on long names
        raise UsageError(f"{path}: is a folder", remedy="make_manifest", path=path)
    if not os.path.isfile(path):
        raise UsageError(f"{path}: no such manifest (looked for from {Path.cwd()})")
    try:
        with open(path, encoding="utf-8") as stream:
            lines = [line.strip() for line in stream]
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise UsageError(f"{path}: not a fairseq manifest ({error})") from None
    if not lines:
        raise UsageError(f"{path}: not a fairseq manifest: it is empty")
    if lines[0].startswith("\ufeff"):
        raise UsageError(
            f"{path}: begins with a byte order mark, which fairseq takes for the root's first letter: remove it"
        )
    if damaged := [number for number, line in enumerate(lines, 1) if "\0" in line]:
        raise UsageError(f"{path}: line {damaged[0]} holds a zero byte: the file is damaged, or no UTF-8")
    if table := describe_table(lines[0]):
        raise UsageError(f"{path}: {table}; a fairseq manifest begins with the folder of its recordings", remedy="list")
    root, listed = lines[0], [line for line in lines[1:] if line]
    names = [line.split("\t")[0] for line in listed]
    folder = _resolve_root(path, root, names)
    return [Recording(path=absolute(folder / name), name=str(Path(name))) for name in names], listed


def format_manifest_root(root: str | Path) -> str:
    """Format a manifest's first line.

    Args:
        root: folder that the manifest's paths are relative to.

    Returns:
        The line, without its end.

    Raises:
        UsageError: where the folder's name cannot be written in a manifest.
    """
    text = os.path.abspath(root)
    if reason := _explain_unwritable(text, "\n\r"):
        raise UsageError(f"{root}: {reason}: fairseq cannot read it from a manifest; rename the folder")
    return text if text == text.strip() else text + os.sep  # fairseq strips the line


def format_manifest_line(recording: Recording, root: str | Path, sample_rate: int = 16000) -> str:
    """Format a recording's line in a fairseq manifest: its path below a root, and its length.

    Args:
        recording: recording to list.
        root: root folder of the manifest.
        sample_rate: sample rate in Hz that fairseq trains at.

    Returns:
        The line, without its end.

    Raises:
        UsageError: where the recording is not below the root.
        AudioError: where fairseq could not use it: its name cannot be written in a manifest, its header is unreadable
            or says that it is too short, of another rate or of unknown length, or, where the header is not credible,
            decoding finds damage.
    """
    if not recording.path.is_relative_to(root):
        raise UsageError(f"{recording.path}: is not below the root {root}", remedy="root")
    name = format_manifest_name(recording, str(recording.path.relative_to(root)))
    header = read_header(recording.path)
    if header.format == media.FORMAT:
        raise AudioError(f"{recording.path}: fairseq does not read {recording.path.suffix} files: convert it to FLAC")
    if header.sample_rate != sample_rate:
        raise AudioError(
            f"{recording.path}: {header.sample_rate} Hz, and fairseq takes {sample_rate} Hz only: resample it"
        )
    if header.claimed_length is None:
        raise AudioError(f"{recording.path}: its header does not tell its length, which fairseq goes by: write it anew")
    num_samples = count_samples(recording.path, header)
    if num_samples < MIN_SAMPLES:
        raise AudioError(f"{recording.path}: too short: {num_samples} samples, one frame needs {MIN_SAMPLES}")
    return f"{name}\t{num_samples}"


def format_manifest_name(recording: Recording, name: str) -> str:
    """Format a path below a manifest's root so that it is read back correctly.

    Raises:
        AudioError: where the path cannot be written in a manifest.
    """
    reason = _explain_unwritable(name, "\t\n\r")
    is_plain = recording.path.suffix in PLAIN_SUFFIXES and not find_member(recording.path)
    if ":" in str(find_file(recording.path)) and not is_plain:
        reason = reason or f"a colon in the path of a {recording.path.suffix or 'nameless'} file"
    if reason:
        raise AudioError(f"{recording.path}: {reason}: fairseq cannot read it from a manifest; rename it")
    return name if name == name.lstrip() else f".{os.sep}{name}"


def _explain_unwritable(name: str, breaks: str) -> str:
    """Explain why a name cannot be written in a manifest; empty where it can."""
    for character in breaks:
        if character in name:
            return f"{BREAKS[character]} in the name"
    try:
        name.encode()
    except UnicodeEncodeError:
        return "its name is no UTF-8"
    return ""


def _resolve_root(path: Path, root: str, names: Sequence[str]) -> Path:
    """Find the folder that a root means: relative to the working folder or, if only it holds them, to the manifest's.

    Raises:
        UsageError: where both hold recordings of these names and are not the same folder, or neither does.
    """
    theirs, beside = Path.cwd() / root, absolute(path.parent) / root
    if Path(root).is_absolute() or not names or absolute(theirs) == absolute(beside):
        return theirs
    in_theirs, in_beside = (
        [name for name in names if os.path.exists(find_file(folder / name))] for folder in (theirs, beside)
    )
    if not in_theirs and not in_beside:
        raise UsageError(f"{path}: none of its {len(names)} recordings is below {theirs} or {beside}")
    if in_theirs and in_beside and not os.path.samefile(theirs, beside):
        raise UsageError(
            f"{path}: its root {root!r} may be {theirs}, which fairseq takes, or {beside}: write the whole path there"
        )
    return theirs if in_theirs else beside
