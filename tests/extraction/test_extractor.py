import csv
import json
import os

import numpy
import pytest
import soundfile
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from daisy import EarlyExitEncoder, OutputError, audio, policies
from daisy.audio import Recording
from daisy.errors import UsageError
from daisy.extraction import Extractor, Shard
from tests.conftest import tiny_model
from tests.extraction.extracting import POLICY, encoder, extract


@pytest.fixture
def folder(tmp_path, waveforms):
    (tmp_path / "in" / "sub").mkdir(parents=True)
    for index, waveform in enumerate(waveforms):
        name = f"sub/{index}.wav" if index % 2 else f"{index}.wav"
        soundfile.write(tmp_path / "in" / name, waveform.numpy(), 16000, subtype="FLOAT")
    return tmp_path / "in"


def test_files_hold_what_the_encoder_gives(folder, waveforms, tmp_path):
    out = tmp_path / "out"
    report = extract(folder, out, batch_sec=2.0)
    exits = {row.output: row.exit_layer for row in report.rows}
    assert len(set(exits.values())) > 1
    for index, waveform in enumerate(waveforms):
        name = f"sub/{index}.safetensors" if index % 2 else f"{index}.safetensors"
        alone = encoder()([waveform])
        assert exits[name] == int(alone.exit_layer)
        states = load_file(out / name)["states"]
        assert (states - alone.states[0][0]).abs().max() < 1e-4 * states.std()
        with safe_open(out / name, framework="pt") as file:
            metadata = json.loads(file.metadata()["daisy"])
        assert metadata["exit_layer"] == exits[name]
        assert metadata["policy"] == POLICY.to_config()


@pytest.mark.parametrize(("layers", "dtype"), [("all", "float32"), ("last", "float16")])
def test_npy_and_all_layers(folder, tmp_path, layers, dtype):
    report = extract(folder, tmp_path / "out", encoder(layers), format="npy", dtype=dtype)
    for row in report.rows:
        states = numpy.load(tmp_path / "out" / row.output)
        frames = (int(row.duration_sec * 16000) - 400) // 320 + 1
        assert states.shape == ((row.exit_layer + 1, frames, 32) if layers == "all" else (frames, 32))
        assert states.dtype == dtype


def test_index_and_totals(folder, tmp_path):
    out = tmp_path / "out"
    report = extract(folder, out)
    index = json.loads((out / "index.json").read_text())
    rows = list(csv.DictReader((out / "index.csv").read_text().splitlines()))
    assert index["format_version"] == 1
    assert len(index["recordings"]) == len(rows) == 7
    exits = [row["exit_layer"] for row in index["recordings"]]
    assert [len(row["predicted_loss"]) for row in index["recordings"]] == exits
    assert [int(row["exit_layer"]) for row in rows] == exits
    assert index["totals"]["mean_exit_layer"] == pytest.approx(sum(exits) / 7)
    assert index["totals"]["depth"] == pytest.approx(sum(exits) / 28)
    assert index["totals"]["audio_sec"] == pytest.approx(sum(r.duration_sec for r in report.rows), abs=1e-3)
    for row, exit_layer in zip(rows, exits, strict=True):
        losses = [row[f"predicted_loss_{layer}"] for layer in range(1, 5)]
        assert all(losses[:exit_layer])
        assert not any(losses[exit_layer:])
        if exit_layer < 4:
            assert float(losses[exit_layer - 1]) <= 1.9
        assert all(float(loss) > 1.9 for loss in losses[: exit_layer - 1])


class Stopped(Exception):
    pass


def test_a_stopped_run_goes_on_and_redoes_nothing(folder, tmp_path):
    out = tmp_path / "out"
    done = []

    def stop(count):
        done.append(count)
        if sum(done) >= 3:
            raise Stopped

    with pytest.raises(Stopped):
        extract(folder, out, batch_sec=0.5, progress=stop)
    finished = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    assert 0 < len(finished) < 7
    assert not (out / "index.json").exists()
    with open(out / "journal.jsonl", "a") as journal:
        journal.write('{"path": "cut off by a cra')
    report = extract(folder, out)
    assert report.num_resumed == len(finished)
    assert len(report.rows) == 7
    assert all(path.stat().st_mtime_ns == time for path, time in finished.items())
    first = next(iter(finished))
    first.unlink()  # a lost file is made again
    assert extract(folder, out).num_resumed == 6
    assert first.is_file()


