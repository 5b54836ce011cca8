"""Recordings in zip archives, located by the offsets in fairseq's manifests; tables that are not manifests."""

import io
import os
import zipfile
from pathlib import Path

import numpy
import pytest
import soundfile
import torch

import daisy
from daisy import AudioError, audio
from daisy.audio.archives import Member, find_member, name_as_file, open_bytes
from daisy.errors import UsageError
from daisy.extraction import Extractor
from tests.cli.running import run
from tests.conftest import tiny_model

LENGTHS = {"a.flac": 16000, "b.wav": 12000, "c.ogg": 20000}


def encode(samples, name, rate=16000):
    content = io.BytesIO()
    soundfile.write(content, samples, rate, format=name.rpartition(".")[2].upper())
    return content.getvalue()


@pytest.fixture
def archive(tmp_path):
    """A zip of stored files, and a manifest as fairseq's examples/speech_to_text/data_utils.py makes its lines."""
    generator = numpy.random.default_rng(0)
    path = tmp_path / "clips.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as stream:
        for name, length in LENGTHS.items():
            stream.writestr(name, encode(0.1 * generator.standard_normal(length), name))
    lines = [str(tmp_path)]
    with zipfile.ZipFile(path) as stream:
        for info in stream.infolist():
            offset = info.header_offset + 30 + len(info.filename)
            lines.append(f"clips.zip:{offset}:{info.file_size}\t{LENGTHS[info.filename]}")
    (tmp_path / "train.tsv").write_text("\n".join(lines) + "\n")
    return path


def test_members_are_read_as_their_files_are(archive, tmp_path):
    recordings = audio.read_manifest(archive.with_name("train.tsv"))
    with zipfile.ZipFile(archive) as stream:
        stream.extractall(tmp_path / "out")
    for recording, (name, length) in zip(recordings, LENGTHS.items(), strict=True):
        expected = audio.read(tmp_path / "out" / name)
        assert torch.equal(audio.read(recording.path), expected)
        assert audio.num_samples(recording.path) == length
        part = audio.AudioFile(recording.path)
        assert torch.equal(part.read(500, 3000), expected[500:3000])
        assert torch.equal(audio.AudioFile(recording.path, 8000).read(0, 1000), audio.read(recording.path, 8000)[:1000])
        assert audio.format_manifest_line(recording, tmp_path) == f"{recording.name}\t{length}"
        assert audio.find([recording.path])[0].path == recording.path


def test_of_a_member_only_what_is_asked_for_is_read(tmp_path, monkeypatch):
    samples = 0.1 * numpy.random.default_rng(0).standard_normal(2_000_000).astype("float32")
    with zipfile.ZipFile(tmp_path / "long.zip", "w") as stream:
        stream.writestr("x.wav", encode(samples, "x.wav"))
        (info,) = stream.infolist()
    path = tmp_path / f"long.zip:{info.header_offset + 35}:{info.file_size}"
    read, sizes = os.pread, []
    monkeypatch.setattr(os, "pread", lambda *call: sizes.append(call[1]) or read(*call))
    assert audio.num_samples(path) == 2_000_000
    part = audio.AudioFile(path).read(1_000_000, 1_016_000)
    assert part.numpy() == pytest.approx(samples[1_000_000:1_016_000], abs=1e-4)
    assert sum(sizes) < info.file_size / 4
    with open_bytes(path) as stream:
        assert stream.read(4) == b"RIFF"
        assert stream.seek(-2, os.SEEK_END) == info.file_size - 2
        assert (len(stream.read()), stream.read()) == (2, b"")


