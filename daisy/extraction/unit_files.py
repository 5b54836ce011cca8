"""Files of units as read by fairseq: ``SPLIT.km``, a line for each recording of a manifest, and ``dict.km.txt``.

Finished units are kept by recording, not by line: a manifest may lose lines, gain some or change their order.

``SPLIT.km.part``  lines ``@KEY 5 5 12``, appended as recordings are finished; the only file until the split is
                   complete, and kept later if it has units of recordings that the manifest no longer lists
``SPLIT.km``       the units alone, in the manifest's order
``SPLIT.km.keys``  the key of each of its lines

KEY is made from a recording's path and its length in the manifest: audio whose length changes is labelled again.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from daisy import _files, audio
from daisy.audio import Recording
from daisy.audio.manifests import read_manifest_lines
from daisy.errors import AudioError, OutputError
from daisy.extraction.features import Fail, Features
from daisy.extraction.units import Frames, assign_units

KEY_DIGITS = 24
MARK = b"@"
"""First byte of lines with a key. Older versions wrote lines without keys, in the manifest's order."""


@dataclass(frozen=True, kw_only=True)
class Split:
    """A fairseq manifest."""

    path: Path
    recordings: list[Recording]
    lines: list[bytes]
    """Lines of the recordings, as in the manifest."""
    keys: list[str]
    """Keys of the recordings, made from path and length."""
    digest: str
    """SHA-256 of the manifest."""

    @property
    def name(self) -> str:
        """Name of the split, as in fairseq."""
        return self.path.stem

    @classmethod
    def read(cls, path: Path) -> Split:
        """Read a manifest.

        Raises:
            UsageError: if it is not a manifest.
        """
        recordings, listed = read_manifest_lines(path)
        lines = [line.encode() for line in listed]
        keys = [_make_key(recording, line) for recording, line in zip(recordings, lines, strict=True)]
        return cls(path=path, recordings=recordings, lines=lines, keys=keys, digest=_files.digest(path))

    def write_part(self, path: Path, indices: Iterable[int]) -> None:
        """Write a manifest of some of the recordings, with an absolute root.

        Raises:
            OutputError: if it cannot be written.
        """
        paths = [os.fsencode(recording.path) for recording in self.recordings]
        names = [b"/" + os.fsencode(recording.name) for recording in self.recordings]
        if paths and all(map(bytes.endswith, paths, names)):  # false if a name begins with "..", for example
            root, lines = paths[0].removesuffix(names[0]) or b"/", self.lines
        else:
            rests = [b"".join(line.partition(b"\t")[1:]) for line in self.lines]
            root, lines = b"/", [path[1:] + rest for path, rest in zip(paths, rests, strict=True)]
        first_line = os.fsencode(audio.format_manifest_root(os.fsdecode(root)))
        _files.write(path, b"\n".join([first_line, *(lines[index] for index in indices), b""]))


def _make_key(recording: Recording, line: bytes) -> str:
    length = line.split(b"\t")[1].strip() if b"\t" in line else b""
    return hashlib.sha256(os.fsencode(recording.path) + b"\0" + length).hexdigest()[:KEY_DIGITS]


