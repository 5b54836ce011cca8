"""Manifests mean the same to daisy as to fairseq; tests/fairseq_plugins/test_manifests.py asks fairseq itself."""

import os
from pathlib import Path

import numpy
import pytest
import soundfile

from daisy import AudioError, audio
from daisy.errors import UsageError


def put(path, rate=16000):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(os.fsencode(path), numpy.zeros(1600), rate, format="WAV")
    return audio.Recording(path=path, name=path.name)


def write_manifest(path, root, *lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("\n".join([str(root), *lines, ""]).encode())
    return path


def paths(manifest):
    return [recording.path for recording in audio.read_manifest(manifest)]


def test_a_root_is_relative_to_the_working_folder_as_fairseq_takes_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    put(tmp_path / "data/wavs/a.wav")
    manifest = write_manifest(tmp_path / "manifests/train.tsv", "data/wavs", "a.wav\t1600")
    assert paths(manifest) == paths("manifests/train.tsv") == [tmp_path / "data/wavs/a.wav"]


def test_a_root_may_be_relative_to_the_manifest(tmp_path, monkeypatch):
    (tmp_path / "elsewhere/wavs").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "elsewhere")
    put(tmp_path / "corpus/wavs/a.wav")
    lines = ("a.wav\t1600", "gone.wav\t1600")
    manifest = write_manifest(tmp_path / "corpus/train.tsv", "wavs", *lines)
    assert paths(manifest) == [tmp_path / "corpus/wavs/a.wav", tmp_path / "corpus/wavs/gone.wav"]
    assert paths(write_manifest(tmp_path / "corpus/dot.tsv", ".", "wavs/a.wav\t1600")) == [
        tmp_path / "corpus/wavs/a.wav"
    ]


def test_a_root_that_means_two_folders_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("wavs", "corpus/wavs"):
        put(tmp_path / folder / "a.wav")
    manifest = write_manifest(tmp_path / "corpus/train.tsv", "wavs", "a.wav\t1600")
    with pytest.raises(UsageError) as error:
        audio.read_manifest(manifest)
    assert str(error.value) == (
        f"{manifest}: its root 'wavs' may be {tmp_path}/wavs, which fairseq takes, or {tmp_path}/corpus/wavs: "
        "write the whole path there"
    )
    (tmp_path / "wavs/a.wav").unlink()
    (tmp_path / "corpus/wavs/a.wav").unlink()
    with pytest.raises(UsageError, match="none of its 1 recordings is below"):
        audio.read_manifest(manifest)
    (tmp_path / "wavs").rmdir()
    (tmp_path / "wavs").symlink_to(tmp_path / "corpus/wavs")  # two names of one folder
    put(tmp_path / "wavs/a.wav")
    assert paths(manifest) == [tmp_path / "wavs/a.wav"]


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_lines_end_where_fairseq_ends_them(tmp_path, newline):
    listed = ["two\u2028lines.wav", "next\u0085line.wav", "form\x0cfeed.wav", "file\x1cseparator.wav", "b b .wav"]
    content = newline.join([f" {tmp_path} \u3000", *(f"{name}\t1600 " for name in listed), "", ""])
    (tmp_path / "x.tsv").write_bytes(content.encode())
    assert paths(tmp_path / "x.tsv") == [tmp_path / name for name in listed]