def test_each_member_gets_a_file_of_features(archive, tmp_path):
    model = tiny_model()
    encoder = daisy.EarlyExitEncoder(model.backbone, None, daisy.policies.Never())
    recordings = audio.read_manifest(archive.with_name("train.tsv"))
    report = Extractor(encoder, tmp_path / "features", checkpoint="tiny").run(recordings)
    seconds = {row.path: row.duration_sec for row in report.rows}
    lengths = zip(recordings, LENGTHS.values(), strict=True)
    assert seconds == {str(recording.path): length / 16000 for recording, length in lengths}
    places = [recording.name.split(":")[1:] for recording in recordings]
    expected = sorted(f"clips_{offset}_{length}.safetensors" for offset, length in places)
    assert sorted(path.name for path in (tmp_path / "features").glob("*.safetensors")) == expected


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gone.zip:30:100", r"gone\.zip: no such file"),
        ("clips.zip:99999999:100", r"clips\.zip: has \d+ bytes, none or not all of 100 from byte 99999999 on"),
        ("clips.zip:36:99999999", r"clips\.zip: has \d+ bytes, none or not all of 99999999 from byte 36 on"),
        ("clips.zip:0:99999999999999", r"clips\.zip: has \d+ bytes, none or not all of 99999999999999 from byte 0 on"),
        ("clips.zip:99999999999999999999:1", r"clips\.zip: has \d+ bytes, none or not all of 1 from byte 9+ on"),
        ("clips.zip:0:0", r"none or not all of 0 from byte 0 on"),
        ("clips.zip:100:5000", r"clips\.zip:100:5000: not readable as audio \(Format not recognised\)"),
        ("clips.zip:36", r"clips\.zip:36: no such file"),
    ],
)
def test_what_is_no_recording_is_refused_in_one_line(archive, name, message):
    for read in (audio.read, audio.num_samples, audio.AudioFile):
        with pytest.raises(AudioError, match=message) as refused:
            read(archive.with_name(name))
        assert len(str(refused.value).splitlines()) == 1


def test_names():
    assert find_member("/data/a.zip:30:1000") == Member(archive=Path("/data/a.zip"), offset=30, length=1000)
    for plain in ("a.zip", "a.zip:30", "a.wav:30:1000", "a.zip:x:1", ".zip:1:2", "a.zip:1:-2", "a.zip:1:2:3"):
        assert find_member(plain) is None
        assert name_as_file(plain) == plain
    assert name_as_file("v1.2/a.zip:30:1000") == "v1.2/a_30_1000.zip"


@pytest.mark.parametrize(
    ("first", "message"),
    [
        (
            "client_id\tpath\tsentence\tup_votes\tdown_votes\tage\tgender\taccents\tlocale\tsegment",
            "Common Voice's table of clips: its column path names files in the folder clips beside it; a fairseq "
            "manifest begins with the folder of its recordings; make one of those files",
        ),
        (
            "client_id\tpath\tsentence_id\tsentence\tsentence_domain\tup_votes",
            "Common Voice's table of clips",
        ),
        ("id\taudio\tn_frames\ttgt_text", "a table of fairseq's speech-to-text tasks: its column audio names"),
        ("file\tspeaker", "a table with the columns file, speaker; a fairseq manifest begins"),
        ("a\tb\tc\td\te\tf\tg", "a table with the columns a, b, c, d, e, f, …"),
        ("\t".join(f"column{i}" for i in range(700)), "a table with the columns column0, column1, column2, "),
    ],
)
def test_a_table_is_called_what_it_is(tmp_path, first, message):
    path = tmp_path / "train.tsv"
    path.write_text(f"{first}\n1\t2\t3\n")
    with pytest.raises(UsageError) as refused:
        audio.read_manifest(path)
    assert f"{path}: {message}" in str(refused.value)
    done = run("labels", path, "-o", tmp_path / "units")
    assert done.returncode == 2
    assert "make one of those files: daisy manifest FILES --root FOLDER --out NAME.tsv" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_root_with_a_tab_is_a_root(tmp_path):
    folder = tmp_path / "a\tb"
    folder.mkdir()
    soundfile.write(folder / "a.wav", numpy.zeros(16000), 16000)
    (tmp_path / "train.tsv").write_text(f"{folder}\na.wav\t16000\n")
    assert len(audio.read(audio.read_manifest(tmp_path / "train.tsv")[0].path)) == 16000
