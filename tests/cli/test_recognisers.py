"""Recognisers on the command line: calibrated, compared, cut, and transcribing into a folder."""

import csv
import importlib.util
import json
import os
import re
import signal
import threading
import time

import numpy
import pytest
import soundfile

import daisy
from daisy import audio
from daisy.calibration import cost
from daisy.calibration.traces import read_traces
from daisy.recognition import Recogniser, measure_error_rates
from tests.cli.running import run
from tests.conftest import tiny_model
from tests.recognition.conftest import tiny_recogniser

NUM_RECORDINGS = 10
CALIBRATE = ("calibrate", "speech", "-c", "hubert.safetensors", "-p", "entropy")
needs_jiwer = pytest.mark.skipif(importlib.util.find_spec("jiwer") is None, reason="needs jiwer")
LABELS = ("--reference", "text.csv")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recognisers")
    model = tiny_recogniser("hubert", units=True)
    for classifier in model.ctc.classifiers.values():
        classifier.bias.data.zero_()
        classifier.bias.data[:4] -= 3  # all exits write something
    daisy.save(model, folder / "hubert.safetensors")
    daisy.save(tiny_model(), folder / "mute.safetensors")
    (folder / "speech").mkdir()
    generator = numpy.random.default_rng(0)
    lines = ["path,text"]
    for index in range(NUM_RECORDINGS):
        loud = 0.02 * 1.6**index
        soundfile.write(folder / f"speech/{index}.wav", loud * generator.standard_normal(4000 + 700 * index), 16000)
        lines.append(f"speech/{index}.wav,{'abc de' if index % 2 else 'b'}")
    (folder / "text.csv").write_text("\n".join(lines) + "\n")
    (folder / "half.csv").write_text("path,text\nspeech/1.wav,a\n")
    return folder


def read_json(path):
    return json.loads(path.read_text())


@needs_jiwer
def test_a_calibrated_policy_transcribes(place):
    done = run(*CALIBRATE, "--depth", "0.8", *LABELS, "-o", "p.json", cwd=place)
    assert (done.returncode, done.stderr) == (0, "")
    written = read_json(place / "p.json")
    assert (written["heads"], "exits" in written) == ("ctc", False)
    (attained,) = written["attained"]["conditions"]
    out = run(
        "transcribe", "speech", "-c", "hubert.safetensors", "-p", "p.json", *LABELS, "--format", "json", cwd=place
    )
    assert out.returncode == 0, out.stderr
    said = json.loads(out.stdout)
    layers = [row["exit_layer"] for row in said["recordings"]]
    assert len(set(layers)) > 1
    assert attained["exit_layer"] == pytest.approx(sum(layers) / len(layers))
    assert attained["depth"] == pytest.approx(sum(layers) / len(layers) / 4)
    assert attained["word_errors"] == pytest.approx(said["error_rates"]["all"]["wer"])
    assert attained["character_errors"] == pytest.approx(said["error_rates"]["all"]["cer"])
    refused = run("extract", "speech", "-c", "hubert.safetensors", "-p", "p.json", "-o", "no", cwd=place)
    assert "p.json: was calibrated for the scores of ctc exits, not for those of units exits" in refused.stderr


def test_heads_on_units_decide_at_the_same_exits(place):
    done = run(*CALIBRATE, "--depth", "0.8", "--heads", "units", "-o", "u.json", cwd=place)
    assert done.returncode == 0, done.stderr
    assert "text_disagreement" in done.stdout
    assert read_json(place / "u.json")["exits"] == [2, 3, 4]
    how = ("transcribe", "speech", "-c", "hubert.safetensors", "-p", "u.json", "--format", "json")
    out = run(*how, "--heads", "units", cwd=place)
    layers = [row["exit_layer"] for row in json.loads(out.stdout)["recordings"]]
    assert read_json(place / "u.json")["attained"]["conditions"][0]["exit_layer"] == pytest.approx(sum(layers) / 10)
    assert len(set(layers)) > 1
    assert "not for those of ctc exits" in run(*how, cwd=place).stderr
    refused = run("extract", "speech", "-c", "hubert.safetensors", "-p", "u.json", "-o", "no", cwd=place)
    assert "was calibrated for exits at layers 2, 3, 4" in refused.stderr


def test_units_of_a_recogniser_are_compared_where_they_are_asked_for(place):
    done = run(*CALIBRATE, "--depth", "0.8", "--of", "disagreement", "-o", "x.json", cwd=place)
    assert done.returncode == 0, done.stderr
    assert "heads" not in read_json(place / "x.json")
    assert run("extract", "speech", "-c", "hubert.safetensors", "-p", "x.json", "-o", "x", cwd=place).returncode == 0


