"""Sets in a manifest with given weights."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daisy import UsageError, audio


def test_a_recording_belongs_to_the_deepest_folder_that_has_a_weight():
    names = ["a/x.wav", "a/b/x.wav", "a/bc/x.wav", "./c/x.wav", "x.wav", "ab/x.wav"]
    assert audio.find_sets(names, ["a", "a/b/", "c"]) == ["a", "a/b/", "a", "c", None, None]
    with pytest.raises(UsageError, match="no recording of the manifest is below d: sets are folders below its root"):
        audio.find_sets(names, ["a", "d"])
    with pytest.raises(UsageError, match="a set is given twice: a, a/"):
        audio.find_sets(names, ["a", "a/"])


@given(
    weight=st.integers(10, 300).map(lambda hundredths: hundredths / 100),
    repeats=st.lists(st.integers(1, 4), min_size=20, max_size=30),
)
def test_a_weight_is_met_and_spread_evenly(weight, repeats):
    """Up to each recording as many lines are written as wanted, to half a line; other sets stay."""
    sets = ["a", None] * (len(repeats) // 2) + ["a"] * (len(repeats) % 2)
    weighed = audio.weigh_sets(repeats, sets, {"a": weight})
    wanted = listed = 0
    for count, folder, times in zip(repeats, sets, weighed, strict=True):
        if folder is None:
            assert times == count
        else:
            wanted, listed = wanted + count * weight, listed + times
            assert abs(listed - wanted) <= 0.5 + 1e-9


def test_decimal_weights_are_exact():
    """Ten times 0.1 in binary is not 1."""
    assert audio.weigh_sets([1] * 30, ["a"] * 30, {"a": 0.1}) == ([0] * 4 + [1] + [0] * 5) * 3
    assert audio.weigh_sets([1] * 4, ["a"] * 4, {"a": 2.0}) == [2, 2, 2, 2]
    with pytest.raises(UsageError, match=r"the weight of a is 0\.1, with which none of its recordings is left"):
        audio.weigh_sets([1, 1], ["a", "a"], {"a": 0.1})


@pytest.mark.parametrize("weight", [0, -1, float("inf"), float("nan")])
def test_weights_are_numbers_above_0(weight):
    with pytest.raises(UsageError, match="the weight of a must be a number above 0"):
        audio.check_weights({"a": weight})


@pytest.mark.parametrize("folder", ["/a", "../a", "b/../../a"])
def test_sets_are_below_the_root(folder):
    with pytest.raises(UsageError, match="a set is a folder below the manifest's root"):
        audio.check_weights({folder: 2.0})


def test_shares_say_how_long_each_set_is_heard():
    samples, repeats, sets = [16000 * 90, 16000 * 30, 16000 * 20], [2, 2, 1], ["a", "a", None]
    named, rest = audio.measure_shares(samples, repeats, sets, {"a": 2.0}, 16000)
    assert (named.recordings, named.listed, named.recorded_sec, named.heard_sec) == (2, 4, 120.0, 240.0)
    assert named.describe() == "a 4.0 min (weight 2, recorded 2.0 min)"
    assert rest.describe() == "the rest 20.0 s (recorded 20.0 s)"
    assert len(audio.measure_shares(samples[:2], repeats[:2], sets[:2], {"a": 2.0}, 16000)) == 1
