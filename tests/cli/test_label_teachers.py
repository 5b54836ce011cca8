"""daisy labels --teacher: HuBERTs in every form, transformers' encoders, folders of features."""

import copy
import functools
import json
import os
import shutil
import signal

import numpy
import pytest
import soundfile
import torch

import daisy
from daisy import audio
from daisy.models.lengths import HUBERT_CONV, count_frames
from tests.cli.running import run
from tests.cli.test_labels import label, listed, place, units  # noqa: F401  a fixture
from tests.conftest import tiny_model
from tests.extraction.test_teachers import wav2vec, whisper  # noqa: F401  fixtures


@pytest.fixture
def model(place):  # noqa: F811
    daisy.save(tiny_model(), place / "model.safetensors")
    return place / "model.safetensors"


def extract(place, model, out, *more):  # noqa: F811
    done = run("extract", place / "train.tsv", "-c", model, "-o", place / out, *more)
    assert done.returncode == 0, done.stderr
    return place / out


def notes(place, out="units"):  # noqa: F811
    return json.loads((place / out / "labels.json").read_text())


def label_again(place, *more, out):  # noqa: F811
    done = label(place, *more, out=out)
    assert done.returncode == 0, done.stderr
    return units(place, out)


def nearest(states, centres):
    return [str(unit) for unit in ((states[:, None] - centres[None]) ** 2).sum(-1).argmin(1)]


@pytest.fixture
def units_of_layer_2(place, model):  # noqa: F811
    """Units of layer 2, from the model itself."""
    assert label(place, "-t", model, "--layer", 2).returncode == 0
    return units(place)


def write_dumps(place, states, split="train", shards=2):  # noqa: F811
    """As fairseq's dump_feature does."""
    folder = place / "dumps"
    folder.mkdir(exist_ok=True)
    edges = [round(len(states) / shards * rank) for rank in range(shards + 1)]
    for rank in range(shards):
        part = states[edges[rank] : edges[rank + 1]]
        numpy.save(folder / f"{split}_{rank}_{shards}.npy", numpy.concatenate(part))
        (folder / f"{split}_{rank}_{shards}.len").write_text("".join(f"{len(one)}\n" for one in part))
    return folder


def test_units_of_features_are_those_of_the_model_that_they_are_of(place, model, units_of_layer_2):  # noqa: F811
    fixed = ("-p", "fixed", "--set", "layer=2")
    folder = extract(place, model, "npy", *fixed, "--format", "npy")
    assert label_again(place, "--teacher", folder, out="u1") == units_of_layer_2
    assert label_again(place, "--teacher", folder, "--layer", 2, "--feature-rate", 50, out="u2") == units_of_layer_2
    assert notes(place, "u1")["layer"] == 2
    everything = extract(place, model, "all", "-p", "never", "--layers", "all")
    assert label_again(place, "--teacher", everything, "--layer", 2, out="u3") == units_of_layer_2
    for name in ("index.json", "index.csv", "journal.jsonl"):
        (folder / name).unlink()
    assert label_again(place, "--teacher", folder, out="u4") == units_of_layer_2
    done = label(place, "--teacher", folder, "--layer", 9, out="u5")  # nobody can tell which layer they are of
    assert (units(place, "u5"), done.returncode) == (units_of_layer_2, 0)
    assert done.stderr == f"note: {folder}: the files hold one layer; layer 9 is only noted in labels.json\n"
    dumps = write_dumps(place, [numpy.load(folder / f"{index}.npy") for index in range(8)])
    assert label_again(place, "--teacher", dumps, out="u6") == units_of_layer_2
    assert {notes(place, f"u{index}")["label_rate"] for index in range(1, 7)} == {50}
    assert [notes(place, f"u{index}")["kind"] for index in (1, 3, 4, 6)] == [
        "extraction",
        "extraction",
        "features",
        "fairseq dumps",
    ]