def test_full_runs_of_texts_are_none_of_units(place):
    kept = (*CALIBRATE, "--depth", "0.8", "--full-runs", "kept")
    assert run(*kept, "-o", "a.json", cwd=place).returncode == 0
    refused = run(*kept, "--of", "disagreement", "-o", "b.json", cwd=place)
    assert refused.returncode == 2
    assert "kept: holds full runs with other values of" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


@pytest.mark.parametrize("labels", [(), LABELS])
def test_a_guarantee_with_labels_or_without(place, labels):
    risk = ("--risk", "0.7", "--delta", "0.5", "-o", "r.json")
    done = run(*CALIBRATE, *risk, *labels, cwd=place)
    assert done.returncode == 0, done.stderr
    written = read_json(place / "r.json")
    assert written["target"]["risk_of"] == ("character_errors" if labels else "text_disagreement")
    certified = written["attained"]["certified"]["by_exit_layer"]
    assert {line["exit_layer"] for line in certified} <= {2, 3, 4}
    assert sum(line["num_runs"] for line in certified) == NUM_RECORDINGS - 3  # a third of the speakers learnt
    assert all(line["risk"] == 0 for line in certified if line["exit_layer"] == 4)
    if labels:
        return
    how = ("transcribe", "speech", "-c", "hubert.safetensors", "-p", "r.json")
    assert "guarantee" not in run(*how, cwd=place).stderr
    bounded = run(*how, "--deadline-macs", "1e8", "--window", "30", cwd=place)
    said = (
        "note: the guarantee of r.json is of whole recordings in float32: with --deadline-macs and --window 30 it does "
        "not hold\n"
    )
    assert said in bounded.stderr
    soundfile.write(place / "minute.wav", 0.1 * numpy.random.default_rng(2).standard_normal(61 * 16000), 16000)
    long = run("transcribe", "minute.wav", *how[2:], cwd=place)
    assert long.stderr.count("guarantee") == 1
    assert "with --window 60 it does not hold" in long.stderr


def test_a_guarantee_at_all_layers_is_none_at_some(place):
    risk = ("--risk", "0.9", "--delta", "0.5", "-p", "entropy")
    for of, name in (("disagreement", "all.json"), ("text_disagreement", "some.json")):
        how = () if of == "disagreement" else ("--heads", "units")
        assert run(*CALIBRATE, *risk, "--of", of, *how, "-o", name, cwd=place).returncode == 0
        done = run("transcribe", "speech", "-c", "hubert.safetensors", "--heads", "units", "-p", name, cwd=place)
        assert done.returncode == 0, done.stderr
        note = "note: the guarantee of all.json is of whole recordings in float32: with exits at fewer layers it does"
        assert (note in done.stderr) == (name == "all.json")


def test_depth_in_time_is_of_the_exits(place):
    done = run(*CALIBRATE, "--depth", "0.9", "--time", "--heads", "units", "-o", "t.json", cwd=place)
    assert done.returncode == 0, done.stderr
    assert "of the time" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("calibrate", "gone", "-c", "mute.safetensors", "-p", "text_patience"),
            "policy text_patience reads text_change, which these heads do not give",
        ),
        (
            ("calibrate", "gone", "-c", "hubert.safetensors", "-p", "regressed"),
            "policy regressed reads regressed, which these heads do not give",
        ),
        (
            ("noise-curve", "gone", "-c", "mute.safetensors", "--policies", "entropy,posterior"),
            "policy posterior reads posterior, which these heads do not give",
        ),
        ((*CALIBRATE, "--of", "word_errors"), "--of word_errors needs --reference, which tells what was said"),
        ((*CALIBRATE, "--of", "disagreement", *LABELS), "--reference needs a loss of texts, and --of disagreement is"),
        ((*CALIBRATE, "--of", "disagreement", "--heads", "ctc"), "--heads ctc needs a loss of texts"),
        ((*CALIBRATE, "--score-stride", "2"), "--score-stride is of heads on units"),
        (("calibrate", "speech", "-c", "mute.safetensors", *LABELS), "--reference needs a recogniser"),
        (("calibrate", "speech", "-c", "mute.safetensors", "--heads", "ctc"), "has no CTC exits"),
        (
            ("calibrate", "speech", "-c", "mute.safetensors", "--of", "word_errors"),
            "--of word_errors needs a recogniser",
        ),
        ((*CALIBRATE, "--reference", "half.csv"), "half.csv: does not tell what was said in"),
    ],
)
def test_what_does_not_go_together_is_refused(place, arguments, message):
    done = run(*arguments, "--depth", "0.8", "-o", "no.json", cwd=place)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (place / "no.json").exists()


