"""A corpus that is being built, and the lists that several tasks' readers need."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from benchmarks.minisuperb import sources
from benchmarks.minisuperb.sources import CONDITIONS, Clip
from daisy import _files


@dataclass(frozen=True)
class Draft:
    """A corpus that is being built."""

    out: Path
    """Empty folder to write into."""
    final: Path
    """Final path of that folder, for lists of absolute paths."""
    seed: int
    """Seed of pieces, noise excerpts and pairs."""
    limit: int | None
    """Maximum number of recordings per split."""
    training: str
    """Kind of training audio, a key of `sources.TRAINING`."""

    def read_clips(self, set_name: str, split: str) -> list[Clip]:
        """Read recordings of a shared set's split."""
        return sources.read_clips(set_name, split, self.limit)

    def degrade(self, clip: Clip, split: str, snr_db: float | None) -> Clip:
        """Mix test audio with test noise at a ratio, and train or dev audio with train noise, if drawn at random."""
        if split == "test":
            return sources.add_noise(clip, snr_db, "test", self.seed)
        return sources.add_training_noise(clip, self.training, self.seed)

    def save(self, waveforms: Mapping[Path | str, Tensor]) -> None:
        """Write recordings, given by their paths in the corpus."""
        sources.save_waveforms({self.out / path: waveform for path, waveform in waveforms.items()})

    def write_lines(self, path: Path | str, lines: Iterable[str]) -> None:
        """Write a text file of the corpus."""
        _files.write(self.out / path, "".join(f"{line}\n" for line in lines).encode())

    def write_table(self, path: Path | str, table: Iterable[Sequence[str]]) -> None:
        """Write a CSV file of the corpus."""
        write_table(self.out / path, table)


def list_versions(split: str) -> dict[str, float | None]:
    """Return the versions of a split in a corpus and their ratios: one for each condition of test audio, else one."""
    if split != "test":
        return {split: None}
    return {f"test-{name}": snr_db for name, snr_db in CONDITIONS.items()}


def write_table(path: Path, table: Iterable[Sequence[str]]) -> None:
    """Write a CSV file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding="utf-8") as stream:
        csv.writer(stream, lineterminator="\n").writerows(table)
