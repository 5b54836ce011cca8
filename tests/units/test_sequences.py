from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daisy.errors import UsageError
from daisy.units import bitrate, deduplicate, repeat, unit_error_rate


@given(st.lists(st.integers(0, 3), max_size=30))
def test_durations_bring_the_frames_back(frames):
    units, durations = deduplicate(frames)
    assert repeat(units, durations) == frames
    assert all(one != other for one, other in pairwise(units))
    assert all(duration > 0 for duration in durations)


def test_each_unit_has_a_duration():
    with pytest.raises(UsageError, match="2 units and 1 durations"):
        repeat([1, 2], [3])


def test_errors_are_summed_before_they_are_divided():
    # one error among one unit and none among nine is one in ten, not the mean of 1 and 0
    assert unit_error_rate([[1], [2] * 9], [[5], [2] * 9]) == pytest.approx(0.1)
    assert unit_error_rate([[1, 2, 3]], [[1, 3, 4, 5]]) == pytest.approx(3 / 4)
    for hypotheses, references in (([[1]], [[1], [2]]), ([[1]], [[]])):
        with pytest.raises(UsageError):
            unit_error_rate(hypotheses, references)


def test_bitrate_is_of_the_units_of_all_utterances():
    assert bitrate([[0, 1], [2, 3]], seconds=4.0) == pytest.approx(4 / 4 * 2)  # four units alike: two bits each
    assert bitrate([[7] * 50], seconds=1.0) == 0
    with pytest.raises(UsageError, match="found 0 s"):
        bitrate([], seconds=0)