@needs_jiwer
def test_errors_under_noise_are_those_of_the_set(place):
    call = ("noise-curve", "speech", "-c", "hubert.safetensors", "--noise", "white", "--snr", "clean,0", *LABELS)
    names = ("--depths", "0.8", "--policies", "entropy,text_patience,fixed")
    done = run(*call, *names, "-o", "curve", "--report", "curve/page.html", cwd=place)
    assert (done.returncode, done.stderr) == (0, "")
    layers = re.findall(r"<th>(\d+)</th>", (place / "curve" / "page.html").read_text())
    assert layers == ["2", "3", "4"]  # of those who left there
    study = read_json(place / "curve" / "study.json")
    assert set(study["policies"]) == {"entropy", "text_patience", "fixed"}
    (row,) = [r for r in study["rows"] if r["policy"] == "fixed" and r["condition"] == "clean"]
    judged = read_traces(place / "curve" / "traces.csv").halves(0)[1]
    paths = [path for path, condition in zip(judged.utterances, judged.conditions, strict=True) if condition == "clean"]
    with open(place / "text.csv", newline="") as stream:
        said = {line["path"]: line["text"].upper() for line in csv.DictReader(stream)}
    recogniser = Recogniser(daisy.load(place / "hubert.safetensors"), "fixed", layer=round(row["mean_exit_layer"]))
    texts = [transcript.text for transcript in recogniser([audio.read(path) for path in paths])]
    rates = measure_error_rates([said[f"speech/{path.rpartition('/')[2]}"] for path in paths], texts)
    assert row["word_errors"] == pytest.approx(rates.wer)
    assert row["character_errors"] == pytest.approx(rates.cer)
    how = ("-o", "again", "--loss", "word_errors", "--policies", "fixed")
    again = run("replay", "curve/traces.csv", *how, cwd=place)
    assert again.returncode == 0, again.stderr
    rows = read_json(place / "again" / "study.json")["rows"]
    (replayed,) = [r for r in rows if r["policy"] == "fixed" and r["condition"] == "clean"]
    assert replayed["word_errors"] == pytest.approx(row["word_errors"])


def test_a_model_is_cut(place):
    done = run("truncate", "hubert.safetensors", "cut.safetensors", "--exit", "3", "--overwrite", cwd=place)
    assert done.returncode == 0, done.stderr
    assert "layers 1 to 3 of 4" in done.stdout
    fixed = ("-p", "fixed", "--set", "layer=3", "--format", "csv")
    whole = run("transcribe", "speech", "-c", "hubert.safetensors", *fixed, cwd=place).stdout
    cut = run("transcribe", "speech", "-c", "cut.safetensors", "--format", "csv", cwd=place).stdout
    texts = [[line["text"] for line in csv.DictReader(table.splitlines())] for table in (whole, cut)]
    assert texts[0] == texts[1]
    assert any(texts[0])
    again = run("truncate", "hubert.safetensors", "cut.safetensors", "--exit", "3", cwd=place)
    assert (again.returncode, "exists; add --overwrite" in again.stderr) == (2, True)
    refused = run("truncate", "hubert.safetensors", "no.safetensors", "--exit", "1", cwd=place)
    assert "no exit at layer 1: exits are at 2, 3, 4" in refused.stderr


FIXED = ("-p", "fixed", "--set", "layer=3")
TRANSCRIBE = ("transcribe", "speech", "-c", "hubert.safetensors", "--batch-sec", "0.3")


def run_and_interrupt(*arguments, cwd, journal):
    """The command, and Ctrl-C when its journal has a line of settings and two of recordings."""

    def interrupt():
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if journal.is_file() and journal.read_bytes().count(b"\n") >= 3:
                return os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.001)

    watcher = threading.Thread(target=interrupt)
    watcher.start()
    try:
        return run(*arguments, cwd=cwd)
    finally:
        watcher.join()


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
    rows = read_json(place / "titles" / "transcripts.json")["recordings"]
    row = max(rows, key=lambda row: len(row["words"]))
    name = row["path"].rpartition("/")[2].removesuffix(".wav")
    title = (place / "titles" / f"{name}.srt").read_text()
    assert title.startswith("1\n00:00:00,")
    assert title.splitlines()[2] == row["text"]
    alone = run("transcribe", f"speech/{name}.wav", "-c", "hubert.safetensors", *FIXED, "--format", "srt", cwd=place)
    assert alone.stdout == title
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
