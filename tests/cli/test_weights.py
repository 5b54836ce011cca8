"""daisy manifest --weight: how often sets are listed, and the file that states it."""

import json
from collections import Counter

import numpy
import pytest
import soundfile

from daisy import _files
from tests.cli.running import run

SECONDS = {"words/a": 0.5, "words/b": 1.5, "books/c": 2.0, "books/d": 2.0, "e": 1.0}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    for name, seconds in SECONDS.items():
        path = folder / "in" / f"{name}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, numpy.zeros(int(16000 * seconds)), 16000)
    lines = [f"{name}.wav,{speaker}\n" for name, speaker in zip(SECONDS, "xyzzz", strict=True)]
    (folder / "speakers.csv").write_text("".join(["path,speaker\n", *lines]))
    return folder


def write_manifest(place, name, *options):
    return run("manifest", "in", "--root", "in", "-o", name, *options, cwd=place)


def count_lines(place, name):
    lines = (place / name).read_text().splitlines()[1:]
    return dict(Counter(line.split("\t")[0].removesuffix(".wav") for line in lines))


def test_sets_are_listed_as_often_as_stated_and_a_file_beside_tells_it(place):
    done = write_manifest(place, "train.tsv", "--weight", "words=2", "--weight", "books=1.5")
    assert done.returncode == 0, done.stderr
    assert count_lines(place, "train.tsv") == {"words/a": 2, "words/b": 2, "books/c": 2, "books/d": 1, "e": 1}
    assert done.stdout.splitlines() == [
        "train.tsv: 8 recordings",
        "each epoch hears words 4.0 s (weight 2, recorded 2.0 s), books 6.0 s (weight 1.5, recorded 4.0 s), "
        "the rest 1.0 s (recorded 1.0 s)",
    ]
    notes = json.loads((place / "train.weights.json").read_text())
    assert notes["digest"] == _files.digest(place / "train.tsv")
    assert [(share["folder"], share["weight"], share["listed"], share["heard_sec"]) for share in notes["sets"]] == [
        ("words", 2.0, 4, 4.0),
        ("books", 1.5, 3, 6.0),
        (None, 1.0, 1, 1.0),
    ]
    again = write_manifest(place, "train.tsv")
    assert again.stdout == "train.tsv: 5 recordings\n"
    notes = json.loads((place / "train.weights.json").read_text())  # would else tell of another manifest
    assert (notes["digest"], len(notes["sets"])) == (_files.digest(place / "train.tsv"), 1)
    write_manifest(place, "plain.tsv")
    assert not (place / "plain.weights.json").exists()


def test_weights_multiply_what_balancing_speakers_gives(place):
    options = ("--speakers", "speakers.csv", "--balance", "1")
    assert write_manifest(place, "balanced.tsv", *options).returncode == 0
    before = count_lines(place, "balanced.tsv")
    assert before == {"words/a": 10, "words/b": 3, "books/c": 1, "books/d": 1, "e": 1}
    assert json.loads((place / "balanced.weights.json").read_text())["speakers"] == "speakers.csv"
    assert write_manifest(place, "both.tsv", *options, "--weight", "words=0.5").returncode == 0
    assert count_lines(place, "both.tsv") == {**before, "words/a": 5, "words/b": 2}


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (["words"], "--weight words: must be SET=NUMBER, such as keywords=2"),
        (["words=two"], "--weight words=two: must be SET=NUMBER"),
        (["=2"], "--weight =2: must be SET=NUMBER"),
        (["words=0"], "the weight of words must be a number above 0 and at most 1000, found 0"),
        (["words=nan"], "the weight of words must be a number above 0 and at most 1000, found nan"),
        (["words=1001"], "the weight of words must be a number above 0 and at most 1000, found 1001"),
        (["words=1e12"], "the weight of words must be a number above 0 and at most 1000, found 1e+12"),
        (["words=2", "words=3"], "--weight words=3: words has a weight already"),
        (["word=2"], "no recording of the manifest is below word: sets are folders below its root"),
    ],
)
def test_weights_that_cannot_be_met_are_refused(place, weights, message):
    done = write_manifest(place, "refused.tsv", *(text for weight in weights for text in ("--weight", weight)))
    assert done.returncode == 2
    assert done.stderr.startswith(f"daisy: {message}")
    assert not (place / "refused.tsv").exists()
