"""daisy labels --teacher FOLDER: states that daisy extract wrote, and what their index says."""

import json
import shutil

import numpy
import pytest
import soundfile
from safetensors.torch import load_file, save_file

import daisy
from tests.cli.running import run
from tests.cli.test_stored_features import RATE, label, read_units, write_recordings
from tests.conftest import tiny_model


@pytest.fixture(scope="module")
def extracted(tmp_path_factory):
    """Twenty recordings of 0.5 s and their states at layer 2."""
    place = tmp_path_factory.mktemp("extracted")
    daisy.save(tiny_model(), place / "model.safetensors")
    root = write_recordings(place, "train", [8000] * 20)
    for index in range(20):
        waveform = 0.1 * numpy.random.default_rng(index).standard_normal(8000)
        soundfile.write(root / f"{index}.wav", waveform, RATE)
    extract = ("extract", place / "train.tsv", "-c", place / "model.safetensors")
    done = run(*extract, "-o", place / "states", "-p", "fixed", "--set", "layer=2")
    assert done.returncode == 0, done.stderr
    done = run(*extract, "-o", place / "all", "-p", "never", "--layers", "all")
    assert done.returncode == 0, done.stderr
    return place


@pytest.fixture
def place(extracted, tmp_path):
    """Another folder with the same recordings, their manifest, and states that were extracted elsewhere."""
    for name in ("train", "states", "all"):
        shutil.copytree(extracted / name, tmp_path / name)
    write_manifest(tmp_path, "train", tmp_path / "train", range(20))
    return tmp_path


def write_manifest(place, split, root, indices):
    lines = [str(root), *(f"{index}.wav\t8000" for index in indices)]
    (place / f"{split}.tsv").write_text("\n".join(lines) + "\n")


def change_index(folder, change):
    """Change what the index of an extraction says."""
    index = json.loads((folder / "index.json").read_text())
    change(index)
    (folder / "index.json").write_text(json.dumps(index))


def say_that_audio_was_at(folder, root):
    def change(index):
        for row in index["recordings"]:
            row["path"] = f"{root}/{row['path'].rpartition('/')[2]}"

    change_index(folder, change)


def test_a_recording_is_not_given_the_states_of_another_of_its_name(place):
    """As manifests of train and valid, each with a root of its own, have them."""
    say_that_audio_was_at(place / "states", place / "train")
    write_recordings(place, "valid", [8000] * 20)
    done = label(place, place / "states", splits=("train", "valid"))
    assert done.returncode == 1
    assert len(read_units(place)) == 20
    assert not (place / "units" / "valid.km").exists()
    reason = f"has no features: those in {place}/states/3.safetensors are of {place}/train/3.wav, which is another"
    assert f"failed: {place}/valid/3.wav: {reason} recording\n" in done.stderr
    for path in (place / "train").iterdir():  # also where the audio that was extracted is no longer there
        path.unlink()
    done = label(place, place / "states", splits=("train", "valid"), out="other")
    assert done.returncode == 2
    assert not (place / "other").exists()
    done = label(place, place / "states", splits=("valid",), out="third")
    assert done.returncode == 0  # which nobody can tell from audio that has moved
    note = f"20 recordings are looked for by name: {place}/states/index.json does not list {place}/valid/0.wav"
    assert done.stderr == f"note: {place}/states: {note}\n"


def test_states_of_audio_that_was_elsewhere_go_with_copies_of_it(extracted, place):
    """Of the files that are still there, and of some that are gone; not with two recordings of one name."""
    assert label(extracted, extracted / "states", out=place / "expected").returncode == 0
    assert label(place, place / "states").returncode == 0
    assert read_units(place) == read_units(place, out="expected")
    say_that_audio_was_at(place / "states", "/data/that/is/gone")
    assert label(place, place / "states", out="moved").returncode == 0
    assert read_units(place, out="moved") == read_units(place, out="expected")
    shutil.copytree(place / "train", place / "valid")
    write_manifest(place, "valid", place / "valid", range(20))
    done = label(place, place / "states", splits=("train", "valid"), out="both")
    assert done.returncode == 2
    assert f"would be the features of both {place}/train/0.wav and {place}/valid/0.wav" in done.stderr


def test_recordings_that_left_before_the_layer_are_told_of(place):
    say_that_audio_was_at(place / "all", place / "train")

    def change(index):
        for row in index["recordings"][:3]:
            row["exit_layer"] = 3
            states = load_file(place / "all" / row["output"])["states"]
            save_file({"states": states[:4]}, place / "all" / row["output"])

    change_index(place / "all", change)
    done = label(place, place / "all", "--layer", 4)
    assert done.returncode == 1
    assert f"note: {place}/all: 3 recordings left before layer 4, and have no states there\n" in done.stderr
    assert "0.wav: its features are of layers 0 to 3, not 4" in done.stderr
    assert len(read_units(place)) == 17


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda index: index["settings"].pop("checkpoint"), "KeyError('checkpoint')"),
        (lambda index: index["recordings"][3].pop("exit_layer"), "KeyError('exit_layer')"),
        (lambda index: index["recordings"][3].update(exit_layer="deep"), "invalid literal for int()"),
        (lambda index: index["recordings"][3].update(window_exits=5), "'int' object is not iterable"),
        (lambda index: index.update(settings="none"), "dictionary update sequence"),
    ],
)
def test_an_index_that_is_none_is_one_line(place, change, message):
    change_index(place / "states", change)
    done = label(place, place / "states")
    assert done.returncode == 2
    assert done.stderr.startswith(f"daisy: {place}/states/index.json: not the index of an extraction (")
    assert message in done.stderr
    assert done.stderr.endswith("): take it away if it is something else's\n")
    assert done.stderr.count("\n") == 1