def test_an_extraction_of_which_no_single_layer_can_be_taken_is_refused(place, model):  # noqa: F811
    everything = extract(place, model, "all", "-p", "fixed", "--set", "layer=3", "--layers", "all")
    done = label(place, "--teacher", everything)
    assert done.stderr == f"daisy: {everything}: holds the states of all layers; add --layer N\n"
    done = label(place, "--teacher", everything, "--layer", 4)
    assert done.returncode == 2
    assert done.stderr == f"daisy: {everything}: holds the states of layers 0 to 3, not 4\n"
    assert (
        "layers are counted from 0, the input of the first, found -1"
        in label(place, "-t", everything, "--layer", -1).stderr
    )
    fixed = extract(place, model, "fixed", "-p", "fixed", "--set", "layer=3")
    assert f"{fixed}: holds the states of layer 3, not 2" in label(place, "--teacher", fixed, "--layer", 2).stderr
    index = json.loads((fixed / "index.json").read_text())
    index["recordings"][5]["exit_layer"] = 2
    (fixed / "index.json").write_text(json.dumps(index))
    done = label(place, "--teacher", fixed, "--layer", 3)
    assert done.returncode == 2
    assert "holds each recording's states at its own exit layer, 2 to 3, and units are of one layer" in done.stderr
    (fixed / "index.json").unlink()
    assert "is an extraction without index.json: let it end" in label(place, "--teacher", fixed).stderr
    assert not (place / "units").exists()


def write_features(place, rate, width=6, names=range(8), seed=0):  # noqa: F811
    """A .npy file for each recording, as long as it is at a rate."""
    (place / "features").mkdir(exist_ok=True)
    generator = numpy.random.default_rng(seed)
    for index in names:
        states = generator.standard_normal((round((0.5 + 0.1 * index) * rate), width)).astype(numpy.float32)
        numpy.save(place / "features" / f"{index}.npy", states)
    return place / "features"


@pytest.mark.parametrize(("rate", "asked"), [(50, ()), (25, ()), (100, ()), (62.5, ("--feature-rate", "62.5"))])
def test_the_rate_of_features_is_told_or_fits_the_recordings(place, rate, asked):  # noqa: F811
    folder = write_features(place, rate)
    done = label(place, "--teacher", folder, *asked)
    assert done.returncode == 0, done.stderr
    assert notes(place)["label_rate"] == rate
    assert done.stderr == ("" if rate == 50 else f"note: tell fairseq task.label_rate={rate:g}\n")
    centres = numpy.load(place / "units" / "kmeans.npy")
    assert units(place) == [nearest(numpy.load(folder / f"{index}.npy"), centres) for index in range(8)]


def test_features_of_another_length_than_the_recording_are_refused(place):  # noqa: F811
    folder = write_features(place, 50)
    done = label(place, "--teacher", folder, "--feature-rate", 100)
    assert done.returncode == 2
    assert done.stderr == (
        f"daisy: {folder}: 0.wav: its features have 25 frames, and its 0.50 s at 100 a second make 50; "
        "add --feature-rate N, how many of them a second has\n"
    )
    for index, difference in ((2, 5), (3, -5), (4, 6), (5, -6)):  # 0.1 s and a hundredth are allowed
        count = round(50 * (0.5 + 0.1 * index)) + difference
        numpy.save(folder / f"{index}.npy", numpy.random.default_rng(index).standard_normal((count, 6)))
    numpy.save(folder / "6.npy", numpy.full((55, 6), numpy.nan))
    (folder / "7.npy").unlink()
    numpy.save(folder / "1.npy", numpy.zeros((30, 7)))
    done = label(place, "--teacher", folder)
    assert done.returncode == 1
    assert listed(place / "units" / "train.tsv") == ["0.wav", "2.wav", "3.wav"]
    failures = {line.split(": ")[1].rpartition("/")[2]: line for line in done.stderr.splitlines() if "failed:" in line}
    assert "4.wav: its features have 51 frames, and its 0.90 s at 50 a second make 45" in failures["4.wav"]
    assert "have 44 frames, and its 1.00 s" in failures["5.wav"]
    assert "its features are NaN or infinite" in failures["6.wav"]
    assert f"7.wav: has no features: {folder}/7.npy is not there" in failures["7.wav"]
    assert "its features are 7 wide, and others' 6: they are of another network" in failures["1.wav"]
    assert sorted(failures) == ["1.wav", "4.wav", "5.wav", "6.wav", "7.wav"]


