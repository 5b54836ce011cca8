"""Read a manifest's recordings, with their units if any, as padded batches that only seed and update determine."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor

from daisy import _files, audio
from daisy.audio.manifests import read_manifest_lines
from daisy.errors import UsageError
from daisy.models.heads import SPECIAL_SYMBOLS
from daisy.training.label_lengths import check_lengths
from daisy.training.settings import HeadTraining


@dataclass(frozen=True)
class HeadBatch:
    """Utterances that run together."""

    source: Tensor
    """Waveforms (B, N) float32."""
    num_samples: Tensor
    """Length of each waveform, (B,) int64."""
    labels: Tensor | None
    """(B, M) int64 units counted after fairseq's special symbols; -1 past the end."""
    seed: int
    """Seed of random draws for the batch."""


class HeadBatches:
    """Batches of a manifest.

    Args:
        manifest: fairseq manifest.
        settings: settings of the training.
        labels: folder of ``SPLIT.km`` and ``dict.km.txt``; None: the heads learn the teacher's units.
        sample_rate: sample rate in Hz.
        training: whether recordings are cropped, and batches drawn anew for each epoch.

    Raises:
        UsageError: where the manifest or its labels cannot be read, do not match, or nothing is long enough.
    """

    def __init__(
        self,
        manifest: str | Path,
        settings: HeadTraining,
        labels: str | Path | None = None,
        *,
        sample_rate: int = 16000,
        training: bool = True,
    ):
        manifest = Path(manifest)
        self.settings, self.sample_rate, self.training = settings, sample_rate, training
        recordings, lines = read_manifest_lines(manifest)
        lengths = _read_lengths(manifest, lines)
        units: Sequence[NDArray[numpy.int32] | None] = [None] * len(recordings)
        self.num_units = 0
        if labels is not None:
            symbols = read_symbols(Path(labels) / "dict.km.txt")
            self.num_units = len(symbols) + SPECIAL_SYMBOLS
            units = _read_units(
                Path(labels) / f"{manifest.stem}.km", symbols, lengths, settings.label_rate, sample_rate
            )
        kept = [index for index, length in enumerate(lengths) if length >= settings.min_sample_size]
        if not kept:
            raise UsageError(f"{manifest}: lists no recording of {settings.min_sample_size} samples or more")
        self.num_left_out = len(recordings) - len(kept)
        self.recordings = [recordings[index] for index in kept]
        self.lengths, self.units = [lengths[index] for index in kept], [units[index] for index in kept]

    @property
    def duration_sec(self) -> float:
        """Duration of all recordings that are long enough, in seconds."""
        return sum(self.lengths) / self.sample_rate

    def plan(self, epoch: int, rank: int = 0, world_size: int = 1) -> list[list[int]]:
        """Plan the batches of an epoch for one process, as indices; in training all processes have equally many."""
        lengths = [min(length, self.settings.max_sample_size) for length in self.lengths]
        generator = numpy.random.default_rng([self.settings.seed, epoch])
        order = generator.permutation(len(lengths)) if self.training else numpy.arange(len(lengths))
        ordered = sorted(order.tolist(), key=lambda index: -lengths[index])  # equal lengths stay in the drawn order
        batches: list[list[int]] = []
        for index in ordered:  # the first of a batch is the longest, to which the others are padded
            if batches and lengths[batches[-1][0]] * (len(batches[-1]) + 1) <= self.settings.max_tokens:
                batches[-1].append(index)
            else:
                batches.append([index])
        if self.training:
            batches = [batches[place] for place in generator.permutation(len(batches))]
            count = len(batches)
            while len(batches) % world_size:
                batches.append(batches[len(batches) % count])
        return batches[rank::world_size]

    def read(self, indices: Sequence[int], epoch: int) -> HeadBatch:
        """Read recordings, cropped where they are too long.

        Raises:
            AudioError: where a recording cannot be read.
        """
        seed = int(numpy.random.SeedSequence([self.settings.seed, epoch, *indices]).generate_state(1)[0] >> 1)
        if not self.training:
            seed = int(numpy.random.SeedSequence(list(indices)).generate_state(1)[0] >> 1)
        generator, limit = numpy.random.default_rng(seed), self.settings.max_sample_size
        waveforms, labels = [], []
        for index in indices:
            waveform, start = audio.read_recording(self.recordings[index], self.sample_rate), 0
            if len(waveform) > limit:
                start = int(generator.integers(len(waveform) - limit + 1)) if self.training else 0
                waveform = waveform[start : start + limit]
            waveforms.append(waveform)
            units = self.units[index]
            if units is not None:
                first = round(start * self.settings.label_rate / self.sample_rate)
                labels.append(torch.from_numpy(units[first:]).long())
        return HeadBatch(
            source=torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True),
            num_samples=torch.tensor([len(waveform) for waveform in waveforms]),
            labels=torch.nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=-1) if labels else None,
            seed=seed,
        )

    def iterate(self, epoch: int, skip: int = 0, rank: int = 0, world_size: int = 1) -> Iterator[HeadBatch]:
        """Read the batches of an epoch, except the first ``skip``."""
        for indices in self.plan(epoch, rank, world_size)[skip:]:
            yield self.read(indices, epoch)


def read_symbols(path: Path) -> list[str]:
    """Read the units of a fairseq dictionary, in their order.

    Raises:
        UsageError: where the file is not such a dictionary.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = _files.explain(error) if isinstance(error, OSError) else "not UTF-8"
        raise UsageError(f"{path}: {reason}; daisy labels writes it beside the units") from None
    symbols = [line.rsplit(" ", 1)[0] for line in lines if line.strip()]
    if not symbols or len(set(symbols)) < len(symbols):
        raise UsageError(f"{path}: not a dictionary, a line of each unit and a count")
    return symbols


def _read_lengths(manifest: Path, lines: Sequence[str]) -> list[int]:
    """Return the number of samples of each recording in the manifest."""
    lengths = []
    for number, line in enumerate(lines, 2):
        count = line.rpartition("\t")[2].strip()
        if not count.isdecimal():
            raise UsageError(f"{manifest}: line {number} has no number of samples")
        lengths.append(int(count))
    return lengths


def _read_units(
    path: Path, symbols: Sequence[str], lengths: Sequence[int], label_rate: float, sample_rate: int
) -> list[NDArray[numpy.int32]]:
    """Read the units of each line, numbered as in fairseq."""
    numbers = {symbol: number for number, symbol in enumerate(symbols, SPECIAL_SYMBOLS)}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = _files.explain(error) if isinstance(error, OSError) else "not UTF-8"
        raise UsageError(f"{path}: {reason}") from None
    if len(lines) != len(lengths):
        raise UsageError(f"{path}: has {len(lines)} lines, and its manifest lists {len(lengths)} recordings")
    units: list[NDArray[numpy.int32]] = []
    for number, line in enumerate(lines, 1):
        try:
            units.append(numpy.array([numbers[symbol] for symbol in line.split()], dtype=numpy.int32))
        except KeyError as error:
            raise UsageError(f"{path}: line {number} has {error.args[0]}, which is no unit of dict.km.txt") from None
    counts = numpy.array([len(of_line) for of_line in units])
    odd = check_lengths(path, numpy.arange(len(units)), counts, numpy.array(lengths), sample_rate, label_rate)
    if odd:
        warnings.warn(odd, stacklevel=2)
    return units
