import sys

import pytest

from daisy import UsageError
from daisy.recognition import count_errors, measure_error_rates


def test_rates_are_over_all_words_and_characters():
    pytest.importorskip("jiwer")
    rates = measure_error_rates(["the cat  sat", "on", " "], ["the cats sat", "on on", ""])
    assert (rates.num_words, rates.num_characters) == (4, 13)
    assert rates.wer == 2 / 4
    assert rates.cer == pytest.approx(4 / 13)
    assert count_errors("the cat sat", "cat sat on") == (2, 3)
    assert count_errors("abc", "", "characters") == (3, 3)
    assert count_errors("", "a b") == (2, 0)


def test_what_makes_no_sense_is_refused():
    pytest.importorskip("jiwer")
    with pytest.raises(UsageError, match="2 references and 1 hypotheses"):
        measure_error_rates(["a", "b"], ["a"])
    with pytest.raises(UsageError, match="no reference has a word"):
        measure_error_rates([" ", ""], ["a", "b"])
    with pytest.raises(UsageError, match="in words or characters, not in 'letters'"):
        count_errors("a", "a", "letters")


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "jiwer", None)
    with pytest.raises(
        UsageError, match=r"error rates need the package jiwer; pip install daisy-speech\[recognition\]"
    ):
        measure_error_rates(["a"], ["a"])
