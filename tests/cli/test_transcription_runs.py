"""Recognisers that transcribe into a folder: stopped, in shards, in windows, within budgets, with subtitles."""

import json
import re

import numpy
import pytest
import soundfile

import daisy
from daisy.calibration import cost
from tests.cli.recogniser_folder import LABELS, NUM_RECORDINGS, make_recogniser_folder, needs_jiwer, read_json
from tests.cli.running import run, run_and_interrupt

FIXED = ("-p", "fixed", "--set", "layer=3")
TRANSCRIBE = ("transcribe", "speech", "-c", "hubert.safetensors", "--batch-sec", "0.3")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recognisers")
    make_recogniser_folder(folder)
    return folder


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("command", ["transcribe", "extract"])
def test_what_goes_on_after_ctrl_c_does_not_begin_again(place, command):
    journal = place / f"{command}-anew" / "journal.jsonl"
    call = (command, *TRANSCRIBE[1:], "-p", "never", "-o", journal.parent, "--overwrite")
    stopped = run_and_interrupt(*call, cwd=place, journal=journal)
    assert stopped.returncode == 130
    assert stopped.stderr == (
        "stopped: what is finished is kept, and the same command without --overwrite goes on from there\n"
    )
    done = run(*call[:-1], cwd=place)
    assert re.search(r"[2-9] of them were finished before", done.stdout), done.stderr


@needs_jiwer
@pytest.mark.usefixtures("interruptible")
def test_transcribing_goes_on_after_ctrl_c(place):
    assert run(*TRANSCRIBE, *LABELS, "-o", "whole", cwd=place).returncode == 0
    journal = place / "stopped" / "journal.jsonl"
    stopped = run_and_interrupt(*TRANSCRIBE, "-o", "stopped", cwd=place, journal=journal)
    assert stopped.returncode == 130
    assert stopped.stderr == "stopped: what is finished is kept, and the same command goes on from there\n"
    num_kept = journal.read_bytes().count(b"\n") - 1
    assert 2 <= num_kept < NUM_RECORDINGS
    other = run(*TRANSCRIBE, "-p", "fixed", "--set", "layer=3", "-o", "stopped", cwd=place)
    assert "holds a run with another policy; use another --out, or --overwrite" in other.stderr
    done = run(*TRANSCRIBE, *LABELS, "-o", "stopped", cwd=place)
    assert f"{num_kept} of them were finished before" in done.stdout
    whole, resumed = (read_json(place / name / "transcripts.json") for name in ("whole", "stopped"))
    assert resumed["error_rates"] == whole["error_rates"]
    for row, other in zip(resumed["recordings"], whole["recordings"], strict=True):
        assert {**row, "seconds": 0} == {**other, "seconds": 0}


def test_shards_share_a_folder(place):
    counts = []
    for index in (1, 0):
        done = run(*TRANSCRIBE, "-o", "shared", "--shard", f"{index}/2", cwd=place)
        assert done.returncode == 0, done.stderr
        counts.append(int(done.stdout.partition(f"shard {index} of 2: ")[2].split()[0]))
    assert sum(counts) == NUM_RECORDINGS
    assert min(counts) > 0
    whole = run(*TRANSCRIBE, "--format", "json", cwd=place)
    texts = [
        [row["text"] for row in said["recordings"]]
        for said in (read_json(place / "shared" / "transcripts.json"), json.loads(whole.stdout))
    ]
    assert texts[0] == texts[1]
    before = (place / "shared" / "transcripts.csv").read_bytes()
    (place / "shared" / "transcripts.csv").unlink()
    assert "transcripts.csv: 10 recordings" in run("index", "shared", cwd=place).stdout
    assert (place / "shared" / "transcripts.csv").read_bytes() == before
    assert "give --out too" in run(*TRANSCRIBE, "--shard", "0/2", cwd=place).stderr


