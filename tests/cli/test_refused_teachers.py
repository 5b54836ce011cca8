"""daisy labels --teacher: what no teacher is, or what no request is, in one line."""

import sys

import numpy
import pytest

import daisy
from daisy.extraction import make_labels
from tests.cli.running import run
from tests.cli.test_labels import label, place  # noqa: F401  a fixture


def test_missing_transformers_is_one_line(place, monkeypatch):  # noqa: F811
    (place / "whisper").mkdir()
    (place / "whisper" / "config.json").write_text('{"model_type": "whisper"}')
    monkeypatch.setitem(sys.modules, "transformers", None)
    done = label(place, "--teacher", place / "whisper", "--layer", 4)
    assert done.returncode == 2
    assert done.stderr == "daisy: this teacher needs transformers: pip install 'daisy-speech[hf]'\n"


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ("none.pt", "none.pt: no such file or folder; a teacher is a HuBERT's checkpoint, a folder of"),
        ("empty", "empty: holds nothing that teaches; a teacher is"),
        ("train.tsv", "train.tsv: is no teacher by itself, which is a HuBERT's checkpoint"),
        ("both", "both: may be a model (config.json) or features (.npy): put them into folders of their own"),
        ("daisy-mini", "daisy-mini: is a bundled model, and lies here too: write ./daisy-mini for what lies here"),
        ("broken", "broken: config.json is not JSON"),
        ("some/model", "some/model: no such file or folder, and as a name on the hub: some/model: cannot be loaded"),
    ],
)
def test_what_no_teacher_is_or_several_is_refused(place, teacher, message, monkeypatch):  # noqa: F811
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name in ("empty", "both", "daisy-mini", "broken"):
        (place / name).mkdir()
    (place / "both" / "config.json").write_text('{"model_type": "hubert"}')
    numpy.save(place / "both" / "0.npy", numpy.zeros((25, 4)))
    (place / "broken" / "config.json").write_text("model")
    call = ("labels", "train.tsv", "-o", "units", "--layer", 2, "--teacher", teacher)
    done = run(*call, cwd=place)
    assert done.returncode == 2
    assert done.stderr.startswith(f"daisy: {message}")
    assert done.stderr.count("\n") == 1
    assert not (place / "units").exists()


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"teacher": "daisy-mini"}, "which of its layers teaches must be told; pass layer=N"),
        ({"layer": 3}, "layer 3 of what"),
        ({"teacher": "daisy-mini", "layer": 2, "feature_rate": 50}, "is a network"),
        ({"precision": "bfloat16"}, "MFCC have neither"),
        ({"precision": "int8"}, "precision must be float32 or bfloat16"),
        ({"clusters": 0}, "must be at least 1"),
    ],
)
def test_requests_that_make_no_sense(place, asked, message):  # noqa: F811
    with pytest.raises(daisy.UsageError, match=message):
        make_labels([place / "train.tsv"], place / "units", **asked)
    with pytest.raises(daisy.UsageError, match="none is given"):
        make_labels([], place / "units")
