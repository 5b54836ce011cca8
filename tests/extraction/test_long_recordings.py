"""Long recordings in windows, written to files."""

import csv

import numpy
import pytest
import soundfile
import torch
from safetensors.torch import load_file

from daisy import EarlyExitEncoder, OutputError, policies
from daisy.errors import UsageError
from daisy.extraction import windows
from tests.conftest import tiny_model
from tests.extraction.extracting import extract


@pytest.mark.parametrize("format", ["safetensors", "npy"])
def test_long_recordings_run_in_windows(tmp_path, format):
    waveform = 0.1 * torch.randn(50000, generator=torch.Generator().manual_seed(0))
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    for name, samples in (("long", waveform), ("short", waveform[:16000])):
        soundfile.write(folder / f"{name}.wav", samples.numpy(), 16000, subtype="FLOAT")
    model = tiny_model()
    used = EarlyExitEncoder(model.backbone, model.heads, policies.Fixed(layer=2), keep="last", scores=["entropy"])
    settings = {"format": format, "dtype": "float16", "window_sec": 1.2, "context_sec": 0.3}
    long, short = extract(folder, out, used, **settings).rows
    assert short.window_exits == []
    assert long.window_exits == [2] * 5  # 155 frames, 30 a window, the last 35
    assert (long.exit_layer, long.mean_exit_layer, long.silent) == (2, 2.0, False)
    assert len(long.scores["entropy"]) == 2
    pieces = windows.run(used, lambda a, b: waveform[a:b], 50000, window_sec=1.2, context_sec=0.3)
    expected = torch.cat([piece.states for piece in pieces])
    path = out / f"long.{format}"
    states = torch.from_numpy(numpy.load(path)) if format == "npy" else load_file(path)["states"]
    assert states.dtype == torch.float16
    torch.testing.assert_close(states.float(), expected, atol=2e-3, rtol=2e-3)
    files = {"index.json", "index.csv", "journal.jsonl", f"long.{format}", f"short.{format}"}
    assert {path.name for path in out.iterdir()} == files
    table = list(csv.DictReader((out / "index.csv").read_text().splitlines()))
    assert [row["window_exits"] for row in table] == ["2 2 2 2 2", ""]
    assert extract(folder, out, used, **settings).num_resumed == 2
    with pytest.raises(OutputError, match="another window_sec"):
        extract(folder, out, used, **{**settings, "window_sec": 1.5})
    everything = EarlyExitEncoder(model.backbone, model.heads, policies.Fixed(layer=2))
    with pytest.raises(UsageError, match="they go with layers last, not all"):
        extract(folder, out, everything, **settings)


def test_a_damaged_long_recording_is_named_and_leaves_nothing(tmp_path):
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    samples = torch.randn(50000).mul(0.1)
    samples[45000] = torch.nan
    soundfile.write(folder / "long.wav", samples.numpy(), 16000, subtype="FLOAT")
    report = extract(folder, out, window_sec=1.2, context_sec=0.3)
    assert "hold some that are NaN or infinite" in str(report.failed[str(folder / "long.wav")])
    assert {path.name for path in out.iterdir()} == {"index.json", "index.csv", "journal.jsonl"}
