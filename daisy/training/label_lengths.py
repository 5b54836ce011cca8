"""Whether label files have as many labels as their recordings are long."""

from __future__ import annotations

from pathlib import Path

import numpy
from numpy.typing import NDArray

from daisy.errors import UsageError
from daisy.extraction.stored_features import TOLERANCE_SEC, TOLERANCE_SHARE

MOST_ODD_LINES = 0.01
"""Share of a file's lines that may be off by more; one may in any file."""
TYPICAL_SHARE = 0.5
"""Of what a line may be off by, that half of the lines must stay below where one is off by more."""

Integers = NDArray[numpy.int64]


def check_lengths(
    path: Path,
    lines: Integers,
    counts: Integers,
    num_samples: Integers,
    sample_rate: float,
    label_rate: float,
) -> str:
    """Check that recordings have as many labels as they are long.

    A line here and there may be odd, as fairseq has it: that is worth a warning. Labels of another rate or of other
    recordings are refused: then several lines are odd, or most are off by much of what a line may be off by.

    Args:
        path: of the label file.
        lines: (R,) of the recordings in it, from 0.
        counts: (R,) labels there.
        num_samples: (R,) of the recordings, as the manifest says.
        sample_rate: of the recordings, in Hz.
        label_rate: labels a second.

    Returns:
        What there is to warn of; "" where nothing is odd.

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
