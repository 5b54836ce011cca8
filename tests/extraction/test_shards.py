"""Shares of an extraction that write into one folder at the same time; the index from all journals."""

import collections
import json
import os
import signal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daisy import OutputError, _locks
from daisy.audio import Recording
from daisy.errors import UsageError
from daisy.extraction import Shard, rebuild_index
from tests.extraction.conftest import EVERYTHING, NUM_RECORDINGS, extract, read_files, read_index


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
