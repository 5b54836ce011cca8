"""The command line as a user runs it: exit status, one-line error messages, no tracebacks."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import soundfile
import torch

import daisy
from tests.cli.running import run
from tests.conftest import tiny_model

EXTRACT = ("extract", "in", "-o", "o", "-c", "tiny.safetensors")


def test_the_installed_command(place):
    command = Path(sys.executable).with_name("daisy")
    done = subprocess.run([command, "extract", place / "gone.wav", "-o", place / "o"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(f"daisy: {place / 'gone.wav'}: no such file")
    assert len(done.stderr.splitlines()) == 1


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    model = tiny_model()
    model.policies = {"entropy": {"threshold": 1.9}}
    daisy.save(model, folder / "tiny.safetensors")
    model.heads, model.policies = None, {}
    daisy.save(model, folder / "bare.safetensors")
    (folder / "in").mkdir()
    generator = numpy.random.default_rng(0)
    for index in range(3):
        soundfile.write(folder / "in" / f"{index}.wav", 0.1 * generator.standard_normal(8000 * (index + 1)), 16000)
    return folder


def test_extract_prints_totals_and_resumes(place):
    arguments = ("extract", place / "in", "-c", place / "tiny.safetensors", "-p", "entropy", "-o", place / "out")
    done = run(*arguments)
    assert done.returncode == 0, done.stderr
    totals = json.loads((place / "out" / "index.json").read_text())["totals"]
    assert f"3 recordings, 3.0 s of audio: mean exit layer {totals['mean_exit_layer']:.2f} of 4" in done.stdout
    assert "3 of them were finished before" in run(*arguments).stdout


def test_recordings_that_change_or_go_are_told(place):
    manifest = place / "moving.tsv"
    shutil.copytree(place / "in", place / "moving")
    manifest.write_text(f"{place / 'moving'}\n" + "".join(f"{index}.wav\t{8000 * (index + 1)}\n" for index in range(3)))
    arguments = ("extract", manifest, "-c", place / "tiny.safetensors", "-p", "entropy", "-o", place / "moved")
    run(*arguments)
    os.utime(place / "moving" / "0.wav", (1, 1))
    (place / "moving" / "1.wav").unlink()
    done = run(*arguments)
    assert done.returncode == 0, done.stderr
    assert "2 of them were finished before" in done.stdout
    assert "note: done again, as their files have another size or time than before: 1 recordings" in done.stderr
    assert "note: kept, although their files are gone: the results of 1 recordings" in done.stderr


def test_shards_and_their_index(place):
    out = place / "shards"
    arguments = ("extract", place / "in", "-c", place / "tiny.safetensors", "-p", "never", "-o", out, "--shard")
    counts = []
    for shard in ("0/2", "1/2"):
        done = run(*arguments, shard)
        assert done.returncode == 0, done.stderr
        first = done.stdout.splitlines()[0]
        assert first.startswith(f"shard {shard[0]} of 2: ")
        assert first.endswith(" of 3 recordings")
        counts.append(int(first.split()[4]))
    assert sum(counts) == 3
    (out / "index.csv").unlink()
    done = run("index", out)
    assert (done.returncode, done.stdout) == (0, f"{out / 'index.json'} and index.csv: 3 recordings\n")
    assert len((out / "index.csv").read_text().splitlines()) == 4
    for wrong, message in (
        ("2/2", "shard 2 of 2: shards are numbered from 0 to 1"),
        ("1", "--shard takes I/N, such as 0/4 to 3/4, found '1'"),
        ("-1/2", "--shard takes I/N"),
    ):
        done = run(*arguments, wrong)
        assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
        assert message in done.stderr
    done = run("index", place / "in")
    assert done.returncode == 2
    assert "holds no extraction's journal" in done.stderr


def test_extract_lists_what_failed_and_exits_with_1(place):
    (place / "in" / "text.wav").write_text("no audio")
    done = run(
        "extract",
        place / "in",
        "-c",
        place / "tiny.safetensors",
        "-o",
        place / "out1",
        "-p",
        "fixed",
        "--set",
        "layer=2",
    )
    (place / "in" / "text.wav").unlink()
    assert done.returncode == 1
    assert "text.wav: not readable as audio (Format not recognised)" in done.stderr
    assert "1 of 4 recordings failed" in done.stderr
    assert "mean exit layer 2.00 of 4" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("extract", "nowhere", "-o", "o"), "daisy: nowhere: no such file, folder or manifest"),
        (("extract", "in", "-o", "o", "-c", "gone"), "daisy: gone: no such checkpoint"),
        (("extract", "in", "-o", "o", "-c", "in/0.wav"), "daisy: in/0.wav: not a whole .safetensors file"),
        ((*EXTRACT, "-p", "entropi"), "did you mean entropy?"),
        (
            (*EXTRACT, "-p", "plateau"),
            "and the checkpoint brings no default: it is learnt from audio; daisy calibrate makes one",
        ),
        ((*EXTRACT, "--set", "threshold"), "--set takes KEY=VALUE"),
        (
            (*EXTRACT, "-p", "entropy", "-o", "in/0.wav/x"),
            "cannot be written (Not a directory)",
        ),
        (("convert", "in/0.wav", "o.safetensors"), "daisy: in/0.wav: "),
        (("convert", "in/0.wav", "tiny.safetensors"), "tiny.safetensors: exists; add --overwrite"),
        (("labels", "in/0.wav", "-o", "o"), "not a fairseq manifest"),
        (("labels", "in", "-o", "o"), "is a folder; make a manifest of it: daisy manifest in"),
        (("labels", "gone.tsv", "-o", "o"), "gone.tsv: no such manifest"),
        (("info", "in"), "daisy: in: is a folder"),
        (("extract", "in", "-o", "o", "-c", "bare.safetensors"), "no exit heads, and policy forecast reads entropy"),
        (("convert", "tiny.safetensors", "o.safetensors"), "is a daisy checkpoint already"),
        ((*EXTRACT, "--device", "foo"), "daisy: --device foo: "),
        (
            (*EXTRACT, "-p", "entropy", "--batch-sec", "nan"),
            "must be above 0 s, found nan",
        ),
        ((*EXTRACT, "-p", "entropy", "--batch-sec", "inf"), "must be a number of seconds, found inf"),
        ((*EXTRACT, "--device", "meta"), "daisy: --device meta: cpu, cuda, cuda:1"),
        ((*EXTRACT, "-p", "fixed", "--set", "layer=9"), "at most 4"),
    ],
)
def test_refusals_are_one_line_and_exit_status_2(place, arguments, message):
    done = run(*arguments, cwd=place)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (place / "o").exists()


def test_nothing_done_is_exit_status_2(place, tmp_path):
    (tmp_path / "text.wav").write_text("no audio")
    done = run("extract", tmp_path, "-c", place / "tiny.safetensors", "-p", "entropy", "-o", tmp_path / "out")
    assert done.returncode == 2
    assert "1 of 1 recordings failed" in done.stderr


def test_colons_in_names_are_no_pictures(place, tmp_path):
    done = run("info", tmp_path / "a:x:b")
    assert "a:x:b" in "".join(done.stderr.split())


def test_brackets_in_names_are_printed_as_they_are(place, tmp_path):
    soundfile.write(tmp_path / "take[old].wav", numpy.ones(1000) * 0.1, 16000)
    done = run("extract", tmp_path, "-c", place / "tiny.safetensors", "-p", "entropy", "-o", tmp_path / "[/out]")
    assert done.returncode == 0, done.stderr
    assert "take[old]" in done.stdout


def test_convert_and_info(place):
    state = tiny_model().backbone.state_dict()
    del state["mask_embedding"]  # what torchaudio's models do not have
    torch.save(state, place / "plain.pth")
    done = run("convert", "plain.pth", "plain.safetensors", "--set", "num_heads=4", "--half", cwd=place)
    assert done.returncode == 0, done.stderr
    assert "4 layers of width 32, no exit heads" in done.stdout
    described = run("info", "plain.safetensors", cwd=place).stdout
    assert "4 of width 32, 4 heads" in described
    assert "none: policies fixed, never, random and deadline only" in described
    assert "plain.pth" in described
    assert f"daisy {daisy.__version__}, Python 3." in described
    assert f"torch {torch.__version__.split('+')[0]}" in described


def test_manifest_and_labels(place):
    done = run("manifest", "in", "-o", "train.tsv", "--root", "in", cwd=place)
    assert done.returncode == 0, done.stderr
    soundfile.write(place / "in" / "slow.wav", numpy.zeros(8000), 8000)
    done = run("manifest", "in", "-o", "other.tsv", "--root", "in/../in", cwd=place)
    (place / "slow").mkdir()
    (place / "in" / "slow.wav").rename(place / "slow" / "slow.wav")
    slow = run("manifest", "slow", "-o", "slow.tsv", "--root", "slow", "--sample-rate", "8000", cwd=place)
    assert slow.returncode == 0, slow.stderr
    assert (place / "slow.tsv").read_text().endswith("\nslow.wav\t8000\n")
    assert done.returncode == 1
    assert "slow.wav: 8000 Hz" in done.stderr
    assert (place / "other.tsv").read_text() == (place / "train.tsv").read_text()
    done = run("labels", "train.tsv", "-o", "km", "--clusters", "4", cwd=place)
    assert done.returncode == 0, done.stderr
    lines = (place / "km" / "train.km").read_text().splitlines()
    assert [len(line.split()) for line in lines] == [24, 49, 74]
    (place / "changed.tsv").write_text((place / "train.tsv").read_text().splitlines()[0] + "\n1.wav\t16000\n")
    (place / "changed.tsv").rename(place / "km" / "train.tsv")
    done = run("labels", "km/train.tsv", "-o", "km", "--clusters", "4", cwd=place)
    assert (done.returncode, (place / "km" / "train.km").read_text()) == (0, lines[1] + "\n")
    (place / "in" / "3.wav").write_bytes((place / "in" / "1.wav").read_bytes())
    (place / "km" / "train.tsv").write_text((place / "km" / "train.tsv").read_text().replace("1.wav", "3.wav"))
    done = run("labels", "km/train.tsv", "-o", "km", "--clusters", "4", cwd=place)
    (place / "in" / "3.wav").unlink()
    assert "km: holds units of other recordings: km/train.tsv lists none that k-means was fitted on" in done.stderr
    done = run(
        "labels", "train.tsv", "-o", "km2", "--clusters", "4", "-c", "tiny.safetensors", "--layer", "2", cwd=place
    )
    assert done.returncode == 0, done.stderr
    assert [len(line.split()) for line in (place / "km2" / "train.km").read_text().splitlines()] == [24, 49, 74]


def test_a_manifest_with_texts(place):
    (place / "texts.csv").write_text("path,text\n0.wav,go on\n1.wav,no\n2.wav,on no\n")
    arguments = ("manifest", "in/0.wav", "in/2.wav", "--root", "in", "--text", "texts.csv")
    done = run(*arguments, "-o", "data/train.tsv", cwd=place)
    assert done.returncode == 0, done.stderr
    assert (place / "data" / "train.ltr").read_text() == "g o | o n |\no n | n o |\n"
    dictionary = "o 4\n| 4\nn 3\ng 1\n"
    assert sorted((place / "data" / "dict.ltr.txt").read_text().splitlines()) == sorted(dictionary.splitlines())
    done = run("manifest", "in/1.wav", "--root", "in", "--text", "texts.csv", "-o", "data/valid.tsv", cwd=place)
    assert (place / "data" / "valid.ltr").read_text() == "n o |\n"
    assert sorted((place / "data" / "dict.ltr.txt").read_text().splitlines()) == sorted(dictionary.splitlines())
    for content, more, message in (
        (
            "path,text\n0.wav,GO\n2.wav,on\n",
            (),
            "lacks G O, which the texts have; texts must be of one alphabet and case; if it was made of another split",
        ),
        ("path,text\n0.wav,go\n", (), "texts.csv: does not tell what was said in 2.wav"),
        ("path,text\n0.wav,go\n2.wav,\n", (), "the text of recording 2 is empty"),
        ("path,said\n0.wav,go\n", (), "must have the columns path and text, found path, said"),
        ("path,text\n", ("--sentencepiece", "gone.model"), "texts.csv: has a text for none of the 2 recordings"),
    ):
        (place / "texts.csv").write_text(content)
        done = run(*arguments, "-o", "data/test.tsv", *more, cwd=place)
        assert done.returncode == 2
        assert message in done.stderr
        assert not (place / "data" / "test.ltr").exists()
        assert not (place / "data" / "test.tsv").exists()
    done = run("manifest", "in/1.wav", "--root", "in", "--labels", "chr", "-o", "data/test.tsv", cwd=place)
    assert "--sentencepiece and --labels are of transcripts: give --text too" in done.stderr


def test_user_dir_is_the_plugin():
    folder = Path(run("user-dir").stdout.strip())
    assert (folder / "criterion.py").is_file()
    assert (folder / "config" / "daisy_base.yaml").is_file()


def test_a_balanced_manifest(place):
    (place / "speakers.csv").write_text("path,speaker\n0.wav,a\n2.wav,b\n")
    arguments = ("manifest", "in/0.wav", "in/2.wav", "-o", "balanced.tsv", "--root", "in")
    done = run(*arguments, "--speakers", "speakers.csv", "--balance", "1", cwd=place)
    assert done.returncode == 0, done.stderr
    names = [line.split("\t")[0] for line in (place / "balanced.tsv").read_text().splitlines()[1:]]
    assert names == ["0.wav", "0.wav", "0.wav", "2.wav"]  # half a second and one and a half
    for more, message in (
        (("--balance", "1"), "--balance and --speakers go together"),
        (("--speakers", "gone.csv", "--balance", "1"), "gone.csv: No such file"),
    ):
        done = run(*arguments, *more, cwd=place)
        assert done.returncode == 2
        assert message in done.stderr
    (place / "speakers.csv").write_text("path,speaker\n0.wav,a\n")
    done = run(*arguments, "--speakers", "speakers.csv", "--balance", "1", cwd=place)
    assert "no speaker is given for 2.wav" in done.stderr


def test_info_of_the_bundled_model():
    done = run("info", "daisy-mini")
    assert done.returncode == 0, done.stderr
    assert "policy forecast" in done.stdout
    assert "features=entropy" in done.stdout


def test_a_budget_for_each_recording(place):
    def exits(*options):
        out = place / f"budget{len(options)}{options[-1] if options else ''}"
        done = run("extract", place / "in", "-c", place / "tiny.safetensors", "-p", "never", "-o", out, *options)
        assert done.returncode == 0, done.stderr
        return [row["exit_layer"] for row in json.loads((out / "index.json").read_text())["recordings"]]

    assert exits() == [4, 4, 4]
    by_operations = exits("--deadline-macs", "4e6")
    assert by_operations == sorted(by_operations, reverse=True)  # the recordings get longer
    assert by_operations[0] > by_operations[-1]
    assert exits("--deadline-ms", "1e6") == [4, 4, 4]
    done = run(
        "extract",
        place / "in",
        "-c",
        place / "tiny.safetensors",
        "-p",
        "never",
        "-o",
        place / "b",
        "--deadline-ms",
        "-1",
    )
    assert done.returncode == 2
    assert "budget must be above 0, found -1" in done.stderr


def test_a_fault_of_daisys_own_is_no_recording_left_out(place, monkeypatch):
    """Scripts such as pretrain.sh go on after exit status 1."""

    def fail(*arguments):
        raise ZeroDivisionError("as it happens")

    monkeypatch.setattr(daisy.audio, "search", fail)
    done = run("extract", place / "in", "-c", place / "tiny.safetensors", "-o", place / "faulty")
    assert done.returncode == 70
    assert "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1] == "ZeroDivisionError: as it happens"