def test_another_runs_folder_is_refused_unless_overwritten(folder, tmp_path):
    out = tmp_path / "out"
    extract(folder, out)
    other = policies.Fixed(layer=2)
    with pytest.raises(
        OutputError, match=r"holds a run with another dtype, policy, scores; use another folder, or pass overwrite=True"
    ):
        extract(folder, out, encoder(policy=other), dtype="float16")
    report = extract(folder, out, encoder(policy=other), dtype="float16", overwrite=True)
    assert {row.exit_layer for row in report.rows} == {2}
    assert load_file(out / "0.safetensors")["states"].dtype == torch.float16


def test_a_folder_in_which_nothing_was_finished_is_nobodys(tmp_path):
    (tmp_path / "in").mkdir()
    soundfile.write(tmp_path / "in" / "long.wav", numpy.ones(16000 * 4, "float32"), 16000)
    assert "lasts 4 s" in str(extract(tmp_path / "in", tmp_path / "out", max_sec=3.0).failed)
    assert len(extract(tmp_path / "in", tmp_path / "out", window_sec=1.2, context_sec=0.3).rows) == 1


def test_a_run_goes_on_in_its_own_precision(folder, tmp_path):
    model = tiny_model()
    used = EarlyExitEncoder(model.backbone, model.heads, policies.Fixed(layer=2), keep="last", dtype="bfloat16")
    extract(folder, tmp_path / "out", used)
    written = load_file(tmp_path / "out" / "0.safetensors")["states"]
    assert written.dtype == torch.float32
    assert torch.equal(written, written.bfloat16().float())
    assert extract(folder, tmp_path / "out", used).num_resumed == 7
    exact = EarlyExitEncoder(model.backbone, model.heads, policies.Fixed(layer=2), keep="last")
    with pytest.raises(OutputError, match="holds a run with another precision"):
        extract(folder, tmp_path / "out", exact)


def test_unreadable_files_do_not_stop_a_run(folder, tmp_path):
    (folder / "text.wav").write_text("no audio")
    soundfile.write(folder / "short.wav", numpy.ones(399, "float32"), 16000)
    soundfile.write(folder / "long.wav", numpy.ones(16000 * 4, "float32"), 16000)
    soundfile.write(folder / "silent.wav", numpy.zeros(16000, "float32"), 16000)
    report = extract(folder, tmp_path / "out", max_sec=3.0)
    assert len(report.rows) == 8
    assert {path: str(error) for path, error in report.failed.items()} == {
        str(folder / "text.wav"): "not readable as audio (Format not recognised)",
        str(folder / "short.wav"): "too short: 399 samples at 16000 Hz, one frame needs 400 (25 ms)",
        str(folder / "long.wav"): "lasts 4 s, more than 3 s; pass window_sec and another folder, or raise max_sec",
    }
    assert [row.output for row in report.rows if row.silent] == ["silent.safetensors"]


def test_two_recordings_never_share_a_file(folder, tmp_path, waveforms):
    soundfile.write(folder / "0.flac", waveforms[3].numpy(), 16000)
    with pytest.raises(UsageError, match=r"0\.flac and .*0\.wav would both be written to 0\.safetensors"):
        extract(folder, tmp_path / "out")
    (folder / "0.flac").unlink()
    extract(folder, tmp_path / "out")
    other = tmp_path / "0.wav"
    soundfile.write(other, waveforms[3].numpy(), 16000)
    with pytest.raises(UsageError, match="use another folder"):
        extract(other, tmp_path / "out")


