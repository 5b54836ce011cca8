"""Shares of an extraction for concurrent processes: each file belongs to one share, by its name alone."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

from daisy.audio import Channel, Recording, take_channels
from daisy.audio.recordings import name_channel
from daisy.errors import UsageError

JOURNAL_NAME = re.compile(r"journal(?:-(\d+)-of-(\d+))?\.jsonl")


@dataclass(frozen=True)
class Shard:
    """A share of the recordings, one of ``count`` disjoint shares that together have all recordings.

    A recording's share depends only on its file's name and on ``count``, not on the other recordings or their order: it
    stays the same when recordings are added or a run is resumed, and all channels of a file are in one share. Shares
    are equal up to chance: of 100,000 recordings in 100 shares, most have 1,000 give or take 60.

    Args:
        index: index of the share, 0 to ``count`` - 1.
        count: number of shares; a single one has everything.

    Raises:
        UsageError: if the numbers are invalid.

    Example:
        >>> from pathlib import Path
        >>> from daisy.audio import Recording
        >>> from daisy.extraction import Shard
        >>> recording = Recording(path=Path("/speech/a.wav"), name="a.wav")
        >>> [Shard(index, 3).takes(recording) for index in range(3)]
        [True, False, False]
    """

    index: int
    count: int

    def __post_init__(self) -> None:
        if self.count < 1:
            raise UsageError(f"{self}: there must be one at least")
        if not 0 <= self.index < self.count:
            raise UsageError(f"{self}: shards are numbered from 0 to {self.count - 1}")

    def takes(self, recording: Recording) -> bool:
        """Return whether a recording is in this share."""
        digest = hashlib.sha256(os.fsencode(recording.file_name)).digest()
        return int.from_bytes(digest[:8], "big") % self.count == self.index

    @property
    def journal(self) -> str:
        """Name of the file in which the share's results are noted."""
        return "journal.jsonl" if self.count == 1 else f"journal-{self.index}-of-{self.count}.jsonl"

    def __str__(self) -> str:
        return f"shard {self.index} of {self.count}"


EVERYTHING = Shard(0, 1)


def take_share(
    recordings: Sequence[Recording], shard: Shard, channel: Channel
) -> tuple[list[Recording], list[Recording]]:
    """Select a share of some files, and the channels to use.

    Args:
        recordings: recordings of files, or already of channels.
        shard: share to select.
        channel: channel, as in `daisy.audio.take_channels`.

    Returns:
        The share's recordings, and the others. Files of the others are not opened: if each channel is used, the first
            stands for all, which is enough to find outputs in common.

    Raises:
        UsageError: if the channel is below 0.
    """
    ours = [recording for recording in recordings if shard.takes(recording)]
    others = [recording for recording in recordings if not shard.takes(recording)]
    if channel == "all":
        others = [other if other.channel is not None else name_channel(other, 0) for other in others]
    else:
        others = take_channels(others, channel)
    return take_channels(ours, channel), others


def parse_journal_name(name: str) -> Shard | None:
    """Return the shard whose journal has this name; None if it is no journal."""
    match = JOURNAL_NAME.fullmatch(name)
    if match is None:
        return None
    index, count = (int(match[1]), int(match[2])) if match[1] else (0, 1)
    return Shard(index, count) if index < count else None
