"""Shares of an extraction, written into one folder at once; the index from all journals."""

import collections
import csv
import dataclasses
import itertools
import json
import os
import signal
from pathlib import Path

import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st

from daisy import EarlyExitEncoder, OutputError, _locks, audio, policies
from daisy.audio import Recording
from daisy.errors import UsageError
from daisy.extraction import Extractor, Shard, rebuild_index
from daisy.extraction.journal import Failure
from tests.conftest import tiny_model

NUM_RECORDINGS = 9


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("recordings")
    generator = torch.Generator().manual_seed(0)
    for index in range(NUM_RECORDINGS):
        wave = 0.1 * torch.randn(3000 + 700 * index, generator=generator)
        soundfile.write(place / f"{index}.wav", wave.numpy(), 16000, subtype="FLOAT")
    return place


def extract(folder, out, layer=2, **options):
    model = tiny_model()
    encoder = EarlyExitEncoder(model.backbone, None, policies.Fixed(layer=layer), keep="last")
    return Extractor(encoder, out, checkpoint="0" * 64, batch_sec=0.01).run(audio.find([folder]), **options)


def read_index(out):
    index = json.loads((out / "index.json").read_text())
    outputs = [row["output"] for row in index["recordings"]]
    assert [row["output"] for row in csv.DictReader((out / "index.csv").read_text().splitlines())] == outputs
    assert index["totals"]["num_recordings"] == len(outputs) == len(set(outputs))
    return outputs, {Path(failure["path"]).name: failure["reason"] for failure in index["failed"]}


def read_files(out):
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.glob("*.safetensors")}


EVERYTHING = [f"{index}.safetensors" for index in range(NUM_RECORDINGS)]


def name(text):
    return Recording(path=Path("/") / text, name=text)


@given(st.lists(st.text(st.characters(blacklist_categories=["Cs"]), min_size=1), unique=True), st.integers(1, 9))
def test_every_recording_is_in_one_share(names, count):
    shards = [Shard(index, count) for index in range(count)]
    for text in names:
        assert sum(shard.takes(name(text)) for shard in shards) == 1


def test_shares_are_the_same_everywhere_and_about_equal():
    shards = [Shard(index, 3) for index in range(3)]
    for text, index in (("a.wav", 0), ("b/é.flac", 2), ("\udce9.wav", 0)):  # sha256sum | cut -c1-16, modulo 3
        assert [shard.takes(name(text)) for shard in shards] == [index == place for place in range(3)]
    sizes = collections.Counter(
        next(index for index in range(10) if Shard(index, 10).takes(name(f"speaker/{number}.wav")))
        for number in range(10_000)
    )
    assert all(abs(size - 1000) < 120 for size in sizes.values())  # four standard deviations of chance


@pytest.mark.parametrize(
    ("index", "count", "message"),
    [(4, 4, "shard 4 of 4: shards are numbered from 0 to 3"), (0, 0, "shard 0 of 0: there must be one at least")],
)
def test_what_is_no_share(index, count, message):
    with pytest.raises(UsageError, match=f"^{message}$"):
        Shard(index, count)


def test_two_shards_at_once_make_what_one_run_makes(folder, tmp_path):
    alone, out = tmp_path / "alone", tmp_path / "out"
    extract(folder, alone)
    reports = {}

    def run_the_other(count):
        if 1 not in reports:
            reports[1] = None
            reports[1] = extract(folder, out, shard=(1, 2))  # begins and ends while the first is running

    reports[0] = extract(folder, out, shard=(0, 2), progress=run_the_other)
    rows = [{row.output for row in report.rows} for report in reports.values()]
    assert all(rows)
    assert not rows[0] & rows[1]
    assert rows[0] | rows[1] == set(EVERYTHING)
    assert read_index(out) == (EVERYTHING, {})
    expected = read_files(alone)
    assert {name: content for name, (content, _) in read_files(out).items()}.keys() == expected.keys()
    for file, (content, _) in read_files(out).items():
        begin = 8 + int.from_bytes(content[:8], "little")  # behind the metadata, which has the time that it took
        whole = expected[file][0]
        assert content[begin:] == whole[8 + int.from_bytes(whole[:8], "little") :]
    assert not list(out.glob("*lock*"))