@dataclass
class UnitFile:
    """The units of a split on disk."""

    split: Split
    folder: Path
    """Folder to which units are written."""
    failed: dict[Path, str] = field(default_factory=dict)
    """Reasons why recordings cannot be used."""
    labelled: list[int] = field(default_factory=list)
    """Indices of the recordings that have units, available after `label`."""

    @property
    def path(self) -> Path:
        """Path of the .km file."""
        return self.folder / f"{self.split.name}.km"

    @property
    def keys_path(self) -> Path:
        """Path of the keys of its lines."""
        return self.path.with_name(self.path.name + ".keys")

    @property
    def part_path(self) -> Path:
        """Path of the finished lines, until the split is complete."""
        return self.path.with_name(self.path.name + ".part")

    @property
    def is_whole(self) -> bool:
        """Whether every recording of the split has its line."""
        return self.path.is_file() and self.keys_path.is_file() and read_keys(self.keys_path) == self.split.keys

    def check_corpus(self) -> None:
        """Check that the manifest lists at least one recording of the units that are there.

        Raises:
            OutputError: if they belong to another corpus, whose units would be replaced.
        """
        there = self._find_keys()
        if there and there.isdisjoint(self.split.keys):
            raise OutputError(
                f"{self.path}: holds units of other recordings: {self.split.path} lists none of them",
                remedy="other_out",
            )

    def has_all_units(self) -> bool:
        """Return whether every recording of the manifest has its units, here or in the part."""
        return self._find_keys().issuperset(self.split.keys)

    def _find_keys(self) -> set[str]:
        """Return the keys of all recordings that have units."""
        there = set(read_keys(self.keys_path)) if self.keys_path.is_file() else set()
        if self.part_path.is_file():
            with _files.refusing(self.part_path):
                there |= _find_lines(self.part_path).keys()
        return there

    def adopt_older(self, same_manifest: bool) -> None:
        """Convert an older version's files, whose lines have no keys and are in the manifest's order.

        Args:
            same_manifest: whether the manifest is exactly the one from which the lines were made.

        Raises:
            OutputError: if it is not, or the lines do not match it.
        """
        keyless = self.path if self.path.is_file() and not self.keys_path.is_file() else None
        if keyless is None and self.part_path.is_file():
            with open(self.part_path, "rb") as stream:
                keyless = None if stream.read(1) in (MARK, b"") else self.part_path
        if keyless is None:
            return
        if not same_manifest:
            raise OutputError(f"{keyless}: does not tell of which recordings its units are", remedy="other_out")
        if keyless == self.path:
            _files.write(self.keys_path, _join_keys(self.split.keys))
            return
        lines = _drop_unfinished(keyless.read_bytes()).splitlines(keepends=True)
        if len(lines) > len(self.split.keys):
            raise OutputError(f"{keyless}: has more lines than {self.split.path} has recordings", remedy="other_out")
        pairs = zip(self.split.keys, lines, strict=False)
        _files.write(keyless, b"".join(MARK + key.encode() + b" " + line for key, line in pairs))

    def label(self, features: Features, centres: Frames, fail: Fail) -> Iterator[int]:
        """Label every recording that has no line yet, resuming a stopped call.

        Args:
            features: features on which the centres were fitted.
            centres: centres, (K, F).
            fail: called with each recording that cannot be used; it gets no line.

        Yields:
            The number of lines just processed, or, first, of those that were there.

        Raises:
            OutputError: if it cannot be written.
        """
        keys = self.split.keys
        if self.is_whole:
            self.labelled = list(range(len(keys)))
            yield len(keys)
            return
        with _files.refusing(self.part_path):
            self._reopen()
            known = _find_lines(self.part_path)
            yield sum(key in known for key in keys)
            recordings = zip(keys, self.split.recordings, strict=True)
            pending = {key: recording for key, recording in recordings if key not in known}
            with open(self.part_path, "ab") as stream:
                yield from self._label_pending(pending, features, centres, fail, stream, known)
                os.fsync(stream.fileno())
        self.labelled = [index for index, key in enumerate(keys) if key in known]

    def _label_pending(
        self,
        pending: Mapping[str, Recording],
        features: Features,
        centres: Frames,
        fail: Fail,
        stream: BinaryIO,
        known: dict[str, int],
    ) -> Iterator[int]:
        """Label recordings, each once, and yield their numbers of lines in the manifest.

        Recordings that were computed together are written together, so that a resumed call has the same groups.
        """
        times = Counter(self.split.keys)
        key_of = {id(recording): key for key, recording in pending.items()}
        passed = 0

        def note(recording: Recording, error: AudioError) -> None:
            nonlocal passed
            passed += times[key_of[id(recording)]]
            if recording.path not in self.failed:
                self.failed[recording.path] = str(error)
                fail(recording, error)

        for group in features.read_groups(pending.values(), note):
            lines = b""
            for recording, frames in group:
                key = key_of[id(recording)]
                known[key] = stream.tell() + len(lines)
                units = " ".join(map(str, assign_units(frames, centres)))
                lines += MARK + key.encode() + b" " + units.encode() + b"\n"
                passed += times[key]
            stream.write(lines)
            stream.flush()
            yield passed
            passed = 0
        yield passed

    def finish(self) -> None:
        """Write the .km file, with lines in the manifest's order and none for recordings without units.

        Raises:
            OutputError: if it cannot be written.
        """
        if self.is_whole:
            return
        keys = [self.split.keys[index] for index in self.labelled]
        with _files.refusing(self.part_path):
            known = _find_lines(self.part_path)
            # Keys first: a .km file is never without its keys, and a call stopped here finds all lines in the part.
            _files.write(self.keys_path, _join_keys(keys))
            with open(self.part_path, "rb") as part:
                _files.write(self.path, lambda stream: _copy_lines(part, (known[key] for key in keys), stream))
            if known.keys() <= set(keys):  # otherwise other recordings' units would be lost
                self.part_path.unlink()

    def _reopen(self) -> None:
        """Move the lines of a .km file that was complete for another manifest into the part."""
        if not self.path.is_file():
            self.part_path.touch()
            return
        known = set(_find_lines(self.part_path)) if self.part_path.is_file() else set()

        def copy(target: BinaryIO) -> None:
            if known:
                with open(self.part_path, "rb") as part:
                    shutil.copyfileobj(part, target)
            with open(self.path, "rb") as lines:
                for key, line in zip(read_keys(self.keys_path), lines, strict=True):
                    if key not in known:
                        known.add(key)
                        target.write(MARK + key.encode() + b" " + line)

        try:
            _files.write(self.part_path, copy)
        except ValueError:  # zip's
            raise OutputError(f"{self.path}: has not a line for each of its keys", remedy="other_out") from None
        self.path.unlink()
        self.keys_path.unlink()


