"""Extraction by Ray's actors: the local engine's files, index and journal."""

import json

import pytest
import soundfile
import torch
from safetensors.torch import load_file

from daisy import audio
from daisy.distributed.extraction import RayEngine
from tests.distributed.recordings import NUM_RECORDINGS, make_extractor, write_recordings


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twenty recordings, and two that cannot be encoded."""
    place = write_recordings(tmp_path_factory.mktemp("recordings") / "in")
    (place / "broken.wav").write_bytes(b"RIFF")
    soundfile.write(place / "short.wav", torch.zeros(100).numpy(), 16000)
    return place


def read_index(out):
    """The index without what differs between two runs: seconds."""
    index = json.loads((out / "index.json").read_text())
    for row in index["recordings"]:
        del row["seconds"]
        for name in ("predicted_loss", "scores"):
            row.pop(name)
    for name in ("seconds", "real_time_factor"):
        del index["totals"][name]
    return index


def test_equals_the_local_engine(folder, tmp_path, cluster):
    recordings = audio.find([folder])
    local = make_extractor(tmp_path / "local").run(recordings)
    engine = RayEngine(workers=2)
    counts = []
    report = make_extractor(tmp_path / "ray", engine).run(recordings, progress=counts.append)
    assert len(report.rows) == NUM_RECORDINGS
    assert sum(counts) == NUM_RECORDINGS + 2
    assert len({pid for _, pid in engine.tally.workers}) == 2
    assert (engine.tally.lost, engine.tally.repeated) == (0, 0)
    assert len({row.exit_layer for row in report.rows}) > 1
    index = read_index(tmp_path / "local")
    assert read_index(tmp_path / "ray") == index
    assert {failure["path"] for failure in index["failed"]} == {str(folder / "broken.wav"), str(folder / "short.wav")}
    for row, other in zip(report.rows, local.rows, strict=True):
        torch.testing.assert_close(row.predicted_loss, other.predicted_loss, rtol=1e-5, atol=1e-5)
        states, others = (load_file(tmp_path / name / row.output)["states"] for name in ("ray", "local"))
        assert (states - others).abs().max() < 1e-4 * others.std()
