"""A few of the damaged files of benchmarks.robustness, and that problems are detected."""

import collections
import time

import numpy
import pytest
import soundfile

from benchmarks.robustness import audio as robustness
from benchmarks.robustness.damage import DAMAGES, FORMATS, mutate

COUNT = 2 * len(FORMATS)


def test_damaged_files_end_nothing_and_change_nothing(tmp_path):
    files, out = tmp_path / "files", tmp_path / "out"
    robustness.make_files(files, COUNT, seed=7)
    results = list(robustness.have_them_read(files, COUNT, tmp_path / "results.jsonl"))
    assert [result["problems"] for result in results] == [[]] * COUNT
    outcomes = collections.Counter(result["outcome"] for result in results)
    assert outcomes["read"] + outcomes["refused"] == COUNT
    assert min(outcomes["read"], outcomes["refused"]) > COUNT // 5  # damage of both degrees
    robustness.extract_files(files, out)  # in this process: what crashes was seen above
    assert robustness.check_features(out, COUNT) == []


def test_damage_comes_from_the_seed(tmp_path):
    """And not from the clock: libsndfile writes the second into WAV files of floats."""
    contents = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        robustness.make_files(tmp_path / name, 4, seed)
        time.sleep(1.1)
        contents.append([path.read_bytes() for path in robustness.list_files(tmp_path / name)])
    assert contents[0] == contents[1] != contents[2]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_every_damage_damages(damage):
    generator = numpy.random.default_rng(0)
    original = generator.bytes(10000)
    changed = 0
    for _ in range(20):
        data = bytearray(original)
        damage(data, generator)
        changed += data != original
    assert changed >= 19
    assert mutate(b"1234567", generator) == b"1234567"  # too short to have any


def test_what_goes_wrong_is_seen(tmp_path):
    soundfile.write(tmp_path / "x.wav", numpy.zeros(8000), 16000)
    assert robustness.read_file(tmp_path / "x.wav") == {"ending": ".wav", "outcome": "read", "problems": []}
    (tmp_path / "y.wav").write_bytes(b"no audio")
    assert robustness.read_file(tmp_path / "y.wav")["outcome"] == "refused"
    problems = []
    assert robustness.attempt(lambda path: [][1], tmp_path / "x.wav", problems) is None
    assert "IndexError" in problems[0]