def test_other_numbers_of_shards_go_on_and_redo_nothing(folder, tmp_path):
    extract(folder, tmp_path, shard=(1, 2))
    finished = read_files(tmp_path)
    assert 0 < len(finished) < NUM_RECORDINGS
    resumed = [extract(folder, tmp_path, shard=(index, 3)).num_resumed for index in range(3)]
    assert sum(resumed) == len(finished)
    whole = read_files(tmp_path)
    assert read_index(tmp_path) == (EVERYTHING, {})
    assert extract(folder, tmp_path).num_resumed == NUM_RECORDINGS
    assert read_files(tmp_path) == whole
    assert finished.items() <= whole.items()
    journals = [line for path in tmp_path.glob("journal*") for line in path.read_text().splitlines()[1:]]
    assert sorted(json.loads(line)["output"] for line in journals) == EVERYTHING


@pytest.mark.parametrize(
    ("running", "beginning", "message"),
    [
        (None, None, r"is being written by process \d+ on \S+, since .*; wait for it, use another folder, or let"),
        ((0, 2), (0, 2), r": shard 0 of 2 is being written by process \d+"),
        ((0, 2), None, ": shard 0 of 2 is being written by"),
        ((0, 2), (1, 3), ": shard 0 of 2 is being written by"),
        (None, (1, 3), "out: is being written by"),
    ],
)
def test_the_same_recordings_are_not_written_twice_at_once(folder, tmp_path, running, beginning, message):
    out = tmp_path / "out"
    refused = []

    def begin_another(count):
        with pytest.raises(OutputError, match=message):
            extract(folder, out, shard=beginning)
        refused.append(count)

    extract(folder, out, shard=running, progress=begin_another)
    assert len(refused) > 1


def test_other_settings_are_refused_although_nothing_is_finished(folder, tmp_path):
    """The first shard has only begun."""
    refused = []

    def begin_another(count):
        if not refused:
            with pytest.raises(OutputError, match="holds a run with another policy"):
                extract(folder, tmp_path, layer=3, shard=(1, 2))
            refused.append(count)

    extract(folder, tmp_path, shard=(0, 2), progress=begin_another)
    assert refused
    with pytest.raises(OutputError, match="holds a run with another policy"):
        extract(folder, tmp_path, layer=3, shard=(1, 2))


def test_a_killed_run_blocks_nobody(folder, tmp_path):
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        extract(folder, tmp_path, progress=lambda count: os.write(writing, b"!") and count and signal.pause())
        os._exit(0)
    os.read(reading, 1)
    with pytest.raises(OutputError, match=f"is being written by process {child} on"):
        extract(folder, tmp_path)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert len(list(tmp_path.glob("*.lock"))) == 1
    assert len(extract(folder, tmp_path).rows) == NUM_RECORDINGS
    assert not list(tmp_path.glob("*lock*"))


def test_beginning_again_is_for_one_process_and_leaves_nothing(folder, tmp_path):
    for index in range(2):
        extract(folder, tmp_path, shard=(index, 2))
    with pytest.raises(UsageError, match="one shard cannot begin again"):
        extract(folder, tmp_path, layer=3, shard=(0, 2), overwrite=True)
    assert {row.exit_layer for row in extract(folder, tmp_path, layer=3, overwrite=True).rows} == {3}
    assert [path.name for path in tmp_path.glob("journal*")] == ["journal.jsonl"]


