"""Describe recordings: file and channel, speaker, and how often to list each."""

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
"""The mean of a file's channels, each channel as a recording of its own, or one channel, counted from 0."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recording:
    """A file to read, and the name that its results get."""

    path: Path
    """Absolute path."""
    name: str
    """Path relative to the folder or manifest root under which the file was found."""
    channel: int | None = None
    """Channel to take, counted from 0; None: the mean of all."""
    name_of_file: str = ""
    """The name before `take_channels` gave each channel its own; empty if it did not."""

    @property
    def file_name(self) -> str:
        """Name that is the same for a file and for each channel that is taken from it."""
        return self.name_of_file or self.name

    @property
    def label(self) -> str:
        """The path, and the channel if it is a single one."""
        return format_label(str(self.path), self.channel)


def read_recording(
    recording: Recording,
    sample_rate: int,
    *,
    min_samples: int = MIN_SAMPLES,
    max_samples: int | None = None,
    remedy: Remedy | None = None,
) -> Tensor:
    """Read a recording for a network.

    Args:
        recording: recording to read.
        sample_rate: sample rate of the network in Hz.
        min_samples: samples that one frame sees.
        max_samples: samples that the network takes at once; None: any number.
        remedy: remedy to name for a recording that is too long.

    Returns:
        (N,) float32 samples.

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
    """Return a recording's number of samples by its header, before it is read.

    Args:
        recording: recording to measure.
        sample_rate: sample rate in Hz at which to count.

    Returns:
        The number of samples.

    Raises:
        AudioError: where there is no readable header, with the fuller reason if reading the file gives one.
    """
    try:
        return files.num_samples(recording.path, sample_rate)
    except AudioError:
        files.read(recording.path, sample_rate, recording.channel)
        raise


Refusal = TypeVar("Refusal", bound=DaisyError)


def drop_path(recording: Recording, error: Refusal) -> Refusal:
    """Return the error without the path, for callers that name the recording beside it."""
    return type(error)(error.message.removeprefix(f"{recording.path}: "), remedy=error.remedy, path=error.path)


def format_label(path: str, channel: int | None) -> str:
    """Return a path, with the channel if a single one is meant."""
    return path if channel is None else f"{path} (channel {channel})"


def parse_label(label: str) -> str:
    """Return the path of a label."""
    return re.sub(r" \(channel \d+\)$", "", label)


def take_channels(recordings: Sequence[Recording], channel: Channel) -> list[Recording]:
    """Choose the channels of recordings that have several, such as the two sides of a telephone call.

    Args:
        recordings: recordings of files.
        channel: "mean"; a number, which applies to every file; or "all", which makes a recording of each channel, named
            ``call.0.wav``, ``call.1.wav`` after ``call.wav``, also where there is only one channel.

    Returns:
        The recordings in their order. A file that cannot be read stays one recording: reading it gives the reason. A
        recording whose channel was chosen before stays as it is.

    Raises:
        UsageError: on a channel below 0.
    """
    if channel == "mean":
        return list(recordings)
    if channel == "all":
        return [one for recording in recordings for one in _split_channels(recording)]
    if channel < 0:
        raise UsageError(f"channels are counted from 0, found {channel}")
    return [one if one.channel is not None else replace(one, channel=channel) for one in recordings]


def count_repeats(num_samples: Sequence[int], speakers: Sequence[str], power: float) -> list[int]:
    """Count how often to list each recording, so that no speaker outweighs the others.

    Speakers are heard in proportion to (their samples) ** (1 - power), as nearly as whole listings allow: 0 lists
    everything once, 1 hears all speakers equally long. The speaker with the most samples is listed once. For a speaker
    to be listed 1.5 times, every second recording is listed twice, spread as in `weigh_sets`.

    Args:
        num_samples: samples of each recording.
        speakers: speaker of each recording.
        power: exponent from 0 to 1.

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
        path: path of the CSV file.

    Returns:
        Speakers by path.

    Raises:
        UsageError: where it is not such a file.
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
        recordings: recordings to look up.
        table: CSV file for `read_speakers`; without one, every recording counts as another speaker's.
        root: folder that the table's paths are relative to.

    Returns:
        A speaker's name for each recording.

    Raises:
        UsageError: where the table is not such a file, or lacks a recording.
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
    """Map paths to speakers, one for each: speakers are the independent examples of a guarantee."""
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
    """Make a recording of one channel of a file, with its own name."""
    name = Path(recording.name)
    of_channel = str(name.with_name(f"{name.stem}.{index}{name.suffix}"))
    return replace(recording, name=of_channel, channel=index, name_of_file=recording.name)


def absolute(path: Path) -> Path:
    """Make a path absolute without "..", but follow no links, so that a name stays the name it was given."""
    return Path(os.path.abspath(path))