def test_a_changed_recording_is_encoded_again(folder, tmp_path):
    out = tmp_path / "out"
    extract(folder, out)
    before = load_file(out / "0.safetensors")["states"]
    soundfile.write(folder / "0.wav", numpy.ones(1000, "float32") * 0.1, 16000)
    report = extract(folder, out)
    assert (report.num_resumed, report.num_changed, report.num_gone) == (6, 1, 0)
    assert load_file(out / "0.safetensors")["states"].shape != before.shape
    report = extract(folder, out)
    assert (report.num_resumed, report.num_changed, report.num_gone) == (7, 0, 0)


def test_results_stay_while_recordings_are_gone(folder, tmp_path):
    out, recordings = tmp_path / "out", audio.find([folder])
    extractor = Extractor(encoder(), out, checkpoint="0" * 64)
    extractor.run(recordings)
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.rglob("*.safetensors")}
    folder.rename(tmp_path / "away")
    (out / "0.safetensors").unlink()
    report = extractor.run(recordings)
    assert (len(report.rows), report.num_resumed, report.num_changed, report.num_gone) == (6, 6, 0, 6)
    assert {path: error.message for path, error in report.failed.items()} == {str(folder / "0.wav"): "no such file"}
    (tmp_path / "away").rename(folder)
    report = extractor.run(recordings)
    assert (len(report.rows), report.num_resumed, report.num_gone) == (7, 6, 0)
    del before[out / "0.safetensors"]
    assert all((path.read_bytes(), path.stat().st_mtime_ns) == content for path, content in before.items())


def test_failures_are_noted_together(folder, tmp_path, monkeypatch):
    for index in range(20):
        (folder / f"bad{index}.wav").write_text("no audio")
    out, flushed, sync = tmp_path / "out", [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: flushed.append(sync(descriptor)))
    assert len(extract(folder, out).failed) == 20
    num_flushed = len(flushed)
    assert num_flushed < 2 * 7 + 10
    for index in range(20):
        (folder / f"bad{index}.wav").unlink()
    assert not extract(folder, out).failed
    assert len(flushed) - num_flushed < 10
    assert json.loads((out / "index.json").read_text())["failed"] == []


def test_a_recording_that_changes_while_it_is_encoded_is_encoded_again(folder, tmp_path):
    class Slow(EarlyExitEncoder):
        def __call__(self, waveforms):
            soundfile.write(folder / "0.wav", numpy.ones(1000, "float32") * 0.1, 16000)
            return super().__call__(waveforms)

    model = tiny_model()
    extract(folder, tmp_path / "out", Slow(model.backbone, model.heads, POLICY, keep="last"))
    report = extract(folder, tmp_path / "out")
    assert report.num_resumed == 6
    assert len(report.rows) == 7


def test_what_memory_does_not_hold_together_is_encoded_apart(folder, tmp_path):
    class Small(EarlyExitEncoder):
        def __call__(self, waveforms):
            if sum(map(len, waveforms)) > limit:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().__call__(waveforms)

    lengths = {path.name: soundfile.info(path).frames for path in folder.rglob("*.wav")}
    limit = max(lengths.values()) - 1
    model = tiny_model()
    expected = extract(folder, tmp_path / "whole")
    report = extract(folder, tmp_path / "out", Small(model.backbone, model.heads, POLICY, keep="last"))
    ((label, error),) = report.failed.items()
    assert lengths[os.path.basename(label)] > limit
    assert error.message == "it does not fit into memory"
    exits = {row.path: row.exit_layer for row in expected.rows if row.path != label}
    assert {row.path: row.exit_layer for row in report.rows} == exits


def test_a_damaged_journal_is_refused_and_can_be_overwritten(folder, tmp_path):
    out = tmp_path / "out"
    extract(folder, out)
    (out / "journal.jsonl").write_text("{}\nno json\n")
    with pytest.raises(OutputError, match=r"journal\.jsonl: damaged .* use another folder, or pass overwrite=True"):
        extract(folder, out)
    assert len(extract(folder, out, overwrite=True).rows) == 7


