"""Rows of journals: it makes no difference whether they are kept in memory or read again."""

import gc
import itertools
import json
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daisy import OutputError
from daisy.extraction import Shard, rebuild_index, stored_rows
from daisy.extraction.journal import Failure, Journal, Row, Settings, merge, parse_row, read_journal
from daisy.extraction.stored_rows import StoredRows
from tests.extraction.conftest import NUM_RECORDINGS, extract

SETTINGS = Settings(
    checkpoint="", policy={}, layers="last", scores=[], score_stride=1, format="safetensors", dtype="float32"
)


def make_row(path, at=1.0, **values):
    usual = {
        "output": f"{path}.safetensors",
        "source": (10**12, 1_700_000_000_123_456_789),
        "duration_sec": 0.1,
        "exit_layer": 2,
        "num_layers": 4,
        "seconds": 0.01,
    }
    return Row(path=path, at=at, **{**usual, **values})


def write(path, *events):
    journal = Journal(path)
    journal.begin(SETTINGS)
    if events:
        journal.add(*events)
    return path


@pytest.fixture
def nothing_held(monkeypatch):
    monkeypatch.setattr(stored_rows, "MAX_HELD", 0)
    monkeypatch.setattr(stored_rows, "MAX_OPEN", 1)


def test_an_index_is_the_same_to_the_byte_when_rows_are_read_again(folder, tmp_path, monkeypatch):
    for index in range(2):
        extract(folder, tmp_path, shard=(index, 2))
    expected = [(tmp_path / name).read_bytes() for name in ("index.json", "index.csv")]
    held = rebuild_index(tmp_path)
    monkeypatch.setattr(stored_rows, "MAX_HELD", 3)
    monkeypatch.setattr(stored_rows, "MAX_OPEN", 1)
    passes, read = [], StoredRows.read
    monkeypatch.setattr(StoredRows, "read", lambda rows, labels: passes.append(labels) or read(rows, labels))
    report = rebuild_index(tmp_path)
    assert len(passes) == 3  # for what is said of all, and for each file
    assert [(tmp_path / name).read_bytes() for name in ("index.json", "index.csv")] == expected
    assert isinstance(held.rows, list)
    assert not isinstance(report.rows, list)
    assert list(report.rows) == held.rows
    assert (len(report.rows), report.rows[-1], report.rows[2:4]) == (NUM_RECORDINGS, held.rows[-1], held.rows[2:4])
    assert report.totals() == held.totals()
    assert extract(folder, tmp_path).num_resumed == NUM_RECORDINGS


def test_a_run_reports_the_rows_that_it_has_written(folder, tmp_path, nothing_held):
    report = extract(folder, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "journal.jsonl").read_text().splitlines()[1:]]
    assert {row.output: row.at for row in report.rows} == {line["output"]: line["at"] for line in lines}
    assert [row.output for row in report.rows] == [f"{index}.safetensors" for index in range(NUM_RECORDINGS)]


def test_what_is_asked_of_rows_needs_no_reading(tmp_path):
    rows = StoredRows(parse_row)
    kinds = [make_row("b"), make_row("a", channel=1), make_row("a", channel=0, shard="s-1.tar"), make_row("\udce9")]
    for row in kinds:
        rows.note(row, tmp_path / "nowhere", 7)
    assert [rows.file(row.label) for row in kinds] == [
        "b.safetensors",
        "a.safetensors",
        "s-1.tar",
        "\udce9.safetensors",
    ]
    assert {rows.source(label) for label in rows} == {(10**12, 1_700_000_000_123_456_789)}
    assert rows.shards() == {"s-1.tar"}
    assert rows.sort(rows) == ["a (channel 0)", "a (channel 1)", "b", "\udce9"]
    assert rows.sort(rows) == [row.label for row in sorted(kinds, key=lambda row: row.sort_key)]
    rows.drop("b")
    assert ("b" in rows, len(rows)) == (False, 3)
    with pytest.raises(KeyError):
        rows["b"]


EVENTS = st.lists(st.tuples(st.integers(0, 2), st.sampled_from("abcd"), st.booleans(), st.integers(0, 5)), max_size=25)


@settings(max_examples=12)
@given(EVENTS, st.sampled_from([0, 100]))
def test_what_was_noted_last_counts(tmp_path_factory, events, held):
    """Against the plain rule: of each journal the last of each kind, then the latest of all."""
    place = tmp_path_factory.mktemp("journals")
    made = {
        number: [
            make_row(path, float(at), seconds=float(index))
            if finished
            else Failure(path=path, reason="no", at=float(at))
            for index, (journal, path, finished, at) in enumerate(events)
            if journal == number
        ]
        for number in range(3)
    }
    last = {}
    for number, chosen in made.items():
        write(place / f"{number}.jsonl", *chosen)
        kinds = [{event.path: event for event in chosen if isinstance(event, kind)} for kind in (Failure, Row)]
        for event in itertools.chain(*(kind.values() for kind in kinds)):
            if event.path not in last or event.at >= last[event.path].at:
                last[event.path] = event
    before, stored_rows.MAX_HELD = stored_rows.MAX_HELD, held
    try:
        rows, failures = merge(read_journal(place / f"{number}.jsonl") for number in range(3))
        assert dict(rows) == {path: event for path, event in last.items() if isinstance(event, Row)}
    finally:
        stored_rows.MAX_HELD = before
    assert failures == {path: event for path, event in last.items() if isinstance(event, Failure)}


def test_a_journal_that_was_changed_meanwhile_is_noticed(tmp_path, nothing_held):
    path = write(tmp_path / Shard(0, 1).journal, make_row("a"), make_row("b"))
    rows, _ = merge([read_journal(path)])
    assert [row.path for row in rows.values()] == ["a", "b"]
    write(path, make_row("c"), make_row("b"))
    with pytest.raises(OutputError, match=r"journal\.jsonl: was changed while it was read"):
        rows["a"]
    path.unlink()
    with pytest.raises(OutputError, match=r"journal\.jsonl: cannot be read \(No such file"):
        rows["a"]


def test_many_rows_take_little_memory(tmp_path, nothing_held):
    """A row with two scores at six layers is 2,700 bytes; of these, label and output are 120."""
    rows, scores = StoredRows(parse_row), {"entropy": [0.5] * 6, "regressed": [0.25] * 6}
    tracemalloc.start()
    for index in range(5000):
        rows.note(make_row(f"/speech/{index:07}.wav", scores=scores), tmp_path / "journal.jsonl", 500 * index)
    gc.collect()
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert used / 5000 < 350
