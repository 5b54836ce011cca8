"""The index of an extraction, built from all journals."""

import dataclasses
import itertools
import json
import os

import pytest

from daisy import EarlyExitEncoder, OutputError, policies
from daisy.errors import UsageError
from daisy.extraction import Extractor, Shard, rebuild_index
from daisy.extraction.journal import Failure
from tests.conftest import tiny_model
from tests.extraction.conftest import EVERYTHING, NUM_RECORDINGS, extract, read_index


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
