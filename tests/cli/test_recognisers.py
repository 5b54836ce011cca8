"""Recognisers on the command line: calibration, comparison and truncation."""

import csv
import json
import re

import numpy
import pytest
import soundfile

import daisy
from daisy import audio
from daisy.calibration.traces import read_traces
from daisy.recognition import Recogniser, measure_error_rates
from tests.cli.recogniser_folder import LABELS, NUM_RECORDINGS, make_recogniser_folder, needs_jiwer, read_json
from tests.cli.running import run

CALIBRATE = ("calibrate", "speech", "-c", "hubert.safetensors", "-p", "entropy")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recognisers")
    make_recogniser_folder(folder)
    return folder


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
    searched = run(*how, "--beam", "2", cwd=place)
    assert "note: the guarantee of r.json is of whole recordings in float32: with --beam 2 it does" in searched.stderr
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
