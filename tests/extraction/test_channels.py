"""Recordings with several channels: their mean, one of them, or each in a file of its own."""

import csv
import json

import pytest
import soundfile
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from daisy import AudioError, EarlyExitEncoder, OutputError, audio, policies
from daisy.audio import recordings
from daisy.audio.decoding import read_header
from daisy.errors import UsageError
from daisy.extraction import Extractor, Shard
from tests.conftest import tiny_model

RATE = 16000


@pytest.fixture
def sides():
    """(2, N): two who speak in turn."""
    generator = torch.Generator().manual_seed(3)
    sides = torch.randn(2, 20000, generator=generator) * 0.1
    sides[0, 10000:] *= 0.01
    sides[1, :10000] *= 0.01
    return sides


@pytest.fixture
def folder(tmp_path, sides):
    (tmp_path / "in" / "sub").mkdir(parents=True)
    soundfile.write(tmp_path / "in/call.wav", sides.T.numpy(), RATE, subtype="FLOAT")
    soundfile.write(tmp_path / "in/call.0.wav", sides[0].numpy(), RATE, subtype="FLOAT")
    soundfile.write(tmp_path / "in/sub/mono.flac", sides[1].numpy(), RATE)
    return tmp_path / "in"


def encoder():
    model = tiny_model()
    return EarlyExitEncoder(model.backbone, model.heads, policies.Fixed(layer=2), keep="last")


def extract(folder, out, channel="mean", **options):
    running = {name: options.pop(name) for name in ("overwrite", "shard") if name in options}
    extractor = Extractor(encoder(), out, checkpoint="0" * 64, channel=channel, **options)
    return extractor.run(audio.find([folder]), **running)


def list_files(out):
    return sorted(str(path.relative_to(out)) for path in out.rglob("*.safetensors"))


