"""Check label files against their dictionary and their audio, before training on them.

fairseq reads a unit that its dictionary lacks as ``<unk>``, a special symbol as itself, and only warns if the number of
labels suits another label rate. None of this fails: training then uses wrong targets.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from weakref import WeakSet

import numpy
from fairseq.data.audio.hubert_dataset import HubertDataset
from numpy.typing import NDArray

from daisy.errors import UsageError
from daisy.training.label_lengths import Integers, check_lengths

BLOCK_BYTES = 1 << 24

logger = logging.getLogger(__name__)

_checked: WeakSet[Any] = WeakSet()
"""Datasets whose label files were checked."""


def check_dataset(dataset: Any) -> None:
    """Check the label files of a dataset, once; 10 million labels take 0.4 s, as long as fairseq's own loading.

    Args:
        dataset: fairseq's ``HubertDataset`` as made by its task, with labels that stay in their files.

    Raises:
        UsageError: naming file, line and unit where a label is not a unit of its dictionary, or there are not as many
            labels as the audio is long, at the label rate.
    """
    if dataset in _checked or not isinstance(dataset, HubertDataset) or dataset.store_labels:
        return
    paths, processors, rates = dataset.label_paths, dataset.label_processors, dataset.label_rates
    for path, processor, rate, offsets in zip(paths, processors, rates, dataset.label_offsets_list, strict=True):
        starts, counts = check_units(Path(path), processor.dictionary)
        used = numpy.searchsorted(starts, [start for start, _ in offsets])
        if rate > 0:  # else the labels are sequences
            odd = check_lengths(Path(path), used, counts[used], numpy.array(dataset.sizes), dataset.sample_rate, rate)
            if odd:
                logger.warning(odd)
    _checked.add(dataset)


def check_units(path: Path, dictionary: Any) -> tuple[Integers, Integers]:
    """Check that all labels of a file are units of a dictionary.

    Args:
        path: path of the label file.
        dictionary: fairseq's dictionary; its special symbols are not units.

    Returns:
        The start of each line in bytes, and its number of labels.

    Raises:
        UsageError: naming file, line, label and dictionary.
    """
    units = dictionary.symbols[dictionary.nspecial :]
    widths = _tabulate(units)
    ends, counts, place, num_lines = [numpy.zeros(1, dtype=numpy.int64)], [], 0, 0
    try:
        with open(path, "rb") as stream:
            while block := stream.read(BLOCK_BYTES) + stream.readline():
                if b"\r" in block:
                    raise UsageError(f"{path}: has Windows line ends, with which fairseq reads wrong labels: dos2unix")
                content = numpy.frombuffer(block, dtype=numpy.uint8)
                in_label = content > ord(" ")
                if not _are_units(block, int(numpy.count_nonzero(in_label)), widths):
                    _check_lines(block, units, path, num_lines)
                block_ends = _find_ends(content)
                counts.append(_count_labels(in_label, block_ends))
                ends.append(place + block_ends)
                place, num_lines = place + len(block), num_lines + len(block_ends)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror or error})") from None
    return numpy.concatenate(ends)[:num_lines], numpy.concatenate([*counts, numpy.zeros(0, dtype=numpy.int64)])


def _tabulate(units: Sequence[str]) -> Integers:
    """Tabulate the number of digits of each unit by its number, 0 for gaps; empty if units are not all numbers."""
    if not units or not all(unit.isdecimal() and str(int(unit)) == unit and len(unit) < 7 for unit in units):
        return numpy.zeros(0, dtype=numpy.int64)
    numbers = numpy.array(units, dtype=numpy.int64)
    widths = numpy.zeros(numbers.max() + 1, dtype=numpy.int64)
    widths[numbers] = [len(unit) for unit in units]
    return widths


def _are_units(block: bytes, num_bytes: int, widths: Integers) -> bool:
    """Tell whether all labels of some lines are surely units; if not, they must be checked one by one.

    Args:
        block: the lines.
        num_bytes: bytes of labels in it; more than the numbers' digits if one is written differently (007, 1+2).
        widths: table from `_tabulate`.
    """
    if not len(widths):
        return False
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)  # NumPy's, where it cannot read to the end
        try:
            numbers = numpy.fromstring(block, dtype=numpy.int64, sep=" ")
        except (DeprecationWarning, ValueError):
            return False
    if len(numbers) and not 0 <= numbers.min() <= numbers.max() < len(widths):
        return False
    digits = widths[numbers]
    return bool(digits.all()) and int(digits.sum()) == num_bytes


def _check_lines(block: bytes, units: Sequence[str], path: Path, num_before: int) -> None:
    known = set(units)
    for number, line in enumerate(block.decode(errors="replace").split("\n"), num_before + 1):
        for label in line.split():
            if label not in known:
                raise UsageError(
                    f"{path}: line {number}: {label!r} is none of the {len(units)} units of "
                    f"{path.with_name(f'dict{path.suffix}.txt')}, and fairseq would take it for a special symbol"
                )


def _find_ends(content: NDArray[numpy.uint8]) -> Integers:
    """Find where lines end, in bytes; the last one may have no line end."""
    ends = numpy.flatnonzero(content == ord("\n")) + 1
    return ends if len(ends) and ends[-1] == len(content) else numpy.append(ends, len(content))


def _count_labels(in_label: NDArray[numpy.bool_], ends: Integers) -> Integers:
    """Count the labels of each line."""
    begins = in_label.copy()
    begins[1:] &= ~in_label[:-1]
    return numpy.diff(numpy.searchsorted(numpy.flatnonzero(begins), ends), prepend=0)