def test_overwriting_leaves_nothing_of_the_run_before(folder, tmp_path):
    out = tmp_path / "out"
    extract(folder, out)
    extract(folder, out, format="npy", overwrite=True)
    assert not list(out.rglob("*.safetensors"))
    assert len(list(out.rglob("*.npy"))) == 7


def test_files_that_no_journal_notes_are_somebody_elses(folder, tmp_path):
    out = tmp_path / "out"
    (out / "sub").mkdir(parents=True)
    (out / "sub" / "1.npy").write_bytes(b"mine")
    for _ in range(2):  # being refused begins nothing
        with pytest.raises(OutputError, match=r"out: holds sub/1\.npy, which is no file of .*overwrite=True"):
            extract(folder, out, format="npy")
    assert [path.name for path in out.rglob("*") if path.is_file()] == ["1.npy"]
    for index in range(3):
        if Shard(index, 3).takes(Recording(path=folder / "sub" / "1.wav", name="sub/1.wav")):
            with pytest.raises(OutputError, match=r"holds sub/1\.npy, .*; use another folder$"):
                extract(folder, out, format="npy", shard=(index, 3))
        else:
            extract(folder, out, format="npy", shard=(index, 3))
    assert (out / "sub" / "1.npy").read_bytes() == b"mine"
    assert len(extract(folder, out, format="npy", overwrite=True).rows) == 7
    assert numpy.load(out / "sub" / "1.npy").shape[1] == 32
    (out / "0.npy").write_bytes(b"lost, and written over: it is the run's")
    lines = (out / "journal.jsonl").read_text().splitlines(keepends=True)
    (out / "journal.jsonl").write_text("".join(line for line in lines if "0.npy" not in line))
    assert extract(folder, out, format="npy").num_resumed == 6


def test_names_that_are_no_text(folder, tmp_path, waveforms):
    soundfile.write(os.fsencode(folder) + b"/caf\xe9.wav", waveforms[3].numpy(), 16000, format="WAV")
    report = extract(folder, tmp_path / "out")
    assert len(report.rows) == 8
    assert extract(folder, tmp_path / "out").num_resumed == 8
    assert b"caf\xe9.wav" in (tmp_path / "out" / "index.csv").read_bytes()


def test_nothing_readable_gives_an_index_of_nothing(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "x.wav").write_text("no audio")
    report = extract(tmp_path / "in", tmp_path / "out")
    assert (len(report.rows), len(report.failed)) == (0, 1)
    totals = json.loads((tmp_path / "out" / "index.json").read_text())["totals"]
    assert totals["mean_exit_layer"] is totals["depth"] is totals["real_time_factor"] is None


def test_states_written_are_the_exit_layers_whatever_the_encoder_keeps(folder, waveforms, tmp_path):
    everything = EarlyExitEncoder(tiny_model().backbone, None, policies.Fixed(layer=3))
    extract(folder / "4.wav", tmp_path / "all", everything)
    states = load_file(tmp_path / "all" / "4.safetensors")["states"]
    only = EarlyExitEncoder(tiny_model().backbone, None, policies.Fixed(layer=3), keep="last")
    extract(folder / "4.wav", tmp_path / "last", only)
    assert states.shape[0] == 4
    assert torch.equal(states[3], load_file(tmp_path / "last" / "4.safetensors")["states"])


def test_a_folder_of_before_there_were_windows_goes_on(folder, tmp_path):
    out = tmp_path / "out"
    extract(folder, out)
    header, *rows = (out / "journal.jsonl").read_text().splitlines()
    old = {k: v for k, v in json.loads(header).items() if k not in ("window_sec", "context_sec", "precision")}
    old_rows = [{k: v for k, v in json.loads(row).items() if k != "window_exits"} for row in rows]
    (out / "journal.jsonl").write_text("".join(json.dumps(line) + "\n" for line in (old, *old_rows)))
    assert extract(folder, out, context_sec=5.0).num_resumed == len(rows) == 7


def test_a_file_where_a_folder_must_be_is_one_line(folder, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "sub").write_text("in the way")
    with pytest.raises(OutputError, match="cannot be written"):
        extract(folder, out, window_sec=0.3, context_sec=0.1)
