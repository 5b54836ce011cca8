"""Shares of an extraction for processes that run at once: each file is in one of them, by its name alone."""

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
    """A share of the recordings, one of ``count`` that have none in common and together have all.

    A recording's share depends on its file's name and on ``count``, not on what other recordings there are or in which
    order: so it stays the same when some are added or when a run goes on, and all channels of a file are in one.
    Shares are equal up to chance: of 100,000 recordings in 100 shares, most have 1,000 give or take 60.

    Args:
        index: which one, 0 to ``count`` - 1.
        count: how many there are; one has everything.

    Raises:
        UsageError: on what is no such number.

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
        """Tell whether a recording is in this share."""
        digest = hashlib.sha256(os.fsencode(recording.file_name)).digest()
        return int.from_bytes(digest[:8], "big") % self.count == self.index

    @property
    def journal(self) -> str:
        """Name of the file in which its results are noted."""
        return "journal.jsonl" if self.count == 1 else f"journal-{self.index}-of-{self.count}.jsonl"

    def __str__(self) -> str:
        return f"shard {self.index} of {self.count}"


EVERYTHING = Shard(0, 1)


def take_share(
    recordings: Sequence[Recording], shard: Shard, channel: Channel
) -> tuple[list[Recording], list[Recording]]:
    """Choose a share of some files, and what is heard of them.

    Args:
        recordings: of files, or already of channels.
        shard: which share.
        channel: as of `daisy.audio.take_channels`.

    Returns:
        The share's recordings; and the others. Files of the others are not opened: where each channel is heard, their
        first stands for all, as it tells which outputs would be shared.

    Raises:
        UsageError: on a channel below 0.
    """
    ours = [recording for recording in recordings if shard.takes(recording)]
    others = [recording for recording in recordings if not shard.takes(recording)]
    if channel == "all":
        others = [other if other.channel is not None else name_channel(other, 0) for other in others]
    else:
        others = take_channels(others, channel)
    return take_channels(ours, channel), others


def parse_journal_name(name: str) -> Shard | None:
    """Tell whose journal a file is; None where it is none."""
    match = JOURNAL_NAME.fullmatch(name)
    if match is None:
        return None
    index, count = (int(match[1]), int(match[2])) if match[1] else (0, 1)
    return Shard(index, count) if index < count else None