def test_failures_of_all_shards_are_in_the_index_until_they_are_mended(folder, tmp_path):
    place, out = tmp_path / "in", tmp_path / "out"
    place.mkdir()
    for path in folder.iterdir():
        (place / path.name).write_bytes(path.read_bytes())
    bad = {f"bad{index}.wav" for index in range(6)}
    for file in bad:
        (place / file).write_text("no audio")
    for index in range(2):
        report = extract(place, out, shard=(index, 2))
        assert 0 < len(report.failed) < 6
    outputs, failed = read_index(out)
    assert outputs == EVERYTHING
    assert failed == dict.fromkeys(bad, "not readable as audio (Format not recognised)")
    size = sum(path.stat().st_size for path in out.glob("journal*"))
    extract(place, out, shard=(0, 2))
    assert sum(path.stat().st_size for path in out.glob("journal*")) == size  # the same failures are noted once
    (place / "bad0.wav").write_bytes((place / "1.wav").read_bytes())
    (place / "bad1.wav").unlink()
    assert len(extract(place, out).failed) == 4
    outputs, failed = read_index(out)
    assert set(outputs) == {*EVERYTHING, "bad0.safetensors"}
    assert failed.keys() == bad - {"bad0.wav", "bad1.wav"}
    (place / "2.wav").write_text("no audio")
    extract(place, out)
    assert "2.safetensors" not in read_index(out)[0]
    assert "2.wav" in read_index(out)[1]


def test_an_index_is_made_from_the_journals(folder, tmp_path):
    for index in range(2):
        extract(folder, tmp_path, shard=(index, 2))
    before = (tmp_path / "index.json").read_bytes(), (tmp_path / "index.csv").read_bytes()
    (tmp_path / "index.json").unlink()
    (tmp_path / "index.csv").write_text("half of it")
    with open(tmp_path / "journal-0-of-2.jsonl", "a") as journal:
        journal.write('{"path": "/being/writ')
    report = rebuild_index(tmp_path)
    assert len(report.rows) == NUM_RECORDINGS
    assert before == ((tmp_path / "index.json").read_bytes(), (tmp_path / "index.csv").read_bytes())
    assert (tmp_path / "journal-0-of-2.jsonl").read_text().endswith("writ")  # somebody may be writing it
    header, *rows = (tmp_path / "journal-1-of-2.jsonl").read_text().splitlines()
    other = json.dumps({**json.loads(header), "dtype": "float16"})
    (tmp_path / "journal-1-of-2.jsonl").write_text("".join(line + "\n" for line in (other, *rows)))
    with pytest.raises(OutputError, match=r"journal-1-of-2.jsonl: of a run with another dtype than .*journal-0-of-2"):
        rebuild_index(tmp_path)
    (tmp_path / "journal-1-of-2.jsonl").write_text("{}\nno JSON\n")
    with pytest.raises(OutputError, match=r"journal-1-of-2\.jsonl: damaged"):
        rebuild_index(tmp_path)
    with pytest.raises(UsageError, match="holds no extraction's journal"):
        rebuild_index(folder)


