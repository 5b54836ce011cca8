"""Upstreams are timed, and their times name the model."""

import json

import pytest
import torch

from benchmarks.minisuperb import timing
from benchmarks.minisuperb.corpora import build_corpus
from benchmarks.minisuperb.upstreams import make_upstreams
from daisy.errors import OutputError


def test_times_are_read_or_refused(tmp_path):
    read, path = timing.read_factors, tmp_path / "times.json"
    assert read(path) == {}
    for content in ("{", '{"real_time_factors": {"ic never clean": 1.0}}'):
        path.write_text(content)
        with pytest.raises(OutputError, match=r"times.json: no measured times of known models; remove it"):
            read(path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("stand_in")
def test_upstreams_are_timed_in_turns(tmp_path):
    pytest.importorskip("s3prl", reason="needs s3prl")
    folder = build_corpus("ic", tmp_path, limit=3)
    upstreams = make_upstreams(["never", "fixed-40"], "daisy-mini", "plateau", tmp_path, print)
    of_before = [("ic", "older", "clean", "a", "cpu"), ("ic", "never", "clean", "a", "cpu")]
    lines = [dict(zip(timing.OF_TIME, key, strict=True)) | {"real_time_factor": 9.0} for key in of_before]
    (tmp_path / "times.json").write_text(json.dumps({"times": lines}))
    threads = torch.get_num_threads()
    for checkpoint in ("a", "b"):
        timing.measure(upstreams, {"ic": folder}, checkpoint, "cpu", tmp_path / "times.json")
    torch.set_num_threads(threads)
    times = timing.read_factors(tmp_path / "times.json")
    assert set(times) == {of_before[0]} | {
        ("ic", name, condition, checkpoint, "cpu")
        for name in ("never", "fixed-40")
        for condition in ("clean", "0")
        for checkpoint in ("a", "b")
    }
    assert times[of_before[0]] == 9.0
    assert 0 < times["ic", "fixed-40", "clean", "a", "cpu"] < times["ic", "never", "clean", "a", "cpu"] < 9
