import pytest

from benchmarks.minisuperb.score import score_model
from daisy.errors import UsageError

FLOOR = {"asr": {"wer": 0.8}, "se": {"pesq": 2.0, "stoi": 0.8}}
BEST = {"asr": {"wer": 0.4}, "se": {"pesq": 3.0, "stoi": 0.9}}


def test_features_have_nothing_and_the_reference_has_a_thousand():
    assert score_model(FLOOR, FLOOR, BEST) == 0
    assert score_model(BEST, FLOOR, BEST) == pytest.approx(1000)


def test_metrics_are_averaged_before_tasks():
    values = {"asr": {"wer": 0.6}, "se": {"pesq": 3.0, "stoi": 0.8}}  # each task half way
    assert score_model(values, FLOOR, BEST) == pytest.approx(500)
    assert score_model({"asr": {"wer": 1.0}}, FLOOR, BEST) == pytest.approx(-500)


@pytest.mark.parametrize(
    ("values", "floor", "message"),
    [
        ({}, FLOOR, "at least one task"),
        ({"sid": {"accuracy": 1.0}}, FLOOR, "no reference figures for task sid"),
        ({"asr": {"cer": 1.0}}, FLOOR, "no reference figure for cer"),
        ({"asr": {}}, FLOOR, "at least one metric"),
        ({"asr": {"wer": 1.0}}, BEST, "wer: log-mel features and the reference are both at 0.4"),
    ],
)
def test_what_has_no_score(values, floor, message):
    with pytest.raises(UsageError, match=message):
        score_model(values, floor, BEST)