def write_dictionary(num_clusters: int, folder: Path) -> None:
    """Write ``dict.km.txt``: each unit and a count, which fairseq requires but does not read."""
    _files.write(folder / "dict.km.txt", "".join(f"{unit} 1\n" for unit in range(num_clusters)).encode())


def _join_keys(keys: Sequence[str]) -> bytes:
    return "".join(f"{key}\n" for key in keys).encode()


def read_keys(path: Path) -> list[str]:
    """Read the keys of recordings, one per line.

    Raises:
        OutputError: if the file cannot be read, or holds anything else.
    """
    with _files.refusing(path, "cannot be read"):
        lines = path.read_bytes().splitlines()
    if not all(len(line) == KEY_DIGITS and line.isalnum() for line in lines):
        raise OutputError(f"{path}: damaged: not a line of {KEY_DIGITS} digits for each recording", remedy="other_out")
    return [line.decode("ascii") for line in lines]


def _find_lines(path: Path) -> dict[str, int]:
    """Return the offset of each key's line in a part, after cutting off what a stopped call left unfinished."""
    with open(path, "r+b") as stream:
        places: dict[str, int] = {}
        place = 0
        for line in stream:
            if not line.endswith(b"\n"):
                break
            places.setdefault(line[1 : 1 + KEY_DIGITS].decode(errors="replace"), place)
            place += len(line)
        if place < os.fstat(stream.fileno()).st_size:
            stream.truncate(place)
    return places


def _copy_lines(part: BinaryIO, places: Iterable[int], target: BinaryIO) -> None:
    """Copy the units of the lines at some offsets."""
    for place in places:
        part.seek(place)
        target.write(part.readline()[1 + KEY_DIGITS + 1 :])


def _drop_unfinished(content: bytes) -> bytes:
    return content[: content.rfind(b"\n") + 1]