def test_what_was_noted_last_counts_whatever_the_clocks_say(folder, tmp_path):
    place, out = tmp_path / "in", tmp_path / "out"
    place.mkdir()
    for file in ("0.wav", "1.wav"):
        (place / file).write_bytes((folder / file).read_bytes())
    extract(place, out)
    lines = [json.loads(line) for line in (out / "journal.jsonl").read_text().splitlines()]
    for line in lines[1:]:
        line["at"] += 3600.0  # written on a host whose clock is an hour ahead
    (out / "journal.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (place / "0.wav").write_bytes((folder / "5.wav").read_bytes())
    for shard in range(2):
        extract(place, out, shard=(shard, 2))
    index = json.loads((out / "index.json").read_text())
    assert [row["duration_sec"] for row in index["recordings"]] == [6500 / 16000, 3700 / 16000]
    assert extract(place, out).num_resumed == 2
    times = [[json.loads(line)["at"] for line in path.read_text().splitlines()[1:]] for path in out.glob("journal*")]
    assert len(list(itertools.chain(*times))) == 3


def write_journal(out, shard, settings, rows=(), failures=(), end=""):
    """As a run leaves it; returns its bytes."""
    from daisy.extraction.journal import Journal

    journal = Journal(out / Shard(*shard).journal)
    journal.begin(settings)
    for event in (*rows, *failures):
        journal.add(event)
    with open(journal.path, "a") as stream:
        stream.write(end)
    return journal.path.read_bytes()


def test_other_shards_journals_are_left_as_they_are(folder, tmp_path):
    """Where the file system keeps no locks somebody may be writing them, although nobody holds a lock."""
    settings = extract(folder, tmp_path / "first").settings
    out = tmp_path / "out"
    out.mkdir()
    halfway = write_journal(out, (1, 2), settings, end='{"path": "/being/writ')
    other = write_journal(out, (2, 3), dataclasses.replace(settings, dtype="float16"), end='{"path": "/begu')
    failed = Failure(path="/elsewhere/x.wav", reason="not readable", at=1.0)
    in_vain = write_journal(out, (0, 4), dataclasses.replace(settings, format="npy"), failures=[failed])
    report = extract(folder, out, shard=(0, 2))
    assert 0 < len(report.rows) < NUM_RECORDINGS
    assert (out / "journal-1-of-2.jsonl").read_bytes() == halfway
    assert (out / "journal-2-of-3.jsonl").read_bytes() == other
    assert (out / "journal-0-of-4.jsonl").read_bytes() == in_vain
    outputs, failures = read_index(out)
    assert (len(outputs), failures) == (len(report.rows), {})  # of another run's failures nothing is said
    index = json.loads((out / "index.json").read_text())
    assert (index["settings"]["dtype"], index["settings"]["format"]) == ("float32", "safetensors")


def test_the_own_journal_is_mended(folder, tmp_path):
    extract(folder, tmp_path, shard=(0, 2))
    whole = (tmp_path / "journal-0-of-2.jsonl").read_bytes()
    with open(tmp_path / "journal-0-of-2.jsonl", "a") as stream:
        stream.write('{"path": "/being/writ')
    extract(folder, tmp_path, shard=(0, 2))
    assert (tmp_path / "journal-0-of-2.jsonl").read_bytes() == whole


def test_a_run_of_nothing_is_not_in_the_way(tmp_path):
    """No recordings, twice, with other settings: the index is of the later."""
    empty = tmp_path / "empty"
    empty.mkdir()
    model = tiny_model()
    for layer, shard in ((2, (0, 2)), (3, (1, 2))):
        encoder = EarlyExitEncoder(model.backbone, None, policies.Fixed(layer=layer), keep="last")
        Extractor(encoder, tmp_path / "out", checkpoint="0" * 64).run([], shard=shard)
        os.utime(tmp_path / "out" / Shard(*shard).journal, (layer, layer))
    rebuild_index(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "index.json").read_text())["settings"]["policy"]["layer"] == 3


def test_shards_do_not_wait_while_others_journals_are_read_or_the_index_is_made(folder, tmp_path, monkeypatch):
    """Which takes seconds where there are many recordings: the lock that beginning takes is free then."""
    from daisy.extraction import index, run_folder

    report = extract(folder, tmp_path, shard=(0, 3))
    were_free = []
    for module in (run_folder, index):

        def merge(journals, merge=module.merge):
            lock = _locks.acquire(tmp_path / run_folder.FOLDER_LOCK)
            were_free.append(lock is not None)
            if lock is not None:
                lock.release()
            return merge(journals)

        monkeypatch.setattr(module, "merge", merge)
    with run_folder.RunFolder(tmp_path, report.settings, Shard(1, 3)) as entered:
        assert entered.rows.keys() == {row.label for row in report.rows}
    rebuild_index(tmp_path)
    assert were_free == [True, True]


def test_an_index_is_json_with_a_line_for_each_recording(folder, tmp_path):
    report = extract(folder, tmp_path)
    text = (tmp_path / "index.json").read_text()
    lines = text.splitlines()
    assert lines[0] == "{"
    assert lines[-1] == "}"
    rows = json.loads(text)["recordings"]
    assert rows == [json.loads(json.dumps(row.public())) for row in report.rows]
    assert [json.loads(line.rstrip(",")) for line in lines if line.startswith("  {")] == rows
    assert list(rows[0]) == [
        "path", "output", "duration_sec", "exit_layer", "num_layers", "seconds", "scores", "window_exits", "silent",
        "predicted_loss",
    ]  # fmt: skip
