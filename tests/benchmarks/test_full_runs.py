"""Full runs that are kept, and are not mistaken for others."""

import pytest
import soundfile
import torch

import daisy
from benchmarks.recognition import full_runs as recognition_runs
from benchmarks.shared import full_runs, recordings
from daisy.audio.conditions import make_conditions
from tests.conftest import tiny_model

TEXT = "path,split,duration_sec,speaker,text_or_label\n"


@pytest.fixture
def data(tmp_path, monkeypatch):
    """Two recordings of a set, two of noise."""
    generator = torch.Generator().manual_seed(0)
    for name in ("an4", "librispeech", "noise"):
        folder = tmp_path / name
        folder.mkdir()
        for index in range(3):
            soundfile.write(folder / f"{index}.wav", 0.1 * torch.randn(8000, generator=generator).numpy(), 16000)
        lines = [f"{index}.wav,{split},0.5,s{index},a" for index in range(2) for split in ("train", "dev")]
        (folder / "index.csv").write_text(TEXT + "\n".join(lines) + "\n")
    monkeypatch.setattr(recordings, "DATA", tmp_path)
    monkeypatch.setattr(full_runs, "CACHE", tmp_path / "traces")
    monkeypatch.setattr(full_runs, "TRAINING_SETS", ("librispeech",))
    monkeypatch.setitem(full_runs.PARTS, "recorded", make_conditions(("recorded",), (None, 10.0)))
    return tmp_path


def add_recording(data, name, split):
    with open(data / name / "index.csv", "a", encoding="utf-8") as stream:
        stream.write(f"2.wav,{split},0.5,s2,a\n")


def test_runs_of_other_recordings_noise_or_version_are_made_anew(data, monkeypatch):
    daisy.save(tiny_model(), data / "tiny.safetensors")
    load = lambda: full_runs.load_calibration_runs(data / "tiny.safetensors", parts=["recorded"])  # noqa: E731
    kept = lambda: {path: path.stat().st_mtime_ns for path in (data / "traces").iterdir()}  # noqa: E731
    assert load().groups == ("librispeech:s0", "librispeech:s1") * 2
    first = kept()
    assert len(load()) == 4
    assert kept() == first
    add_recording(data, "noise", "train")
    load()
    assert len(kept()) == 2
    add_recording(data, "librispeech", "dev")
    assert len(load()) == 6
    monkeypatch.setattr(daisy, "__version__", "another")
    load()
    assert len(kept()) == 4
    assert first.items() <= kept().items()


def test_runs_without_a_score_are_not_taken_where_it_is_wanted(data, monkeypatch):
    model = data / "x.safetensors"
    model.write_bytes(b"weights")
    name = "Splitformer, six exits"
    before = recognition_runs.name_runs(name, "dev", model)
    assert before == recognition_runs.name_runs(name, "dev", model)
    monkeypatch.setattr(recognition_runs, "WITH_POSTERIOR", (*recognition_runs.WITH_POSTERIOR, name))
    with_posterior = recognition_runs.name_runs(name, "dev", model)
    model.write_bytes(b"others")
    assert len({before, with_posterior, recognition_runs.name_runs(name, "dev", model)}) == 3
    assert with_posterior.parent == data
