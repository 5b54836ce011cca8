"""The shared recordings: sets, splits and noise; and the constants shared by measurements on them."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from benchmarks.shared.script import ROOT
from daisy import audio
from daisy.audio import mixing
from daisy.errors import UsageError
from daisy.models import BackboneConfig

SHARED = Path(os.environ.get("DAISY_SHARED", ROOT.parent / "shared")).absolute()
"""Folder that contains data/ and models/."""
DATA = SHARED / "data"
SAMPLE_RATE = BackboneConfig().sample_rate
"""Sample rate in Hz of HuBERT and of every shared recording."""
TRAINING_SETS = ("librispeech", "commands", "keywords")
"""Networks and heads learn from their train splits, and policies are set on their dev splits."""
TEST_SETS = (*TRAINING_SETS, "digits", "mboshi")
"""Policies are judged on their test splits; nothing was learnt or set on the last two sets."""
SNRS_DB_COARSE: tuple[float | None, ...] = (None, 20.0, 10.0, 0.0)
"""Replaces `daisy.cli.options.SNRS_DB` where each ratio costs a training or a test set."""
DEPTHS_COARSE = (0.4, 0.6, 0.8)
"""Replaces `daisy.evaluation.study.DEPTHS` likewise."""
Item = TypeVar("Item")


@dataclass(frozen=True)
class Utterance:
    """A recording of the shared sets."""

    waveform: Tensor
    speaker: str
    """Speaker, or a group of recordings in its place."""
    set: str


def read_index(set_name: str, split: str, limit: int | None = None) -> list[dict[str, str]]:
    """Read a split's lines of a set's index.csv; at most ``limit``, chosen by `spread_evenly`.

    Raises:
        UsageError: if the set does not exist.
    """
    index = DATA / set_name / "index.csv"
    if not index.is_file():
        raise UsageError(f"{index}: not there; set DAISY_SHARED to the folder that holds data/ and models/")
    with open(index, newline="", encoding="utf-8") as stream:
        return spread_evenly([row for row in csv.DictReader(stream) if row["split"] == split], limit)


def spread_evenly(items: list[Item], limit: int | None) -> list[Item]:
    """Return every n-th of the items, for the least n that gives at most ``limit``; all if ``limit`` is None.

    The result can be little more than half of ``limit``: of 1,929 items, at most 900 are every third, 643.
    """
    return items if limit is None or len(items) <= limit else items[:: -(-len(items) // limit)]


def read_waveform(set_name: str, path: str) -> Tensor:
    """Read a recording (N,), given its path in its set's index."""
    return audio.read(DATA / set_name / path)


def read_utterances(sets: Iterable[str], split: str, limit: int | None = None) -> list[Utterance]:
    """Read recordings of a split, in the index's order; at most ``limit`` per set, chosen by `spread_evenly`."""
    return [
        Utterance(
            waveform=read_waveform(name, row["path"]),
            speaker=f"{name}:{row['speaker'] or row.get('group') or row['path']}",
            set=name,
        )
        for name in sets
        for row in read_index(name, split, limit)
    ]


def read_noises(split: str) -> mixing.NoiseBank:
    """Read all recordings of a split of the noise set."""
    return mixing.NoiseBank([read_waveform("noise", row["path"]) for row in read_index("noise", split)])


def make_noise(num_samples: int, generator: torch.Generator | None = None) -> Tensor:
    """Draw (N,) of white noise, for measurements that need no speech."""
    return 0.1 * torch.randn(num_samples, generator=generator)


def count_seconds(waveforms: Sequence[Tensor]) -> float:
    """Return the total duration in seconds."""
    return sum(map(len, waveforms)) / SAMPLE_RATE
