"""Recordings: which file and channel, whose voice, how often to list it."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeVar

from torch import Tensor

from daisy.audio import files
from daisy.audio.decoding import read_header
from daisy.audio.weighting import weigh_sets
from daisy.errors import AudioError, DaisyError, Remedy, UsageError
from daisy.models.lengths import MIN_SAMPLES

Channel = Literal["mean", "all"] | int
"""The mean of a file's channels, each of them as a recording of its own, or one, counted from 0."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recording:
    """A file to read, and the name by which its results are known."""

    path: Path
    """Absolute."""
    name: str
    """Path relative to the folder or manifest root that it was found under."""
    channel: int | None = None
    """Which channel is heard, counted from 0; None: their mean."""
    name_of_file: str = ""
    """Its name before `take_channels` gave each channel one; empty where it gave none."""

    @property
    def file_name(self) -> str:
        """The same for a file and for each channel that is taken of it."""
        return self.name_of_file or self.name

    @property
    def label(self) -> str:
        """The path, and which channel it is where it is one of them."""
        return format_label(str(self.path), self.channel)


def read_recording(
    recording: Recording,
    sample_rate: int,
    *,
    min_samples: int = MIN_SAMPLES,
    max_samples: int | None = None,
    remedy: Remedy | None = None,
) -> Tensor:
    """Read a recording that a network is to run on.

    Args:
        recording: what to read.
        sample_rate: of the network, in Hz.
        min_samples: that one frame sees.
        max_samples: that the network hears at once; None: any number.
        remedy: for a recording that is longer.

    Returns:
        (N,) float32.

    Raises:
        AudioError: where it cannot be read, or is too short or too long; the message begins with the path.
    """
    waveform = files.read(recording.path, sample_rate, recording.channel)
    if len(waveform) < min_samples:
        raise AudioError(
            f"{recording.path}: too short: {len(waveform)} samples at {sample_rate} Hz, one frame needs {min_samples} "
            f"({1000 * min_samples / sample_rate:.0f} ms)"
        )
    if max_samples is not None and len(waveform) > max_samples:
        seconds, limit = len(waveform) / sample_rate, max_samples / sample_rate
        raise AudioError(
            f"{recording.path}: lasts {seconds:.1f} s, more than the {limit:g} s that the network hears at once",
            remedy=remedy,
        )
    return waveform


def measure_recording(recording: Recording, sample_rate: int) -> int:
    """Tell a recording's samples by its header, before it is read.

    Args:
        recording: what to measure.
        sample_rate: at which, in Hz.

    Returns:
        The number of samples.

    Raises:
        AudioError: where there is no readable header: with the fuller reason of reading it, if there is one.
    """
    try:
        return files.num_samples(recording.path, sample_rate)
    except AudioError:
        files.read(recording.path, sample_rate, recording.channel)
        raise


Refusal = TypeVar("Refusal", bound=DaisyError)


def drop_path(recording: Recording, error: Refusal) -> Refusal:
    """Return the reason alone, for those who name the recording beside it."""
    return type(error)(error.message.removeprefix(f"{recording.path}: "), remedy=error.remedy, path=error.path)


def format_label(path: str, channel: int | None) -> str:
    """Return a path, and which channel of its file is meant where it is one of them."""
    return path if channel is None else f"{path} (channel {channel})"


def parse_label(label: str) -> str:
    """Return the path of a label."""
    return re.sub(r" \(channel \d+\)$", "", label)


def take_channels(recordings: Sequence[Recording], channel: Channel) -> list[Recording]:
    """Choose what is heard of recordings of several channels, such as the two sides of a telephone call.

    Args:
        recordings: of files.
        channel: "mean"; a number, of every file; or "all", which makes a recording of each channel, named
            ``call.0.wav``, ``call.1.wav`` after ``call.wav``, also where there is one channel only.

    Returns:
        The recordings in their order. A file that cannot be read stays one recording: reading it says why. One whose
        channel was chosen before stays as it is.

    Raises:
        UsageError: on a number below 0.
    """
    if channel == "mean":
        return list(recordings)
    if channel == "all":
        return [one for recording in recordings for one in _split_channels(recording)]
    if channel < 0:
        raise UsageError(f"channels are counted from 0, found {channel}")
    return [one if one.channel is not None else replace(one, channel=channel) for one in recordings]


def count_repeats(num_samples: Sequence[int], speakers: Sequence[str], power: float) -> list[int]:
    """Count how often to list each recording, so that nobody's voice outweighs the others'.

    Speakers are heard in proportion to (their samples) ** (1 - power), as nearly as whole listings allow: 0 lists
    everything once, 1 hears all speakers equally long. The speaker with the most samples is listed once. Of one who is
    to be listed 1.5 times every second recording stands twice, as `weigh_sets` spreads them.

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
    factors = {speaker: (most / total) ** power for speaker, total in totals.items()}
    return weigh_sets([1] * len(speakers), speakers, factors)


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
            rows = [(row["path"], row["speaker"] or "") for row in csv.DictReader(stream)]
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from None
    except (UnicodeDecodeError, KeyError, csv.Error):
        raise UsageError(f"{path}: not a CSV file with the columns path and speaker") from None
    return _map_speakers(path, rows)


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
    rows = [(str(absolute(Path(root) / path)), speaker) for path, speaker in read_speakers(table).items() if path]
    known = _map_speakers(table, rows)
    paths = [str(absolute(recording.path)) for recording in recordings]
    unknown = [path for path in paths if not known.get(path)]
    if unknown:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        raise UsageError(
            f"{table}: names no speaker of {unknown[0]}{more}; its paths are taken below {root}", remedy="root"
        )
    return [known[path] for path in paths]


def _map_speakers(table: str | Path, rows: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Speakers by path, of which each has one: they are the independent examples of a guarantee."""
    speakers: dict[str, str] = {}
    for path, speaker in rows:
        if speakers.setdefault(path, speaker) != speaker:
            raise UsageError(f"{table}: has two speakers for {path}: {speakers[path]} and {speaker}")
    return speakers


def _split_channels(recording: Recording) -> list[Recording]:
    if recording.channel is not None:
        return [recording]
    try:
        count = read_header(recording.path).channels
    except AudioError:
        return [recording]
    return [name_channel(recording, index) for index in range(count)]


def name_channel(recording: Recording, index: int) -> Recording:
    """Make a recording of one channel of a file, with a name of its own."""
    name = Path(recording.name)
    of_channel = str(name.with_name(f"{name.stem}.{index}{name.suffix}"))
    return replace(recording, name=of_channel, channel=index, name_of_file=recording.name)


def absolute(path: Path) -> Path:
    """Without ".." and without following links, so that a name stays the name it was given."""
    return Path(os.path.abspath(path))
