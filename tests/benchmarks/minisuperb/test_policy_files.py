"""Policy files that are kept, and those that are set again."""

import json

import pytest
import soundfile
import torch

import daisy
from benchmarks.minisuperb.policy_files import PolicyFiles
from benchmarks.shared import full_runs, recordings
from daisy.audio.conditions import make_conditions
from tests.conftest import tiny_model


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Three recordings each of a set, of which two are listed, and of noise."""
    draws = torch.Generator().manual_seed(0)
    for name, split in (("librispeech", "dev"), ("noise", "train")):
        (tmp_path / name).mkdir()
        lines = ["path,split,duration_sec,speaker,text_or_label"]
        for index in range(3):
            samples = 0.1 * torch.randn(8000, generator=draws)
            soundfile.write(tmp_path / name / f"{index}.wav", samples.numpy(), 16000)
            lines.append(f"{index}.wav,{split},0.5,s{index},a")
        (tmp_path / name / "index.csv").write_text("\n".join(lines[:3]) + "\n")
    monkeypatch.setattr(recordings, "DATA", tmp_path)
    monkeypatch.setattr(full_runs, "CACHE", tmp_path / "traces")
    monkeypatch.setattr(full_runs, "TRAINING_SETS", ("librispeech",))
    monkeypatch.setitem(full_runs.PARTS, "recorded", make_conditions(("recorded",), (None, 10.0)))
    daisy.save(tiny_model(), tmp_path / "tiny.safetensors")
    return tmp_path


def add_recording(data):
    with open(data / "librispeech" / "index.csv", "a", encoding="utf-8") as stream:
        stream.write("2.wav,dev,0.5,s2,a\n")


def get(data, *patterns):
    """Of an entropy policy: how many recordings it was set on, and when; its path is always the same."""
    files = PolicyFiles(str(data / "tiny.safetensors"), "entropy", data / "policies", lambda text: None, None, patterns)
    path = files.get("entropy", 0.5)
    assert path.name == "entropy-50.json"
    return json.loads(path.read_text())["data"]["num_recordings"], path.stat().st_mtime_ns


def test_policies_are_set_anew_on_other_dev_audio(data, monkeypatch):
    first = get(data)
    assert first[0] == 2
    assert get(data) == first
    (data / "policies" / "entropy-50.runs").unlink()  # as older versions left it
    assert get(data) == first
    add_recording(data)
    second = get(data)
    assert second[0] == 3
    monkeypatch.setattr(daisy, "__version__", "another")
    third = get(data)
    assert third[0] == 3
    assert third[1] > second[1]
    assert get(data) == third


def test_policies_on_recordings_of_ones_own_are_set_anew_by_another_version(data, monkeypatch):
    own = str(data / "librispeech")
    first = get(data, own)
    assert first[0] == 3
    assert get(data, own) == first
    add_recording(data)
    assert get(data, own) == first
    monkeypatch.setattr(daisy, "__version__", "another")
    assert get(data, own)[1] > first[1]