def test_manifests_that_fairseq_cannot_read_are_refused(tmp_path):
    manifest = tmp_path / "x.tsv"
    manifest.write_bytes(b"\xef\xbb\xbf" + f"{tmp_path}\na.wav\t1600\n".encode())
    with pytest.raises(UsageError, match="byte order mark, which fairseq takes for the root's first letter"):
        audio.read_manifest(manifest)
    manifest.write_bytes(f"{tmp_path}\ncaf".encode() + b"\xe9.wav\t1600\n")
    with pytest.raises(UsageError, match="not a fairseq manifest"):
        audio.read_manifest(manifest)
    manifest.write_bytes(b"")
    with pytest.raises(UsageError, match="it is empty"):
        audio.read_manifest(manifest)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("a\tb.wav", "a tab in the name"),
        ("a\nb.wav", "a line feed in the name"),
        ("a\rb.wav", "a carriage return in the name"),
        (os.fsdecode(b"caf\xe9.wav"), "its name is no UTF-8"),
        ("12:30.mp3", "a colon in the path of a .mp3 file"),
        ("12:30.WAV", "a colon in the path of a .WAV file"),
    ],
)
def test_names_that_cannot_stand_in_a_manifest_are_refused(tmp_path, name, reason):
    with pytest.raises(AudioError) as error:
        audio.format_manifest_line(put(tmp_path / name), tmp_path)
    assert str(error.value).endswith(f": {reason}: fairseq cannot read it from a manifest; rename it")


@pytest.mark.parametrize(
    "name", ["a.wav", " a.wav", "\u3000a.wav", "\x1ca.wav", "a .wav", "sub/ a.wav", " sub/a.wav", "12:30.wav", "é.wav"]
)
def test_every_other_name_is_read_again(tmp_path, name):
    recording = put(tmp_path / name)
    manifest = write_manifest(
        tmp_path / "x.tsv",
        audio.format_manifest_root(tmp_path),
        audio.format_manifest_line(recording, tmp_path),
        audio.format_manifest_line(recording, tmp_path),
    )
    assert audio.read_manifest(manifest) == [audio.Recording(path=recording.path, name=name)] * 2


def test_roots(tmp_path, monkeypatch):
    for root in (tmp_path / "at the end ", tmp_path / "two\u2028lines", tmp_path / "a\ttab"):
        recording = put(root / "a.wav")
        line = audio.format_manifest_line(recording, root)
        assert paths(write_manifest(tmp_path / "x.tsv", audio.format_manifest_root(root), line)) == [recording.path]
    monkeypatch.chdir(tmp_path)
    assert audio.format_manifest_root("x") == str(tmp_path / "x")
    for root in (tmp_path / "a\nb", tmp_path / os.fsdecode(b"\xe9")):
        with pytest.raises(UsageError, match="fairseq cannot read it from a manifest; rename the folder"):
            audio.format_manifest_root(root)


def test_files_of_unknown_length_are_not_for_fairseq(tmp_path):
    soundfile.write(tmp_path / "x.flac", numpy.zeros(1600), 16000)
    content = bytearray((tmp_path / "x.flac").read_bytes())
    content[21] &= 0xF0
    content[22:26] = bytes(4)
    (tmp_path / "x.flac").write_bytes(content)
    with pytest.raises(AudioError, match="its header does not tell its length, which fairseq goes by: write it anew"):
        audio.format_manifest_line(audio.Recording(path=Path(tmp_path / "x.flac"), name="x.flac"), tmp_path)


def test_lines_longer_than_any_name(tmp_path, monkeypatch):
    """What is no manifest may have such; a file system refuses to look for them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lists").mkdir()
    put(tmp_path / "lists" / "a" / "b.wav")
    manifest = write_manifest(tmp_path / "lists" / "x.tsv", "a", "b.wav", "x" * 5000)
    assert paths(manifest) == [tmp_path / "lists" / "a" / "b.wav", tmp_path / "lists" / "a" / ("x" * 5000)]
    for name in ("x" * 5000, "x" * 5000 + ".tsv"):
        with pytest.raises(UsageError, match="no such"):
            audio.find([name])


def test_digital_silence_is_counted(tmp_path):
    """More samples a byte than any speech has: its header is not believed, but it tells a length."""
    soundfile.write(tmp_path / "x.flac", numpy.zeros(960000), 16000)
    assert (tmp_path / "x.flac").stat().st_size * 64 < 960000
    recording = audio.Recording(path=tmp_path / "x.flac", name="x.flac")
    assert audio.format_manifest_line(recording, tmp_path) == "x.flac\t960000"
