"""Read reference texts of recordings, in the formats that are in use."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from daisy.audio import Recording
from daisy.audio.manifests import read_manifest
from daisy.audio.recordings import absolute
from daisy.errors import UsageError
from daisy.models.tokens import SPACE, WORD_START

LETTER_SUFFIXES = (".ltr", ".wrd")
"""fairseq's files, with a line for each in the manifest beside them: letters or SentencePiece pieces, or words."""
TRN = re.compile(r"(?P<text>.*)\((?P<name>[^()]*)\)\s*")
TEXT_COLUMNS = ("text", "sentence", "transcript", "transcription")
Key = TypeVar("Key", str, Path)
FORMS = ".csv, .tsv, .ltr, .wrd, .trn, .txt"


def read_references(path: str | Path, recordings: Sequence[Recording], root: str | Path = ".") -> list[str | None]:
    """Read the reference texts of recordings.

    Args:
        path: a CSV file of path and text; fairseq's ``.ltr`` or ``.wrd``, or the manifest (``.tsv``) beside one;
            sclite's ``.trn``, whose lines end in the name in brackets; LibriSpeech's and Kaldi's ``.txt``, whose lines
            begin with the name; or a folder with ``.trans.txt`` files below it. A name is the recording's file name
            without its suffix.
        recordings: recordings to look up.
        root: folder that paths are relative to.

    Returns:
        The text of each recording, with single spaces; None where the file has none.

    Raises:
        UsageError: where it is none of these files, has a text for none of the recordings or two texts for one, or a
            name could belong to two recordings.
    """
    path = Path(path)
    if path.is_dir():
        texts = _find_by_name(path, _read_folder(path), recordings)
    elif path.suffix in (".trn", ".txt"):
        texts = _find_by_name(path, _collect(path, _read_named(path)), recordings)
    elif path.suffix in (".csv", ".tsv", *LETTER_SUFFIXES):
        by_path = _read_table(path, Path(root)) if path.suffix == ".csv" else _read_fairseq(path)
        texts = [by_path.get(recording.path) for recording in recordings]
    else:
        raise UsageError(f"{path}: not a form of references that is read: {FORMS}, or a folder of .trans.txt")
    if recordings and all(text is None for text in texts):
        said = f"{path}: has a text for none of the {len(recordings)} recordings, such as {recordings[0].path}"
        if path.suffix == ".csv":
            raise UsageError(f"{said}; its paths are taken below {root}", remedy="root")
        raise UsageError(said)
    return [None if text is None else " ".join(text.split()) for text in texts]


def require_references(path: str | Path, texts: Sequence[str | None], names: Iterable[str]) -> list[str]:
    """Refuse references that lack one of the recordings.

    Args:
        path: file that the texts come from.
        texts: texts from `read_references`.
        names: names of the recordings.

    Returns:
        The texts.

    Raises:
        UsageError: where a recording has no text; names the first one.
    """
    for text, name in zip(texts, names, strict=True):
        if text is None:
            raise UsageError(f"{path}: does not tell what was said in {name}; leave that recording out")
    return [text for text in texts if text is not None]


def _find_by_name(path: Path, by_name: Mapping[str, str], recordings: Sequence[Recording]) -> list[str | None]:
    """Find the text of each recording by its file name without the suffix."""
    first: dict[str, Path] = {}
    for recording in recordings:
        name = recording.path.stem
        if name in by_name and first.setdefault(name, recording.path) != recording.path:
            raise UsageError(
                f"{path}: {name} could be {first[name]} or {recording.path}: use a CSV file, which has their paths"
            )
    return [by_name.get(recording.path.stem) for recording in recordings]


def _collect(path: Path, pairs: Iterable[tuple[Key, str]]) -> dict[Key, str]:
    """Collect texts by key; a key may occur twice only with the same text."""
    texts: dict[Key, str] = {}
    for key, text in pairs:
        if texts.setdefault(key, text) != text:
            raise UsageError(f"{path}: has two texts for {key}")
    return texts


def _read_text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror or error})") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 text ({error})") from None


def _read_lines(path: Path) -> list[str]:
    """Split lines as fairseq does: a text may hold other characters that Unicode counts as line ends."""
    lines = [line.removesuffix("\r") for line in _read_text(path).split("\n")]
    return lines[:-1] if not lines[-1] else lines


def _read_table(path: Path, root: Path) -> dict[Path, str]:
    """Read paths and texts of a CSV file."""
    reader = csv.DictReader(io.StringIO(_read_text(path), newline=""))
    try:
        header, lines = list(reader.fieldnames or ()), [(reader.line_num, line) for line in reader]
    except csv.Error as error:
        raise UsageError(f"{path}: not CSV ({error})") from None
    column = next((name for name in TEXT_COLUMNS if name in header), None)
    if "path" not in header or column is None:
        raise UsageError(f"{path}: must have the columns path and text, found {', '.join(header) or 'nothing'}")
    pairs = []
    for number, line in lines:
        if None in line or line[column] is None:  # a text with commas would be cut at the first one
            raise UsageError(
                f"{path}: line {number} has more or fewer cells than the first line; write a text with commas in "
                "double quotes"
            )
        if line["path"]:
            pairs.append((absolute(root / line["path"]), line[column]))
    return _collect(path, pairs)


def _read_fairseq(path: Path) -> dict[Path, str]:
    """Read the paths of a manifest, and the texts in the file of letters or words beside it."""
    manifest = path.with_suffix(".tsv")
    beside = [path] if path.suffix != ".tsv" else [path.with_suffix(suffix) for suffix in LETTER_SUFFIXES]
    texts = next((candidate for candidate in beside if os.path.isfile(candidate)), beside[0])
    if path.suffix == ".tsv" and not os.path.isfile(texts):
        raise UsageError(f"{path}: a manifest, and beside it is neither {beside[0].name} nor {beside[1].name}")
    recordings, lines = read_manifest(manifest), _read_lines(texts)
    if len(recordings) != len(lines):
        raise UsageError(f"{texts}: has {len(lines)} lines, and {manifest} lists {len(recordings)} recordings")
    if texts.suffix == ".ltr":
        lines = ["".join(line.split()).replace(SPACE, " ").replace(WORD_START, " ") for line in lines]
    return _collect(texts, ((recording.path, line) for recording, line in zip(recordings, lines, strict=True)))


def _read_folder(folder: Path) -> dict[str, str]:
    paths = sorted(folder.rglob("*.trans.txt"))
    if not paths:
        raise UsageError(f"{folder}: has no .trans.txt below it")
    return _collect(folder, (pair for path in paths for pair in _read_named(path)))


def _read_named(path: Path) -> Iterator[tuple[str, str]]:
    """Read names and texts from lines that begin or end with a name."""
    for number, line in enumerate(_read_lines(path), 1):
        if not line.strip():
            continue
        if path.suffix == ".trn":
            match = TRN.fullmatch(line)
            if match is None:
                raise UsageError(f"{path}: line {number} does not end in a recording's name in brackets")
            yield match["name"].strip(), match["text"]
        else:
            name, *text = line.split(maxsplit=1)
            yield name, "".join(text)
