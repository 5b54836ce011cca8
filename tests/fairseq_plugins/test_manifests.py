"""A manifest means the same files to daisy and to fairseq."""

import os
from pathlib import Path

import numpy
import pytest
import soundfile
from hypothesis import example, given, settings
from hypothesis import strategies as st

from daisy import AudioError, audio

hubert_dataset = pytest.importorskip("fairseq.data.audio.hubert_dataset", reason="needs fairseq")
audio_utils = pytest.importorskip("fairseq.data.audio.audio_utils", reason="needs fairseq")

SEPARATORS = "\t\n\r\x0b\x0c\x1c\x1d\x1e\x1f\x85\xa0\u2028\u2029\u3000 \ufeff:./"


def list_as_fairseq(manifest):
    """Absolute paths and lengths, as fairseq's dataset opens them."""
    root, names, _, _, sizes = hubert_dataset.load_audio(str(manifest), None, None)
    return [
        (Path(os.path.abspath(audio_utils.parse_path(os.path.join(root, name))[0])), size)
        for name, size in zip(names, sizes, strict=True)
    ]


def write_manifest(path, root, lines):
    path.write_bytes("\n".join([root, *lines, ""]).encode())


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    path = tmp_path_factory.mktemp("sound") / "x.wav"
    soundfile.write(path, numpy.zeros(1600), 16000)
    return path.read_bytes()


NAMES = st.text(st.one_of(st.sampled_from(SEPARATORS), st.characters(blacklist_characters="\0/")), max_size=20)


@settings(max_examples=150)
@example(folder="a", name="b\rc", suffix=".wav")
@example(folder="a ", name=" b\u2028c", suffix=".wav")
@example(folder="\x85a", name="b\udce9", suffix=".wav")
@example(folder="a:b", name="12:30", suffix=".flac")
@given(folder=NAMES, name=NAMES, suffix=st.sampled_from([".wav", ".WAV", ".flac", ".mp3"]))
def test_what_daisy_writes_both_read(sound, tmp_path_factory, folder, name, suffix):
    root = tmp_path_factory.mktemp("root") / "wavs "
    path = Path(os.path.normpath(root / folder.replace("/", "") / (name.replace("/", "") + suffix)))
    if not path.is_relative_to(root):
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(sound)
    except OSError:  # too long a name
        return
    try:
        line = audio.format_manifest_line(audio.Recording(path=path, name=path.name), root)
    except AudioError:
        return
    manifest = root / "train.tsv"
    write_manifest(manifest, audio.format_manifest_root(root), [line, line])
    assert [recording.path for recording in audio.read_manifest(manifest)] == [path, path]
    assert list_as_fairseq(manifest) == [(path, 1600)] * 2


def test_what_others_write_both_read_alike(sound, tmp_path, monkeypatch):
    listed = ["plain.wav", "two\u2028lines.wav", "next\u0085line.wav", "a b .wav"]
    for folder in ("data/wavs", "data/wavs "):
        (tmp_path / folder).mkdir(parents=True)
        for name in listed:
            (tmp_path / folder / name).write_bytes(sound)
    (tmp_path / "manifests").mkdir()
    monkeypatch.chdir(tmp_path)
    manifest = tmp_path / "manifests" / "train.tsv"
    for root in (
        "data/wavs",
        "./data//wavs",
        f"{tmp_path}/data/wavs ",
        f"\u3000{tmp_path}/data/wavs",
        f"{tmp_path}/data/wavs /",
    ):
        for end in ("\n", "\r\n", "\r"):
            manifest.write_bytes(end.join([root, *(f"{name}\t1600 \u2028" for name in listed)]).encode())
            assert [recording.path for recording in audio.read_manifest(manifest)] == [
                path for path, _ in list_as_fairseq(manifest)
            ]
            assert all(path.is_file() for path, _ in list_as_fairseq(manifest))