def read_index(out):
    with open(out / "index.csv", newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def assert_states_of(path, waveform):
    expected = encoder()([waveform]).states[0][-1]
    torch.testing.assert_close(load_file(path)["states"], expected, rtol=0, atol=1e-4 * float(expected.std()))


def test_reading_channels(folder, sides):
    path = folder / "call.wav"
    assert torch.equal(audio.read(path), sides.mean(0))
    for channel in (0, 1):
        assert torch.equal(audio.read(path, channel=channel), sides[channel])
        assert torch.equal(audio.AudioFile(path, channel=channel).read(5000, 9000), sides[channel, 5000:9000])
    resampled = audio.AudioFile(path, 8000, channel=1)
    assert torch.equal(resampled.read(0, resampled.num_samples), audio.resample(sides[1], RATE, 8000))
    for read in (lambda: audio.read(path, channel=2), lambda: audio.AudioFile(path, channel=2).read(0, 10)):
        with pytest.raises(AudioError) as error:
            read()
        assert str(error.value) == f"{path}: has no channel 2, counted from 0: it has 2 channels"
    with pytest.raises(AudioError, match="mono.flac: has no channel 1, counted from 0: it has 1 channel$"):
        audio.read(folder / "sub/mono.flac", channel=1)


def test_taking_channels(folder):
    recordings = audio.find([folder])
    assert audio.take_channels(recordings, "mean") == recordings
    each = audio.take_channels(recordings, "all")
    assert [(one.name, one.channel, one.path.name) for one in each] == [
        ("call.0.0.wav", 0, "call.0.wav"),
        ("call.0.wav", 0, "call.wav"),
        ("call.1.wav", 1, "call.wav"),
        ("sub/mono.0.flac", 0, "mono.flac"),
    ]
    assert audio.take_channels(each, "all") == each
    assert each[2].label == f"{folder}/call.wav (channel 1)"
    assert [one.name for one in audio.take_channels(recordings, 1)] == [recording.name for recording in recordings]
    with pytest.raises(UsageError, match="counted from 0, found -1"):
        audio.take_channels(recordings, -1)


@pytest.mark.parametrize("window", [None, 0.6])
def test_each_channel_into_its_own_file(folder, sides, tmp_path, window):
    out = tmp_path / "out"
    report = extract(folder, out, "all", window_sec=window, context_sec=0.2)
    expected = ["call.0.0.safetensors", "call.0.safetensors", "call.1.safetensors", "sub/mono.0.safetensors"]
    assert list_files(out) == sorted(row.output for row in report.rows) == expected
    assert not report.failed
    if window is None:
        assert_states_of(out / "call.0.safetensors", sides[0])
        assert_states_of(out / "call.1.safetensors", sides[1])
    assert torch.equal(
        load_file(out / "call.0.safetensors")["states"], load_file(out / "call.0.0.safetensors")["states"]
    )
    rows = read_index(out)
    told = [(row["path"].rpartition("/")[2], row["channel"], row["output"]) for row in rows]
    assert told == [
        ("call.0.wav", "0", "call.0.0.safetensors"),
        ("call.wav", "0", "call.0.safetensors"),
        ("call.wav", "1", "call.1.safetensors"),
        ("mono.flac", "0", "sub/mono.0.safetensors"),
    ]
    index = json.loads((out / "index.json").read_text())
    assert [row["channel"] for row in index["recordings"]] == [0, 0, 1, 0]
    with safe_open(out / "call.1.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["daisy"])["channel"] == 1


def test_one_channel_of_every_file(folder, sides, tmp_path):
    report = extract(folder, tmp_path / "out", 1)
    assert list_files(tmp_path / "out") == ["call.safetensors"]
    assert_states_of(tmp_path / "out/call.safetensors", sides[1])
    assert {path.rpartition("/")[2]: str(reason) for path, reason in report.failed.items()} == {
        "call.0.wav (channel 1)": "has no channel 1, counted from 0: it has 1 channel",
        "mono.flac (channel 1)": "has no channel 1, counted from 0: it has 1 channel",
    }


def test_runs_go_on_channel_by_channel(folder, tmp_path):
    out = tmp_path / "out"
    extract(folder, out, "all")
    (out / "call.1.safetensors").unlink()
    report = extract(folder, out, "all")
    assert report.num_resumed == 3
    assert len(list_files(out)) == len(report.rows) == 4
    for channel in ("mean", 0):
        with pytest.raises(OutputError, match="holds a run with another channel"):
            extract(folder, out, channel)
    assert extract(folder, out, "mean", overwrite=True).num_resumed == 0
    assert list_files(out) == ["call.0.safetensors", "call.safetensors", "sub/mono.safetensors"]


def test_a_shard_opens_its_own_files_only_and_has_all_their_channels(folder, tmp_path, sides, monkeypatch):
    for index in range(6):
        soundfile.write(folder / f"more{index}.wav", sides.T.numpy()[: 9000 + 100 * index], RATE, subtype="FLOAT")
    extract(folder, tmp_path / "whole", "all")
    opened = []
    monkeypatch.setattr(recordings, "read_header", lambda path: opened.append(path.name) or read_header(path))
    shares = []
    for index in range(2):
        report = extract(folder, tmp_path / "shards", "all", shard=(index, 2))
        shares.append({row.path.rpartition("/")[2] for row in report.rows})
        assert len(report.rows) == sum(1 if name in ("call.0.wav", "mono.flac") else 2 for name in shares[-1])
        assert sorted(opened) == sorted(shares[-1])
        opened.clear()
    assert all(shares)
    assert not shares[0] & shares[1]
    assert len(shares[0] | shares[1]) == 9
    assert list_files(tmp_path / "shards") == list_files(tmp_path / "whole")
    rows = [
        [(row["path"], row["channel"], row["output"]) for row in read_index(tmp_path / name)]
        for name in ("whole", "shards")
    ]
    assert rows[0] == rows[1]
    assert len(rows[0]) == 16


def test_files_of_other_shards_that_would_share_an_output_are_refused(folder, tmp_path, sides):
    soundfile.write(folder / "call.flac", sides.T.numpy(), RATE)
    for index in range(2):
        with pytest.raises(UsageError, match=r"\(channel 0\) would both be written to call\.0\.safetensors"):
            extract(folder, tmp_path / "out", "all", shard=(index, 2))


def test_failures_of_other_shards_channels_stay(folder, tmp_path, sides):
    """Both sides of a call are too long; the other shard, which does not open it, keeps them in the index."""
    soundfile.write(folder / "long.wav", sides.T.repeat(2, 1).numpy(), RATE, subtype="FLOAT")
    first, second = (0, 1) if Shard(0, 2).takes(audio.Recording(path=folder / "x", name="long.wav")) else (1, 0)
    failed = [f"{folder}/long.wav (channel {channel})" for channel in (0, 1)]
    report = extract(folder, tmp_path / "out", "all", shard=(first, 2), max_sec=2.0)
    assert list(report.failed) == failed
    assert not extract(folder, tmp_path / "out", "all", shard=(second, 2), max_sec=2.0).failed
    index = json.loads((tmp_path / "out" / "index.json").read_text())
    assert [failure["path"] for failure in index["failed"]] == failed
    (folder / "long.wav").unlink()
    extract(folder, tmp_path / "out", "all", shard=(second, 2), max_sec=2.0)
    assert json.loads((tmp_path / "out" / "index.json").read_text())["failed"] == []


def test_the_mean_is_written_as_before(folder, tmp_path):
    out = tmp_path / "out"
    extract(folder, out)
    assert list_files(out) == ["call.0.safetensors", "call.safetensors", "sub/mono.safetensors"]
    assert "channel" not in (out / "index.csv").read_text().splitlines()[0]
    assert "channel" not in json.loads((out / "index.json").read_text())["recordings"][0]


def test_a_file_that_cannot_be_read_is_one_failure(folder, tmp_path):
    (folder / "broken.wav").write_text("no audio")
    report = extract(folder, tmp_path / "out", "all")
    assert list(report.failed) == [str(folder / "broken.wav")]
    assert len(report.rows) == 4
