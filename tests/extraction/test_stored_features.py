import json

import numpy
import pytest
import soundfile

import daisy
from daisy import audio
from daisy.errors import OutputError, UsageError
from daisy.extraction import make_labels
from daisy.extraction.features import make_mfcc
from daisy.extraction.stored_features import explain_misfit
from tests.cli.running import run
from tests.conftest import tiny_model

ODD_LENGTHS = [8000 + more for more in (1, 40, 79, 80, 120, 159)]


def write_speech(folder, lengths, seed):
    """Recordings 0.wav, 1.wav and so on, and a manifest beside their folder."""
    folder.mkdir()
    generator = numpy.random.default_rng(seed)
    for index, length in enumerate(lengths):
        soundfile.write(folder / f"{index}.wav", 0.1 * generator.standard_normal(length), 16000)
    lines = [str(folder), *(f"{index}.wav\t{length}" for index, length in enumerate(lengths))]
    manifest = folder.parent / f"{folder.name}.tsv"
    manifest.write_text("\n".join([*lines, ""]))
    return manifest


def write_dump(folder, split, lengths, seed):
    folder.mkdir(exist_ok=True)
    parts = [numpy.random.default_rng(seed).standard_normal((length // 320, 6)) for length in lengths]
    numpy.save(folder / f"{split}_0_1.npy", numpy.concatenate(parts).astype(numpy.float32))
    (folder / f"{split}_0_1.len").write_text("".join(f"{len(part)}\n" for part in parts))
    return folder


def test_mfcc_fit_recordings_of_any_length(tmp_path):
    """At 100 a second they are two frames and a half shorter than the recording, where that has a rest."""
    manifest = write_speech(tmp_path / "train", ODD_LENGTHS, seed=0)
    (tmp_path / "mfcc").mkdir()
    mfcc = make_mfcc(100)
    for index in range(len(ODD_LENGTHS)):
        frames = mfcc(audio.read(tmp_path / "train" / f"{index}.wav"))
        numpy.save(tmp_path / "mfcc" / f"{index}.npy", frames.numpy())
    make_labels([manifest], tmp_path / "units", teacher=tmp_path / "mfcc", clusters=5)
    assert json.loads((tmp_path / "units" / "labels.json").read_text())["label_rate"] == 100
    assert len((tmp_path / "units" / "train.km").read_text().splitlines()) == len(ODD_LENGTHS)


def test_features_made_of_pieces_lose_a_frame_at_each_seam(tmp_path):
    soundfile.write(tmp_path / "long.wav", numpy.zeros(250 * 8000), 8000)
    recording = audio.Recording(path=tmp_path / "long.wav", name="long.wav")
    assert explain_misfit(recording, 2 * 4999 + 2499, 50) is None
    assert "its 250.00 s at 50 a second make 12500" in explain_misfit(recording, 12000, 50)


def test_a_recording_that_was_not_extracted_has_not_its_namesakes_states(tmp_path):
    train, valid = (write_speech(tmp_path / name, [16000] * 3, seed) for seed, name in enumerate(("train", "valid")))
    daisy.save(tiny_model(), tmp_path / "model.safetensors")
    done = run(
        "extract", train, "-c", tmp_path / "model.safetensors", "-o", tmp_path / "states", "-p", "fixed", "--set",
        "layer=2",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    done = run("labels", train, valid, "-o", tmp_path / "units", "--teacher", tmp_path / "states", "--clusters", 4)
    assert done.returncode == 1
    assert done.stderr.count("index.json does not list it") == 3
    assert not (tmp_path / "units" / "valid.km").exists()
    (tmp_path / "train").rename(tmp_path / "moved")  # then they are known by their names
    (tmp_path / "train.tsv").write_text(train.read_text().replace(str(tmp_path / "train"), str(tmp_path / "moved")))
    make_labels([train], tmp_path / "again", teacher=tmp_path / "states", clusters=4)
    assert (tmp_path / "again" / "train.km").read_text() == (tmp_path / "units" / "train.km").read_text()


def test_manifests_with_recordings_of_the_same_names_can_be_labelled_again(tmp_path):
    manifests = [write_speech(tmp_path / name, [16000] * 3, seed) for seed, name in enumerate(("train", "valid"))]
    for seed, manifest in enumerate(manifests):
        write_dump(tmp_path / "dumps", manifest.stem, [16000] * 3, seed)
    for _ in range(2):
        make_labels(manifests, tmp_path / "units", teacher=tmp_path / "dumps", clusters=4)
    write_dump(tmp_path / "dumps", "train", [16000] * 3, seed=7)
    with pytest.raises(OutputError, match=r"other features of 0\.wav"):
        make_labels(manifests, tmp_path / "units", teacher=tmp_path / "dumps", clusters=4)


def test_features_that_cannot_be_compared_are_not_mixed_with_others(tmp_path):
    train, valid = (write_speech(tmp_path / name, [16000] * 3, seed) for seed, name in enumerate(("train", "valid")))
    mine, other = tmp_path / "mine", tmp_path / "other"
    for folder, seeds in ((mine, range(3)), (other, range(3, 6))):
        folder.mkdir()
        for index, seed in enumerate(seeds):
            states = numpy.random.default_rng(seed).standard_normal((50, 6)).astype(numpy.float32)
            numpy.save(folder / f"{'train' if folder is mine else 'valid'}{index}.npy", states)
    for manifest in (train, valid):  # of one root, so that their names differ
        lines = manifest.read_text().splitlines()
        for index in range(3):
            (tmp_path / manifest.stem / f"{index}.wav").rename(tmp_path / f"{manifest.stem}{index}.wav")
        manifest.write_text("\n".join([str(tmp_path), *(f"{manifest.stem}{line}" for line in lines[1:]), ""]))
    make_labels([train], tmp_path / "units", teacher=mine, clusters=4)
    with pytest.raises(OutputError, match="features that are not there now"):
        make_labels([train, valid], tmp_path / "units", teacher=other, clusters=4)


def test_an_index_that_is_no_extractions_is_refused(tmp_path):
    manifest = write_speech(tmp_path / "train", [16000] * 3, seed=0)
    for content in (
        {"settings": {}, "recordings": []},
        {"settings": {"checkpoint": "x"}, "recordings": [{"path": "a"}]},
    ):
        (tmp_path / "index.json").write_text(json.dumps(content))
        with pytest.raises(UsageError, match=r"index\.json: not the index of an extraction"):
            make_labels([manifest], tmp_path / "units", teacher=tmp_path, layer=2, clusters=4)