def test_features_that_have_changed_are_refused_and_those_that_are_gone_are_not_missed(place):  # noqa: F811
    folder = write_features(place, 50)
    before = label_again(place, "--teacher", folder, out="units")
    write_features(place, 50, names=[3], seed=1)
    done = label(place, "--teacher", folder)
    assert done.returncode == 2
    assert (
        done.stderr
        == f"daisy: {place}/units: holds units made with other features of {place}/wav/3.wav; use another --out\n"
    )
    for index in range(1, 8):
        (folder / f"{index}.npy").unlink()
    assert label_again(place, "--teacher", folder, out="units") == before


def test_dumps_that_do_not_go_with_the_manifest_are_refused(place):  # noqa: F811
    states = [numpy.zeros((round(50 * (0.5 + 0.1 * index)), 6), numpy.float32) for index in range(8)]
    folder = write_dumps(place, states[:7])
    done = label(place, "--teacher", folder)
    assert f"{folder}: holds features of 7 recordings of train, and its manifest lists 8" in done.stderr
    write_dumps(place, states)
    (folder / "train_1_2.len").unlink()
    assert "train_1_2.npy: is missing, or the .len file beside it: shards 0 to 1" in label(place, "-t", folder).stderr
    write_dumps(place, states, split="valid")
    (folder / "train_0_2.len").unlink()
    assert "holds no dump of the manifest train, as train_0_1.npy" in label(place, "-t", folder).stderr
    write_dumps(place, states)
    write_dumps(place, states, shards=1)
    assert "holds dumps in 1 and in 2 shards of the manifest train" in label(place, "-t", folder).stderr


def test_huberts_of_every_form_give_the_same_units(place, model, units_of_layer_2):  # noqa: F811
    assert label_again(place, "--checkpoint", model, "--layer", 2, out="older") == units_of_layer_2
    both = label(place, "-c", model, "-t", model, "--layer", 2, out="x")
    assert both.stderr == "daisy: --checkpoint is an older name of --teacher: give one of them\n"
    pytest.importorskip("fairseq")
    from tests.checkpoints.converters.test_label_sets import make, save

    _, state = make(1)
    save(state, place / "fairseq.pt")
    refused = label(place, "-t", place / "fairseq.pt", "--layer", 2, out="x")
    assert refused.returncode == 2
    assert refused.stderr.endswith("only if you trust where it comes from; add --allow-pickle\n")
    converted = daisy.checkpoints.convert(place / "fairseq.pt", allow_pickle=True)
    daisy.save(converted, place / "converted.safetensors")
    expected = label_again(place, "-t", place / "converted.safetensors", "--layer", 2, out="converted")
    found = label_again(place, "-t", place / "fairseq.pt", "--layer", 2, "--allow-pickle", out="fairseq")
    assert found == expected
    assert notes(place, "fairseq")["kind"] == "checkpoint"


def test_encoders_of_transformers_give_the_units_of_their_states(place, whisper, wav2vec):  # noqa: F811
    transformers = pytest.importorskip("transformers")
    recordings = audio.read_manifest(place / "train.tsv")
    wav2vec.save_pretrained(place / "w2v")
    transformers.Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(place / "w2v")
    found = label_again(place, "-t", place / "w2v", "--layer", 2, out="units")
    assert notes(place)["kind"] == "transformers"
    centres = numpy.load(place / "units" / "kmeans.npy")
    for recording, line in zip(recordings, found, strict=True):
        waveform = audio.read(recording.path)
        values = (waveform - waveform.mean()) / (waveform.var(correction=0) + 1e-7).sqrt()
        with torch.no_grad():
            states = wav2vec(values[None], output_hidden_states=True).hidden_states[2][0]
        assert line == nearest(states.numpy(), centres)
    whisper.save_pretrained(place / "whisper")
    found = label_again(place, "-t", place / "whisper", "--layer", 2, out="w")
    assert [len(line) for line in found] == [count_frames(8000 + 1600 * index, HUBERT_CONV) for index in range(8)]
    for more, what in ((("--layer", 3), "layer"), (("--layer", 2, "--precision", "bfloat16"), "precision")):
        done = label(place, "-t", place / "whisper", *more, out="w")
        assert done.stderr == f"daisy: {place}/w: holds units made with another {what}; use another --out\n"
    whisper = copy.deepcopy(whisper)
    with torch.no_grad():
        whisper.encoder.conv1.bias[0] += 1e-3
    whisper.save_pretrained(place / "whisper")
    done = label(place, "-t", place / "whisper", "--layer", 2, out="w")
    assert done.stderr == f"daisy: {place}/w: holds units made with another teacher; use another --out\n"


