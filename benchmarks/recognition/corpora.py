"""The shared recordings with text: manifests for training, and speech for judging."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.shared.recordings import DATA, SAMPLE_RATE, read_index, read_waveform, spread_evenly
from benchmarks.shared.results import Row
from daisy import _files, audio
from daisy.calibration.trace_conditions import Speech

SPLITS = {"train": "train", "valid": "dev"}
"""Maps the names of the manifests to the splits that they list."""


@dataclass(frozen=True)
class Corpus:
    """Sets in one language."""

    sets: tuple[str, ...]
    column: str
    """Column of the sets' index with the transcript."""

    def read_rows(self, split: str, limit: int | None = None) -> list[tuple[str, Row]]:
        """Read the lines with a text from the sets' indices, and the set of each; at most ``limit`` per set."""
        return [
            (name, row)
            for name in self.sets
            for row in spread_evenly([row for row in read_index(name, split) if row[self.column].strip()], limit)
        ]

    def find_text(self, row: Row) -> str:
        """Return the transcript as used for training: upper case, single spaces."""
        return " ".join(str(row[self.column]).upper().split())


CORPORA = {
    "an4": Corpus(("an4",), "text_or_label"),
    "english": Corpus(("librispeech", "librispeech_more", "an4", "robotutor", "speechocean762"), "text_or_label"),
    "mboshi": Corpus(("mboshi",), "text_clean"),
}


def write_manifests(corpus: Corpus, folder: Path, limit: int | None = None) -> None:
    """Write manifests and transcripts of the train and dev splits, if they do not exist."""
    for name, split in SPLITS.items():
        manifest = folder / f"{name}.tsv"
        if manifest.is_file():
            continue
        folder.mkdir(parents=True, exist_ok=True)
        rows = corpus.read_rows(split, limit)
        audio.write_transcripts(manifest, [corpus.find_text(row) for _, row in rows])
        names = [f"{set_name}/{row['path']}" for set_name, row in rows]
        recordings = [audio.Recording(path=DATA / name, name=name) for name in names]
        lines = [audio.format_manifest_line(recording, DATA, SAMPLE_RATE) for recording in recordings]
        _files.write(manifest, "\n".join([audio.format_manifest_root(DATA), *lines, ""]).encode())


def read_texts(corpus: Corpus, split: str, limit: int | None = None) -> tuple[Speech, list[str]]:
    """Read a split's recordings and their transcripts; names begin with the set."""
    rows = corpus.read_rows(split, limit)
    speech = Speech(
        waveforms=[read_waveform(name, row["path"]) for name, row in rows],
        names=[f"{name}/{row['path']}" for name, row in rows],
        groups=[f"{name}:{row['speaker']}" for name, row in rows],
        failed={},
    )
    return speech, [corpus.find_text(row) for _, row in rows]


def find_sets(names: Iterable[str]) -> list[str]:
    """Return the set of each utterance."""
    return [name.split("/")[0] for name in names]