@needs_jiwer
def test_subtitles_and_rates(place):
    done = run(*TRANSCRIBE, *FIXED, "--format", "srt", "--reference", "half.csv", "-o", "titles", cwd=place)
    assert done.returncode == 0
    assert "half.csv has no text for 9 of 10 recordings: rates are of the others" in done.stderr
    assert "all: WER " in done.stdout
    assert len(list((place / "titles").glob("*.srt"))) == NUM_RECORDINGS
    (place / "taken").mkdir()
    (place / "taken" / "0.srt").write_text("mine")
    refused = run(*TRANSCRIBE, *FIXED, "--format", "srt", "-o", "taken", cwd=place)
    assert (refused.returncode, "taken: holds 0.srt, which is no file of this run" in refused.stderr) == (2, True)
    assert [path.name for path in (place / "taken").iterdir()] == ["0.srt"]
    rows = read_json(place / "titles" / "transcripts.json")["recordings"]
    row = max(rows, key=lambda row: len(row["words"]))
    name = row["path"].rpartition("/")[2].removesuffix(".wav")
    title = (place / "titles" / f"{name}.srt").read_text()
    assert title.startswith("1\n00:00:00,")
    assert title.splitlines()[2] == row["text"]
    alone = run("transcribe", f"speech/{name}.wav", "-c", "hubert.safetensors", *FIXED, "--format", "srt", cwd=place)
    assert alone.stdout == title
    before = {path: path.stat().st_mtime_ns for path in (place / "titles").glob("*.srt")}
    gone, stale = sorted(before)[:2]
    gone.unlink()
    stale.write_text("of another text")
    assert run(*TRANSCRIBE, *FIXED, "--format", "srt", "-o", "titles", cwd=place).returncode == 0
    after = {path: path.stat().st_mtime_ns for path in before}
    assert {path for path in before if before[path] != after[path]} == {gone, stale}  # the others are not written again
    assert stale.read_text() != "of another text"
    refused = run(*TRANSCRIBE, "--format", "srt", "--deadline-ms", "-1", cwd=place)
    assert "subtitles of 10 recordings" in refused.stderr  # before anything runs
    refused = run("extract", "speech", "-c", "hubert.safetensors", "-p", "never", "-o", "titles", cwd=place)
    assert "titles: holds a run with another" in refused.stderr
    (place / "titles" / "mine.srt").write_text("")
    assert run("index", "titles", cwd=place).returncode == 0
    begun = run(*TRANSCRIBE, "-p", "fixed", "--set", "layer=2", "-o", "titles", "--overwrite", cwd=place)
    assert begun.returncode == 0, begun.stderr
    assert [path.name for path in (place / "titles").glob("*.srt")] == ["mine.srt"]  # the others were of the first run
    extract = (
        "extract",
        f"speech/{name}.wav",
        "-c",
        "hubert.safetensors",
        "-p",
        "never",
        "-o",
        "titles",
        "--overwrite",
    )
    assert run(*extract, cwd=place).returncode == 0
    assert (place / "titles" / "index.json").is_file()
    assert not (place / "titles" / "transcripts.json").exists()  # it would be of another run
    begun = run(*TRANSCRIBE, "-o", "titles", "--overwrite", cwd=place)
    assert begun.returncode == 0, begun.stderr
    assert not (place / "titles" / "index.csv").exists()


def test_long_recordings_run_in_windows_and_budgets_hold(place):
    soundfile.write(place / "long.wav", 0.1 * numpy.random.default_rng(1).standard_normal(60_000), 16000)
    call = ("transcribe", "long.wav", "-c", "hubert.safetensors")
    model = daisy.load(place / "hubert.safetensors")
    front = cost.count_front_end_macs(model.backbone.config)
    layer = cost.count_layer_macs(
        model.backbone.config, model.ctc.config
    )  # the checkpoint's own policy reads its exits
    budget = 50 * (front[1] + 3.5 * (layer[1] + 50 * layer[2]))  # of a window's frames: three layers and a half
    done = run(*call, "--window", "1", "--context", "0.2", "--deadline-macs", budget, "--format", "json", cwd=place)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)["recordings"]
    assert len(row["window_exits"]) == 6
    assert row["window_exits"] == [4, *[3] * 5]  # the first is shorter: before it there is no context
    assert json.loads(done.stdout)["settings"]["policy"]["layers"] == [2, 3, 4]
    (whole,) = json.loads(run(*call, "--window", "0", "--format", "json", cwd=place).stdout)["recordings"]
    assert whole["window_exits"] == []
    assert whole["exit_layer"] == 4
    refused = run(*call, "--window", "1", "--context", "0.5", cwd=place)
    assert "keeps nothing" in refused.stderr


@pytest.mark.parametrize(("command", "model"), [("transcribe", "hubert.safetensors"), ("extract", "mute.safetensors")])
def test_a_run_with_a_budget_of_time_goes_on(place, command, model):
    call = (command, "speech", "-c", model, "-p", "fixed", "--set", "layer=3", "-o", f"timed_{command}")
    begun = run(*call, "--deadline-ms", "1e6", cwd=place)
    assert begun.returncode == 0, begun.stderr
    again = run(*call, "--deadline-ms", "1e6", cwd=place)
    assert again.returncode == 0, again.stderr
    assert f"{NUM_RECORDINGS} of them were finished before" in again.stdout
    for other in (("--deadline-ms", "2e6"), ("--deadline-macs", "1e6"), ()):
        assert "holds a run with another policy" in run(*call, *other, cwd=place).stderr
