"""daisy labels --teacher FOLDER: features that do not lie, or are not as long, as one would think."""

import numpy
import pytest
import soundfile
import torch

from daisy import audio
from daisy.audio import Recording
from daisy.extraction import stored_features
from daisy.extraction.features import make_mfcc
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
    from daisy.errors import UsageError
    from fairseq_plugins.label_files import check_lengths

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
