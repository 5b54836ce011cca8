"""lhotse's manifests as inputs: whole files are accepted, anything else is refused with a reason."""

import gzip
import json

import numpy
import pytest
import soundfile

from daisy import UsageError, audio


def describe(path, name, **more):
    """A recording as lhotse writes it."""
    return {
        "id": name,
        "sources": [{"type": "file", "channels": [0], "source": str(path)}],
        "sampling_rate": 16000,
        "num_samples": 1600,
        "duration": 0.1,
        "channel_ids": [0],
        **more,
    }


def cut(recording, **more):
    fields = {"id": "a cut", "start": 0, "duration": 0.1, "channel": 0, "supervisions": [], "type": "MonoCut"}
    return {**fields, "recording": recording, **more}


def write(path, *items):
    text = "".join(json.dumps(item) + "\n" for item in items).encode()
    path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
    return path


@pytest.fixture
def files(tmp_path):
    for name in ("a.wav", "b.flac"):
        soundfile.write(tmp_path / name, numpy.zeros(1600), 16000)
    return [tmp_path / "a.wav", tmp_path / "b.flac"]


@pytest.mark.parametrize("name", ["recordings.jsonl.gz", "recordings.jsonl"])
def test_recordings_are_called_by_their_ids(files, tmp_path, name):
    path = write(tmp_path / name, *(describe(file, f"speaker-{file.stem}.0") for file in files))
    assert [(one.path, one.name) for one in audio.find([path])] == [
        (files[0], "speaker-a.0.wav"),
        (files[1], "speaker-b.0.flac"),
    ]


def test_cuts_that_are_whole_recordings(files, tmp_path):
    write(tmp_path / "cuts.jsonl.gz", cut(describe(files[1], "b"), id="b-0"))
    assert [(one.path, one.name) for one in audio.find([tmp_path / "c*.jsonl.gz"])] == [(files[1], "b-0.flac")]


def test_lhotse_itself_writes_them_so(files, tmp_path):
    lhotse = pytest.importorskip("lhotse", reason="needs lhotse (the extra lhotse)")
    recordings = lhotse.RecordingSet.from_recordings(lhotse.Recording.from_file(file) for file in files)
    recordings.to_file(tmp_path / "recordings.jsonl.gz")
    lhotse.CutSet.from_manifests(recordings=recordings).to_file(tmp_path / "cuts.jsonl.gz")
    assert [one.name for one in audio.find([tmp_path / "recordings.jsonl.gz"])] == ["a.wav", "b.flac"]
    assert [one.path for one in audio.find([tmp_path / "cuts.jsonl.gz"])] == files
    recordings.resample(8000).to_file(tmp_path / "resampled.jsonl.gz")
    with pytest.raises(UsageError, match="is changed while lhotse reads it"):
        audio.find([tmp_path / "resampled.jsonl.gz"])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda file: cut(describe(file, "a"), duration=0.05), "line 2: the cut a cut is a part of its recording"),
        (lambda file: cut(describe(file, "a"), start=0.05), "the cut a cut is a part of its recording"),
        (lambda file: cut(describe(file, "a", channel_ids=[0, 1])), "the cut a cut is a part of its recording"),
        (lambda file: describe(file, "a", transforms=[{"name": "Speed"}]), "a is changed while lhotse reads it"),
        (lambda file: describe(file, "a", sources=[]), "a is not one file of this machine"),
        (
            lambda file: describe(file, "a", sources=[{"type": "url", "source": "https://…/a.wav"}]),
            "a is not one file of this machine",
        ),
        (lambda file: {"text": "of something else"}, "not a manifest of lhotse's recordings or cuts"),
        (lambda file: ["a list"], "not a manifest of lhotse's recordings or cuts"),
    ],
)
def test_refusals(files, tmp_path, make, message):
    path = write(tmp_path / "x.jsonl.gz", describe(files[1], "b"), make(files[0]))
    with pytest.raises(UsageError) as error:
        audio.find([path])
    assert str(error.value).startswith(str(path))
    assert message in str(error.value)


def test_what_is_not_gzip(tmp_path):
    (tmp_path / "x.jsonl.gz").write_bytes(b"text")
    with pytest.raises(UsageError, match=r"x\.jsonl\.gz: not a manifest of lhotse's recordings or cuts \(BadGzipFile"):
        audio.find([tmp_path / "x.jsonl.gz"])
    content = bytearray(gzip.compress(bytes(range(256)) * 9))
    content[20] ^= 255
    (tmp_path / "x.jsonl.gz").write_bytes(content)
    with pytest.raises(UsageError, match=r"x\.jsonl\.gz: not a manifest of lhotse's recordings or cuts"):
        audio.find([tmp_path / "x.jsonl.gz"])
    with pytest.raises(UsageError, match=r"gone\.jsonl: no such file, folder or manifest"):
        audio.find([tmp_path / "gone.jsonl"])