@pytest.mark.usefixtures("interruptible")
def test_a_stopped_run_goes_on_with_the_same_windows(place, whisper, monkeypatch):  # noqa: F811
    """Also where neighbours matter: attention is on, and a loud neighbour sets the floor of a window's spectrum."""
    from daisy.extraction import teachers

    whisper = copy.deepcopy(whisper)
    with torch.no_grad():
        for layer in whisper.encoder.layers:
            layer.self_attn.out_proj.weight.normal_(std=0.03, generator=torch.Generator().manual_seed(0))
    whisper.save_pretrained(place / "whisper")
    lines = (place / "train.tsv").read_text().splitlines()
    generator = numpy.random.default_rng(5)
    loudness = numpy.sin(numpy.arange(192000) / 2000) ** 4
    for index in range(8, 16):  # of 12 s each: two go into a window
        soundfile.write(place / "wav" / f"{index}.wav", 0.2 * generator.standard_normal(192000) * loudness, 16000)
        lines += [f"{index}.wav\t192000"] * (1 + index % 2)  # a balanced manifest
    (place / "train.tsv").write_text("\n".join(lines) + "\n")
    heard = []
    hear = teachers.WhisperTeacher._hear

    def hear_and_stop(self, window, stop_after=99):
        if len(heard) == stop_after:
            os.kill(os.getpid(), signal.SIGINT)
        heard.append(1)
        return hear(self, window)

    monkeypatch.setattr(teachers.WhisperTeacher, "_hear", hear_and_stop)
    call = ("labels", place / "train.tsv", "-t", place / "whisper", "--layer", 2, "--clusters", 16, "-o")
    assert run(*call, place / "whole").returncode == 0
    whole = units(place, "whole")
    assert len({unit for line in whole for unit in line}) > 6
    (place / "units").mkdir()
    shutil.copy(place / "whole" / "kmeans.npy", place / "units")
    heard.clear()
    monkeypatch.setattr(teachers.WhisperTeacher, "_hear", functools.partialmethod(hear_and_stop, stop_after=3))
    done = run(*call, place / "units")
    assert (done.returncode, done.stdout) == (130, "")
    assert done.stderr == "stopped: what is finished is kept, and the same command goes on from there\n"
    assert (place / "units" / "train.km.part").read_bytes().count(b"\n") == 9 + 2 + 2
    heard.clear()
    monkeypatch.setattr(teachers.WhisperTeacher, "_hear", hear_and_stop)
    assert run(*call, place / "units").returncode == 0
    assert units(place) == whole
    assert len(heard) == 2  # the last three recordings, each once


def test_two_recordings_of_one_name_are_not_given_the_same_features(place):  # noqa: F811
    shutil.copytree(place / "wav", place / "other")
    lines = (place / "train.tsv").read_text().replace(str(place / "wav"), str(place / "other"))
    (place / "valid.tsv").write_text(lines)
    folder = write_features(place, 50)
    done = run("labels", place / "train.tsv", place / "valid.tsv", "-o", place / "units", "-t", folder)
    assert done.returncode == 2
    assert f"{folder}/0.npy: would be the features of both {place}/wav/0.wav and {place}/other/0.wav" in done.stderr
