"""Files that commands take from folders, their messages about the others, and how they read stereo."""

import csv
import json
import sys

import numpy
import pytest
import soundfile

import daisy
from tests.cli.running import run
from tests.conftest import tiny_model

RATE = 16000


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A corpus with a linked part, stereo, and a FLAC of unknown length; PyAV is absent."""
    monkeypatch.setitem(sys.modules, "av", None)
    daisy.save(tiny_model(), tmp_path / "tiny.safetensors")
    generator = numpy.random.default_rng(0)
    for name in ("corpus/a.wav", "disk/b.wav"):
        (tmp_path / name).parent.mkdir()
        soundfile.write(tmp_path / name, 0.1 * generator.standard_normal(9000), RATE)
    (tmp_path / "corpus/linked").symlink_to(tmp_path / "disk")
    soundfile.write(tmp_path / "corpus/stereo.wav", 0.1 * generator.standard_normal((8000, 2)), RATE)
    soundfile.write(tmp_path / "corpus/unknown.flac", 0.1 * generator.standard_normal(12345), RATE)
    content = bytearray((tmp_path / "corpus/unknown.flac").read_bytes())
    content[21] &= 0xF0
    content[22:26] = bytes(4)
    (tmp_path / "corpus/unknown.flac").write_bytes(content)
    for name in ("x.m4a", "y.M4A", "z.webm", "notes.txt", "._a.wav"):
        (tmp_path / "corpus" / name).write_bytes(b"0000")
    return tmp_path


SKIPPED = "3 files skipped: .m4a (2), .webm (1); to read .m4a, .webm: pip install 'daisy-speech[ffmpeg]'\n"
MODEL = ("-c", "tiny.safetensors")


def read_rows(path):
    with open(path, newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


@pytest.mark.parametrize(
    "options", [(), ("--max-sec", "1e18"), ("--window", "0.3", "--context", "0.1")], ids=["plain", "max", "window"]
)
def test_extract_takes_linked_folders_and_unknown_lengths_and_says_what_it_skipped(place, options):
    done = run("extract", "corpus", "-o", "out", "-p", "fixed", "--set", "layer=1", *MODEL, *options, cwd=place)
    assert (done.returncode, done.stderr) == (0, SKIPPED)
    seconds = {row["output"]: float(row["duration_sec"]) for row in read_rows(place / "out/index.csv")}
    assert seconds == {
        "a.safetensors": 0.5625,
        "linked/b.safetensors": 0.5625,
        "stereo.safetensors": 0.5,
        "unknown.safetensors": 0.7716,  # 12345 samples
    }


def test_extract_hears_the_channels_that_it_is_told(place):
    extract = ("extract", "corpus", "-p", "fixed", "--set", "layer=1", *MODEL)
    done = run(*extract, "-o", "all", "--channel", "all", cwd=place)
    assert done.returncode == 0, done.stderr
    assert [row["output"] for row in read_rows(place / "all/index.csv") if "stereo" in row["path"]] == [
        "stereo.0.safetensors",
        "stereo.1.safetensors",
    ]
    done = run(*extract, "-o", "right", "--channel", "1", cwd=place)
    assert done.returncode == 1
    assert (
        f"failed: {place}/corpus/a.wav (channel 1): has no channel 1, counted from 0: it has 1 channel" in done.stderr
    )
    assert done.stderr.endswith("3 of 4 recordings failed\n")
    done = run(*extract, "-o", "all", "--channel", "1", cwd=place)
    assert done.returncode == 2
    assert "holds a run with another channel; use another --out, or --overwrite" in done.stderr
    done = run(*extract, "-o", "left", "--channel", "left", cwd=place)
    assert done.returncode == 2
    assert "--channel takes mean, all, or the number of a channel, 0 for the first, found 'left'" in done.stderr


def test_manifests_list_what_fairseq_can_use(place):
    soundfile.write(place / "corpus" / "tab\tin.wav", numpy.zeros(8000), RATE)
    done = run("manifest", "corpus", "--root", "corpus", "-o", "train.tsv", cwd=place)
    assert done.returncode == 1
    assert done.stderr.startswith(SKIPPED)
    assert "tab\tin.wav: a tab in the name: fairseq cannot read it from a manifest; rename it" in done.stderr
    assert "unknown.flac: its header does not tell its length, which fairseq goes by: write it anew" in done.stderr
    assert (place / "train.tsv").read_text() == f"{place}/corpus\na.wav\t9000\nlinked/b.wav\t9000\nstereo.wav\t8000\n"


def test_calibration_and_noise_curves_hear_channels_too(place):
    for channel, count in (("mean", 4), ("all", 5)):
        done = run("calibrate", "corpus", "--depth", "0.6", "--channel", channel, "-o", "p.json", *MODEL, cwd=place)
        assert done.returncode == 0, done.stderr
        assert SKIPPED in done.stderr
        assert json.loads((place / "p.json").read_text())["data"]["num_recordings"] == count
    arguments = ("noise-curve", "corpus", "-o", "curve", "--channel", "all", "--policies", "fixed", *MODEL)
    done = run(*arguments, "--noise", "white", "--snr", "clean,10", cwd=place)
    assert done.returncode == 0, done.stderr
    assert SKIPPED in done.stderr
    utterances = {row["utterance"] for row in read_rows(place / "curve/traces.csv")}
    assert {name.rpartition("/")[2] for name in utterances} == {
        "a.wav (channel 0)",
        "b.wav (channel 0)",
        "stereo.wav (channel 0)",
        "stereo.wav (channel 1)",
        "unknown.flac (channel 0)",
    }


def test_labels_of_a_flac_of_unknown_length(place):
    (place / "train.tsv").write_text("corpus\nunknown.flac\t12345\na.wav\t9000\n")
    done = run("labels", "train.tsv", "-o", "units", "--clusters", "4", cwd=place)
    assert done.returncode == 0, done.stderr
    lines = (place / "units/train.km").read_text().splitlines()
    assert [len(line.split()) for line in lines] == [38, 27]  # 25 ms windows, one every 20 ms


def test_a_manifest_of_nothing_is_not_written(place):
    """The one of an earlier call stays."""
    command = ("manifest", "corpus/a.wav", "--root", "corpus", "-o", "a.tsv")
    assert run(*command, cwd=place).returncode == 0
    before = (place / "a.tsv").read_bytes()
    done = run(*command, "--sample-rate", "8000", cwd=place)
    assert done.returncode == 2
    assert "a.tsv: not written: no recording is left" in done.stderr
    assert "16000 Hz, and fairseq takes 8000 Hz only: resample it" in done.stderr
    assert (place / "a.tsv").read_bytes() == before
    assert run(*command, "--sample-rate", "0", cwd=place).returncode == 2


def test_what_fairseq_does_not_read_is_said_to_be_that(place, monkeypatch):
    monkeypatch.delitem(sys.modules, "av")
    av = pytest.importorskip("av")
    path = place / "corpus" / "speech.m4a"
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=RATE, layout="mono")
        samples = (1000 * numpy.random.default_rng(0).standard_normal((1, RATE))).astype(numpy.int16)
        frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
        frame.sample_rate = RATE
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    done = run("manifest", "corpus/speech.m4a", "corpus/a.wav", "--root", "corpus", "-o", "m.tsv", cwd=place)
    assert done.returncode == 1
    assert "speech.m4a: fairseq does not read .m4a files: convert it to FLAC" in done.stderr
