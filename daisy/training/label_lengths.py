"""Check that label files have as many labels as the lengths of their recordings require."""

from __future__ import annotations

from pathlib import Path

import numpy
from numpy.typing import NDArray

from daisy.errors import UsageError
from daisy.extraction.stored_features import TOLERANCE_SEC, TOLERANCE_SHARE

MOST_ODD_LINES = 0.01
"""Share of a file's lines that may exceed the tolerance; a single line may in any file."""
TYPICAL_SHARE = 0.5
"""Share of the tolerance within which half of the lines must lie when any line exceeds it."""

Integers = NDArray[numpy.int64]


def check_lengths(
    path: Path,
    lines: Integers,
    counts: Integers,
    num_samples: Integers,
    sample_rate: float,
    label_rate: float,
) -> str:
    """Check that recordings have as many labels as their lengths require.

    A few lines may be wrong, as fairseq allows: this only causes a warning. Labels of another rate or of other
    recordings are refused: then several lines exceed the tolerance, or most use up much of it.

    Args:
        path: path of the label file.
        lines: (R,) lines of the recordings in it, from 0.
        counts: (R,) numbers of labels on these lines.
        num_samples: (R,) lengths of the recordings in the manifest.
        sample_rate: sample rate of the recordings in Hz.
        label_rate: labels per second.

    Returns:
        A warning; "" where no line exceeds the tolerance.

    Raises:
        UsageError: naming file, line and the rate that the labels seem to have.
    """
    seconds = num_samples / sample_rate
    tolerances = TOLERANCE_SEC + TOLERANCE_SHARE * seconds
    shares = numpy.abs(counts / label_rate - seconds) / tolerances
    wrong = shares > 1
    if not wrong.any():
        return ""
    first = int(numpy.flatnonzero(wrong)[0])
    many = wrong.sum() > 1
    what = (
        f"{path}: {int(wrong.sum())} of {len(wrong)} lines {'are' if many else 'is'} not as long as "
        f"{'their recordings' if many else 'its recording'}: line {int(lines[first]) + 1} has {int(counts[first])} "
        f"labels, and {seconds[first]:.2f} s at label_rate {label_rate:g} have "
        f"{round(float(seconds[first] * label_rate))}"
    )
    if wrong.sum() <= max(1, MOST_ODD_LINES * len(wrong)) and numpy.median(shares) <= TYPICAL_SHARE:
        return f"{what}; it is trained on as it is, as fairseq does"
    raise UsageError(
        f"{what}. Labels must be of this manifest, label_rate theirs (all together they have "
        f"{counts.sum() / seconds.sum():.1f} a second) and sample_rate the manifest's"
    )
