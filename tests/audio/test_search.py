"""Files that a search finds, their names, and its messages about all others."""

import os
import sys

import numpy
import pytest
import soundfile

from daisy import audio
from daisy.audio import media
from daisy.errors import AudioError, UsageError


@pytest.fixture
def without_ffmpeg(monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)


def put(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(os.fsencode(path), numpy.zeros(1600), 16000, format="WAV")


def names(*inputs):
    return [recording.name for recording in audio.find(inputs)]


def test_linked_folders_are_searched(tmp_path):
    put(tmp_path, "corpus/part1/a.wav", "disk2/part2/b.wav", "disk2/part2/deep/c.wav", "disk3/d.wav")
    (tmp_path / "corpus/part2").symlink_to(tmp_path / "disk2/part2")
    (tmp_path / "disk2/part2/deep/more").symlink_to(tmp_path / "disk3")
    expected = ["part1/a.wav", "part2/b.wav", "part2/deep/c.wav", "part2/deep/more/d.wav"]
    assert names(tmp_path / "corpus") == expected
    recordings = audio.find([tmp_path / "corpus"])
    assert [recording.path for recording in recordings] == [tmp_path / "corpus" / name for name in expected]


def test_circles_of_links_and_folders_reached_twice(tmp_path):
    put(tmp_path, "corpus/part/a.wav", "corpus/z.wav", "other/x.wav", "other/sub/y.wav")
    for link, target in {
        "corpus/circle": "corpus",
        "corpus/part/up": "corpus",
        "corpus/0-before-the-real-one": "corpus/part",
        "corpus/once": "other",
        "corpus/twice": "other/sub",
        "other/sub/back": "corpus",
        "other/link.wav": "corpus/z.wav",
    }.items():
        (tmp_path / link).symlink_to(tmp_path / target)
    assert names(tmp_path / "corpus") == ["once/sub/y.wav", "once/x.wav", "part/a.wav", "z.wav"]


def test_links_to_files_in_a_folder_are_recordings_of_their_own(tmp_path):
    """As they always were: the names are what tells such recordings apart."""
    put(tmp_path, "corpus/a.wav")
    (tmp_path / "corpus/b.wav").symlink_to(tmp_path / "corpus/a.wav")
    assert names(tmp_path / "corpus") == ["a.wav", "b.wav"]
    put(tmp_path, "other/c.wav")
    (tmp_path / "corpus/more").symlink_to(tmp_path / "other")
    assert names(tmp_path / "corpus") == ["a.wav", "b.wav", "more/c.wav"]


def test_patterns_match_a_place_once(tmp_path):
    put(tmp_path, "corpus/part/a.wav")
    (tmp_path / "corpus/circle").symlink_to(tmp_path / "corpus")
    (tmp_path / "corpus/link").symlink_to(tmp_path / "corpus/part")
    matches = [recording.path for recording in audio.find([str(tmp_path / "corpus/**/*.wav")])]
    assert matches == [tmp_path / "corpus/link/a.wav"]  # of names as short the first


def test_patterns_match_manifests(tmp_path):
    put(tmp_path, "a.wav", "b.wav")
    for name in ("a", "b"):
        (tmp_path / f"{name}.tsv").write_text(f"{tmp_path}\n{name}.wav\t16000\n")
    assert names(tmp_path / "*.tsv") == ["a.wav", "b.wav"]
    with pytest.raises(UsageError, match="no such manifest"):
        audio.find([tmp_path / "c.tsv"])


def test_endings_in_any_case(tmp_path):
    endings = "sph wv1 wv2 adc wave bwf aifc snd mp2 mp1 wav flac mp3 ogg opus au caf w64 rf64 nist aiff"
    listed = sorted(f"{index}.{ending}" for index, ending in enumerate([*endings.split(), *endings.upper().split()]))
    put(tmp_path, *listed, "notes.txt", "list.csv", "x.py")
    findings = audio.search([tmp_path])
    assert [recording.name for recording in findings.recordings] == listed
    assert findings.describe_rest() == []


def test_what_was_skipped_is_counted(tmp_path, without_ffmpeg):
    put(tmp_path, "a.wav", "b.m4a", "sub/c.M4A", "d.webm", "e.raw", "f.txt", "folder.mp4/g.wav")
    findings = audio.search([tmp_path])
    assert [recording.name for recording in findings.recordings] == ["a.wav", "folder.mp4/g.wav"]
    assert findings.describe_rest() == [
        "4 files skipped: .m4a (2), .raw (1), .webm (1); to read .m4a, .webm: pip install 'daisy-speech[ffmpeg]'"
    ]
    (tmp_path / "only").mkdir()
    put(tmp_path, "only/x.mp4")
    with pytest.raises(UsageError) as error:
        audio.find([tmp_path / "only"])
    assert str(error.value) == (
        f"no recordings in {tmp_path}/only; 1 file skipped: .mp4 (1); to read .mp4: {media.INSTALL}"
    )


def test_what_macos_and_trash_cans_hold_is_no_recording(tmp_path):
    put(tmp_path, "a.wav", "._a.wav", "__MACOSX/._a.wav", "__MACOSX/b.wav", ".Trash/c.wav", ".Trash-1000/files/d.wav")
    put(tmp_path, "$RECYCLE.BIN/e.wav", ".hidden/f.wav", "sub/._g.wav")
    assert names(tmp_path) == [".hidden/f.wav", "a.wav"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_is_named(tmp_path):
    put(tmp_path, "a.wav", "locked/b.wav")
    (tmp_path / "locked").chmod(0)
    findings = audio.search([tmp_path])
    (tmp_path / "locked").chmod(0o755)
    assert [recording.name for recording in findings.recordings] == ["a.wav"]
    assert findings.describe_rest() == [f"not searched: {tmp_path / 'locked'} (Permission denied)"]


def test_names_that_are_no_utf8(tmp_path):
    put(tmp_path, os.fsdecode(b"caf\xe9.wav"))
    (tmp_path / "link").symlink_to(tmp_path)
    assert names(tmp_path) == [os.fsdecode(b"caf\xe9.wav")]


def test_folders_that_are_called_like_recordings_are_searched_and_refused_by_name(tmp_path):
    put(tmp_path, "a.wav/b.wav", "c.m4a/d.wav", "e.raw/f.wav")
    findings = audio.search([tmp_path])
    names = [recording.name for recording in findings.recordings]
    assert names == ["a.wav", "a.wav/b.wav", "c.m4a/d.wav", "e.raw/f.wav"]
    assert not findings.skipped
    with pytest.raises(AudioError, match=r"a\.wav: is a folder"):
        audio.read(findings.recordings[0].path)
