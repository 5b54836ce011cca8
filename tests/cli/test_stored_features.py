"""daisy labels --teacher FOLDER: features in other places or of other lengths than expected."""

import json
import shutil

import numpy
import pytest
import soundfile
import torch
from safetensors.torch import save_file

from daisy import audio
from daisy.audio import Recording
from daisy.errors import AudioError, UsageError
from daisy.extraction import make_labels, stored_features
from daisy.extraction.features import make_mfcc
from daisy.extraction.stored_features import choose_layer, read_array
from daisy.models.lengths import HUBERT_CONV, count_frames
from tests.cli.running import run

RATE = 16000


def write_recordings(place, split, lengths, root=None):
    """A manifest and silent recordings 0.wav, 1.wav, ... of so many samples below a root of its own."""
    root = place / (root or split)
    root.mkdir(parents=True, exist_ok=True)
    lines = [str(root)]
    for index, length in enumerate(lengths):
        soundfile.write(root / f"{index}.wav", numpy.zeros(length), RATE)
        lines.append(f"{index}.wav\t{length}")
    (place / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    return root


def write_features(folder, counts, seed=0, width=6):
    """0.npy, 1.npy, ... of so many frames."""
    folder.mkdir(exist_ok=True)
    generator = numpy.random.default_rng(seed)
    for index, count in enumerate(counts):
        numpy.save(folder / f"{index}.npy", generator.standard_normal((count, width)).astype(numpy.float32))
    return folder


def label(place, teacher, *more, splits=("train",), out="units"):
    manifests = [place / f"{split}.tsv" for split in splits]
    return run("labels", *manifests, "-o", place / out, "--clusters", 4, "--teacher", teacher, *more)


def read_units(place, split="train", out="units"):
    return [line.split() for line in (place / out / f"{split}.km").read_text().splitlines()]


@pytest.mark.parametrize("asked", [(), ("--feature-rate", "100")])
def test_mfcc_of_any_length_are_features_of_their_recordings(tmp_path, asked):
    """They have a frame wherever 400 samples are left: 2.5 fewer than 100 a second where N mod 160 is 1, say."""
    lengths = [8000 + 11 * index for index in range(15)] + [2000, 2100, 2600]
    root = write_recordings(tmp_path, "train", lengths)
    (tmp_path / "mfcc").mkdir()
    compute = make_mfcc(100)
    for index, length in enumerate(lengths):
        waveform = 0.1 * torch.randn(length, generator=torch.Generator().manual_seed(index))
        soundfile.write(root / f"{index}.wav", waveform.numpy(), RATE)
        frames = compute(audio.read(root / f"{index}.wav"))
        assert len(frames) == 1 + (length - 400) // 160
        numpy.save(tmp_path / "mfcc" / f"{index}.npy", frames.numpy())
    done = label(tmp_path, tmp_path / "mfcc", *asked)
    assert (done.returncode, done.stderr) == (0, "note: tell fairseq task.label_rate=100\n")
    assert [len(line) for line in read_units(tmp_path)] == [1 + (length - 400) // 160 for length in lengths]


def test_features_made_in_pieces_lose_a_frame_at_each_seam(tmp_path):
    """As fairseq's dump_hubert_feature.py makes them, 100 s at a time; 10 % fewer are of another recording."""
    lengths = [RATE * 600 + 37, RATE * 300, RATE * 250 + 319]
    write_recordings(tmp_path, "train", lengths)
    pieces = [[min(100 * RATE, length - start) for start in range(0, length, 100 * RATE)] for length in lengths]
    counts = [sum(count_frames(piece, HUBERT_CONV) for piece in of_one if piece >= 400) for of_one in pieces]
    assert RATE * 600 / 320 - counts[0] >= 6
    folder = write_features(tmp_path / "features", counts)
    assert label(tmp_path, folder).returncode == 0
    assert [len(line) for line in read_units(tmp_path)] == counts
    write_features(folder, [*counts[:2], round(0.9 * counts[2])])
    done = label(tmp_path, folder, out="other")
    assert done.returncode == 1
    assert "2.wav: its features have 11248 frames, and its 250.02 s at 50 a second make 12501" in done.stderr


@pytest.mark.parametrize(
    ("rate", "lost"), [(50, 0), (50, 1.25), (100, 2.5), (25, 1.125)], ids=["50", "HuBERT", "MFCC", "25"]
)
def test_the_rate_of_short_recordings_is_the_one_that_fits_best(tmp_path, rate, lost):
    """Of 0.125 s and more: 50 and 100 a second both are within the tolerance there."""
    lengths = [2000 + 160 * index for index in range(5)]
    write_recordings(tmp_path, "train", lengths)
    counts = [int(length / RATE * rate - lost) for length in lengths]
    folder = write_features(tmp_path / "features", counts)
    done = label(tmp_path, folder)
    assert done.returncode == 0, done.stderr
    assert f"at {rate} a second" in done.stdout


def test_what_is_labelled_can_be_trained_on(tmp_path):
    """One tolerance for `daisy labels` and for the training's check of label files."""
    pytest.importorskip("fairseq")
    from daisy.training.label_lengths import check_lengths

    for seconds in (0.5, 3.0, 300.0):
        root = write_recordings(tmp_path, "train", [int(RATE * seconds)])
        recording = Recording(path=root / "0.wav", name="0.wav")
        tolerance = 0.1 + 0.01 * seconds
        for rate in (25, 50, 100):
            for difference in (-tolerance - 0.041, -tolerance + 0.041, tolerance - 0.041, tolerance + 0.041):
                count = round(rate * (seconds + difference))
                misfit = stored_features.explain_misfit(recording, count, rate)
                lines, counts = numpy.arange(3), numpy.full(3, count)
                try:
                    check_lengths(tmp_path / "train.km", lines, counts, numpy.full(3, seconds * RATE), RATE, rate)
                    is_refused = False
                except UsageError:
                    is_refused = True
                assert (misfit is not None) == is_refused == (abs(difference) > tolerance), (seconds, rate, difference)


def test_which_layer_of_files_of_several_must_be_told_and_be_there(tmp_path):
    write_recordings(tmp_path, "train", [8000] * 20)
    folder = tmp_path / "features"
    folder.mkdir()
    for index in range(20):
        numpy.save(folder / f"{index}.npy", numpy.random.default_rng(index).standard_normal((3, 25, 6)))
    done = label(tmp_path, folder)
    assert done.stderr == (
        f"daisy: {folder}: the features of none of the 20 recordings can be used: {tmp_path}/train/0.wav: its file "
        "holds the features of 3 layers; add --layer N\n"
    )
    with pytest.raises(UsageError, match="its file holds the features of 3 layers; pass layer=N$"):
        make_labels([tmp_path / "train.tsv"], tmp_path / "units", teacher=folder)
    assert "0.wav: its features are of layers 0 to 2, not 3\n" in label(tmp_path, folder, "--layer", 3).stderr
    done = label(tmp_path, folder, "--layer", -1)
    assert done.stderr == "daisy: layers are counted from 0, the input of the first, found -1\n"
    numpy.save(folder / "other.npy", numpy.zeros((4, 6)))  # a file of no recording, such as k-means centres
    done = label(tmp_path, folder, "--layer", 1)
    assert (done.returncode, done.stderr) == (0, "")


def test_of_a_file_of_several_layers_one_is_read(tmp_path):
    states = numpy.random.default_rng(0).standard_normal((3, 25, 6)).astype(numpy.float16)
    numpy.save(tmp_path / "a.npy", states)
    save_file({"states": torch.from_numpy(states)}, tmp_path / "a.safetensors")
    recording = Recording(path=tmp_path / "a.wav", name="a.wav")
    assert isinstance(read_array(recording, tmp_path / "a.npy"), numpy.memmap)
    assert read_array(recording, tmp_path / "a.safetensors", 1).shape == (25, 6)
    assert read_array(recording, tmp_path / "a.safetensors", 3).shape == (3, 25, 6)
    for name in ("a.npy", "a.safetensors"):
        frames = choose_layer(recording, read_array(recording, tmp_path / name, 1), 1)
        numpy.testing.assert_array_equal(frames.numpy(), states[1].astype(numpy.float32))
        with pytest.raises(AudioError, match="its features are of layers 0 to 2, not 3"):
            choose_layer(recording, read_array(recording, tmp_path / name, 3), 3)


@pytest.mark.parametrize("name", ["0.npy", "5.npy"])
def test_an_archive_or_damaged_file_called_npy_is_one_failure(tmp_path, name):
    write_recordings(tmp_path, "train", [8000] * 8)
    folder = write_features(tmp_path / "features", [25] * 8)
    with open(folder / name, "wb") as stream:
        numpy.savez(stream, states=numpy.zeros((25, 6)))
    done = label(tmp_path, folder, "--layer", 9)
    assert done.returncode == 1
    assert (
        f"{name[0]}.wav: its features cannot be read: {folder}/{name} (the magic string is not correct" in done.stderr
    )
    (folder / name).write_bytes(b"PK\x03\x04 and no archive")
    assert label(tmp_path, folder, "--layer", 9, out="other").returncode == 1


def write_dumps(folder, split, counts, seed):
    """As fairseq's dump_feature does."""
    folder.mkdir(exist_ok=True)
    states = numpy.random.default_rng(seed).standard_normal((sum(counts), 6)).astype(numpy.float32)
    numpy.save(folder / f"{split}_0_1.npy", states)
    (folder / f"{split}_0_1.len").write_text("".join(f"{count}\n" for count in counts))


def test_units_of_two_manifests_with_the_same_names_can_be_made_again(tmp_path):
    """train/0.wav and valid/0.wav have features of their own; those of either may not change."""
    folder = tmp_path / "dumps"
    for seed, split in enumerate(("train", "valid")):
        write_recordings(tmp_path, split, [8000] * 20)
        write_dumps(folder, split, [25] * 20, seed)
    first = label(tmp_path, folder, splits=("train", "valid"))
    assert (first.returncode, first.stderr) == (0, "")
    again = label(tmp_path, folder, splits=("train", "valid"))
    assert (again.returncode, again.stderr) == (0, "")
    assert label(tmp_path, folder, splits=("train",)).returncode == 0
    write_dumps(folder, "valid", [25] * 20, 5)
    done = label(tmp_path, folder, splits=("train", "valid"))
    assert done.returncode == 2
    changed = f"{tmp_path}/units: holds units made with other features of {tmp_path}/valid/0.wav"
    assert done.stderr == f"daisy: {changed}; use another --out\n"


def test_features_of_another_network_are_refused_where_none_of_the_noted_ones_is_there(tmp_path):
    root = write_recordings(tmp_path, "train", [8000] * 20)
    write_recordings(tmp_path, "valid", [8000] * 4)
    (tmp_path / "valid.tsv").write_text(f"{root}\n" + "".join(f"v{index}.wav\t8000\n" for index in range(4)))
    for index in range(4):
        shutil.copy(root / f"{index}.wav", root / f"v{index}.wav")
    first = write_features(tmp_path / "A", [25] * 20)
    other = tmp_path / "B"
    other.mkdir()
    for index in range(4):
        numpy.save(other / f"v{index}.npy", numpy.full((25, 6), 100 + index, dtype=numpy.float32))
    assert label(tmp_path, first).returncode == 0
    done = label(tmp_path, other, splits=("train", "valid"))
    assert done.returncode == 2
    reason = f"holds units made with features that are gone, of {tmp_path}/train/0.wav and others, so that nobody can"
    assert done.stderr.startswith(f"daisy: {tmp_path}/units: {reason}")
    assert done.stderr.endswith("put some of those back; use another --out\n")
    assert sorted(path.name for path in (tmp_path / "units").glob("*.km*")) == [
        "dict.km.txt",
        "train.km",
        "train.km.keys",
    ]
    shutil.copy(first / "3.npy", other)  # one of the noted ones tells that the rest is of the same network
    assert label(tmp_path, other, splits=("train", "valid")).returncode == 0
    (other / "3.npy").unlink()
    assert label(tmp_path, other, splits=("train", "valid")).returncode == 0  # nothing is left to label
    noted = json.loads((tmp_path / "units" / "labels.json").read_text())["feature_digests"]
    assert {f"{root}/0.wav", f"{root}/v0.wav"} < noted.keys()  # of each manifest some
    numpy.save(other / "v1.npy", numpy.zeros((25, 6), dtype=numpy.float32))
    assert "made with other features of" in label(tmp_path, other, splits=("train", "valid")).stderr


def test_of_stored_features_nobody_says_at_which_rate_the_audio_is(tmp_path):
    """An 8 kHz checkpoint's come at 25 a second; whether a network on 8 kHz is wanted they do not tell."""
    write_recordings(tmp_path, "train", [16000] * 3)
    folder = write_features(tmp_path / "features", [25] * 3)
    report = make_labels([tmp_path / "train.tsv"], tmp_path / "units", teacher=folder, clusters=4)
    assert (report.label_rate, report.sample_rate) == (25, None)
    assert label(tmp_path, folder).stderr == "note: tell fairseq task.label_rate=25\n"
