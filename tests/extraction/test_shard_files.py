"""Shard files have the same content as one file per recording, when read by other libraries' readers."""

import csv
import json
import os
import signal
import tarfile
import tempfile

import numpy
import pytest
import soundfile
import torch
from safetensors import safe_open
from safetensors.torch import load, load_file

from daisy import EarlyExitEncoder, audio, policies
from daisy.errors import OutputError, UsageError
from daisy.extraction import Extractor, rebuild_index, scratch, shard_files
from daisy.extraction.shard_files import KINDS, name_member
from tests.conftest import tiny_model

NAMES = ["a.wav", "b.c.wav", "sub/a.wav", "sub/b%2Ec.wav", "d.wav", "e.wav"]
SHARD_MB = 0.008  # 62 frames of 32 numbers


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("recordings")
    generator = torch.Generator().manual_seed(0)
    (place / "sub").mkdir()
    for index, name in enumerate(NAMES):
        wave = 0.1 * torch.randn(3000 + 1700 * index, generator=generator)
        soundfile.write(place / name, wave.numpy(), 16000, subtype="FLOAT")
    (place / "broken.wav").write_bytes(b"RIFF")
    return place


def extract(folder, out, keep="last", **options):
    model = tiny_model()
    encoder = EarlyExitEncoder(model.backbone, model.heads, policies.Entropy(threshold=2.0), keep=keep)
    running = {name: options.pop(name) for name in ("overwrite", "progress", "shard") if name in options}
    options = {"batch_sec": 0.5, "shard_mb": SHARD_MB, **options}
    return Extractor(encoder, out, checkpoint="0" * 64, **options).run(audio.find([folder]), **running)


@pytest.fixture(scope="module")
def expected(folder, tmp_path_factory):
    """Each recording's states, from files of their own."""
    out = tmp_path_factory.mktemp("files")
    return {row.path: load_file(out / row.output)["states"].numpy() for row in extract(folder, out).rows}


def read_tar(path):
    webdataset = pytest.importorskip("webdataset", reason="needs webdataset")
    for sample in webdataset.WebDataset(str(path), shardshuffle=False):
        row = json.loads(sample["json"])
        yield row, load(sample["safetensors"])["states"].numpy()


def read_parquet(path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs pyarrow (the extra storage)")
    for line in parquet.read_table(path).to_pylist():
        states = numpy.frombuffer(line.pop("states"), line.pop("dtype")).reshape(line.pop("shape"))
        yield {name: value for name, value in line.items() if (name, value) != ("channel", None)}, states


def read_safetensors(path):
    with safe_open(path, framework="numpy") as file:
        rows = json.loads(file.metadata()["daisy"])["recordings"]
        assert list(rows) == sorted(rows, key=lambda name: list(file.offset_keys()).index(name))
        for name, row in rows.items():
            yield row, file.get_tensor(name)


READERS = {"tar": read_tar, "parquet": read_parquet, "safetensors": read_safetensors}


@pytest.mark.filterwarnings("ignore:.*unclosed file:ResourceWarning")  # webdataset leaves its file to the collector
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_holds_all(folder, expected, tmp_path, kind):
    pytest.importorskip("pyarrow" if kind == "parquet" else "torch")
    report = extract(folder, tmp_path / "out", shards=kind)
    index = json.loads((tmp_path / "out" / "index.json").read_text())
    rows = {(row["shard"], row["output"]): row for row in index["recordings"]}
    shards = sorted({row.shard for row in report.rows})
    assert shards == [f"shard-{number:06}.{kind}" for number in range(len(shards))]
    assert 1 < len(shards) < len(NAMES)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(
        [*shards, "index.json", "index.csv", "journal.jsonl"]
    )
    assert max((tmp_path / "out" / shard).stat().st_size for shard in shards) < 1e6 * SHARD_MB + 40_000
    seen = {}
    for shard in shards:
        for row, states in READERS[kind](tmp_path / "out" / shard):
            said = dict(rows[shard, row["output"]])
            assert said.pop("shard") == shard
            assert row == said
            seen[row["path"]] = states
    assert seen.keys() == expected.keys()
    for path, states in expected.items():
        numpy.testing.assert_array_equal(seen[path], states)
    lines = list(csv.DictReader((tmp_path / "out" / "index.csv").read_text().splitlines()))
    assert {(line["shard"], line["output"]) for line in lines} == rows.keys()
    assert [str(path).endswith("broken.wav") for path in report.failed] == [True]
    again = {path.name: path.read_bytes() for path in (tmp_path / "out").glob("index.*")}
    rebuild_index(tmp_path / "out")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").glob("index.*")} == again


def test_all_layers_windows_and_npy(folder, expected, tmp_path):
    report = extract(folder, tmp_path / "all", keep="all", shards="safetensors", shard_mb=1)
    (shard,) = {row.shard for row in report.rows}
    states = load_file(tmp_path / "all" / shard)
    for row in report.rows:
        assert states[row.output].shape[0] == row.exit_layer + 1
        torch.testing.assert_close(states[row.output][-1].numpy(), expected[row.path], rtol=0, atol=0)
    report = extract(folder, tmp_path / "windows", shards="tar", window_sec=0.3, context_sec=0.05, format="npy")
    (row,) = [row for row in report.rows if row.path.endswith("e.wav")]
    assert len(row.window_exits) == 3
    with tarfile.open(tmp_path / "windows" / row.shard) as archive:
        (tmp_path / "e.npy").write_bytes(archive.extractfile(row.output).read())
    assert numpy.load(tmp_path / "e.npy").shape == expected[row.path].shape


class Stopped(Exception):
    pass


def test_a_stopped_run_keeps_whole_shards_and_a_lost_one_is_made_again(folder, tmp_path):
    out, counts = tmp_path / "out", []

    def stop(count):
        counts.append(count)
        if len(counts) == 3:
            raise Stopped

    with pytest.raises(Stopped):
        extract(folder, out, shards="tar", progress=stop)
    whole = {path.name: path.stat().st_mtime_ns for path in out.glob("shard-*")}
    assert len(whole) == 2
    (out / "shard-000017.tar").write_bytes(b"written, and the run was killed before it was noted")
    (out / "shard-of-mine.tar").write_bytes(b"somebody's")
    (out / ".shard-000017.tar.01234567.0123456789ab.part").write_bytes(b"half")
    report = extract(folder, out, shards="tar")
    assert report.num_resumed == sum(counts) - 1
    assert {name: (out / name).stat().st_mtime_ns for name in whole} == whole
    outputs = []
    for path in out.glob("shard-0*"):
        with tarfile.open(path) as archive:
            outputs += archive.getnames()
    assert sorted(outputs) == sorted(
        [*(row.output for row in report.rows), *(row.output.replace("safetensors", "json") for row in report.rows)]
    )
    assert (out / "shard-of-mine.tar").is_file()
    assert not list(out.glob("*shard-000017*"))
    (out / "shard-000000.tar").unlink()
    lost = sum(row.shard == "shard-000000.tar" for row in report.rows)
    again = extract(folder, out, shards="tar")
    assert again.num_resumed == len(NAMES) - lost
    assert {row.output for row in again.rows} == {row.output for row in report.rows}
    assert all((out / row.shard).is_file() for row in again.rows)


@pytest.mark.parametrize("store", [False, True])
def test_shard_files_that_no_journal_notes_are_somebody_elses(folder, tmp_path, store):
    out, files = tmp_path / "out", tmp_path / ("store" if store else "out")
    options = {"store": f"file://{files}"} if store else {}
    files.mkdir()
    names = [f"shard-{number:06}.tar" for number in range(3)]
    for name in names:
        (files / name).write_bytes(b"somebody's audio")
    for _ in range(2):  # being refused begins nothing
        with pytest.raises(OutputError, match=r"holds shard-000000\.tar, which is no file of .*overwrite=True"):
            extract(folder, out, shards="tar", **options)
    assert {name: (files / name).read_bytes() for name in names} == dict.fromkeys(names, b"somebody's audio")
    extract(folder, out, shards="tar", shard=(0, 2), **options)  # whose shards have other names
    with pytest.raises(OutputError, match=r"holds shard-000000\.tar"):
        extract(folder, out, shards="tar", **options)
    report = extract(folder, out, shards="tar", overwrite=True, **options)
    assert {path.name for path in files.glob("shard-*")} == {row.shard for row in report.rows}
    assert extract(folder, out, shards="tar", **options).num_resumed == len(NAMES)
    if store:
        with pytest.raises(OutputError, match=r"store: holds shard-000000\.tar"):
            extract(folder, tmp_path / "new", shards="tar", **options)
        assert all((files / row.shard).is_file() for row in report.rows)


def test_a_run_that_was_killed_as_it_began_goes_on(folder, tmp_path):
    extract(folder, tmp_path, shards="tar")
    header = (tmp_path / "journal.jsonl").read_bytes().splitlines(keepends=True)[0]
    (tmp_path / "journal.jsonl").write_bytes(header)  # with all shards written, and none noted
    (tmp_path / "shard-000009.tar").write_bytes(b"")
    report = extract(folder, tmp_path, shards="tar")
    assert {path.name for path in tmp_path.glob("shard-*")} == {row.shard for row in report.rows}


def test_shares_have_shards_of_their_own_and_overwriting_takes_all_away(folder, tmp_path):
    for index in range(2):
        extract(folder, tmp_path, shards="safetensors", shard=(index, 2))
    shards = sorted(path.name for path in tmp_path.glob("shard-*"))
    assert {name[:13] for name in shards} == {"shard-0-of-2-", "shard-1-of-2-"}
    with pytest.raises(Exception, match="holds a run with another shards"):
        extract(folder, tmp_path)
    extract(folder, tmp_path, overwrite=True)
    assert not list(tmp_path.glob("shard-*"))


@pytest.mark.parametrize("store", [False, True])
def test_a_safetensors_shard_that_nobody_could_read_becomes_several(folder, expected, tmp_path, monkeypatch, store):
    files = tmp_path / ("store" if store else "out")
    options = {"shards": "safetensors", "shard_mb": 1, **({"store": f"file://{files}"} if store else {})}
    (whole,) = {row.shard for row in extract(folder, tmp_path / "whole", shards="safetensors", shard_mb=1).rows}
    size = int.from_bytes((tmp_path / "whole" / whole).read_bytes()[:8], "little")
    monkeypatch.setattr(shard_files, "MAX_HEADER_BYTES", size - 100)
    report = extract(folder, tmp_path / "out", **options)
    assert {row.shard for row in report.rows} == {"shard-000000-0.safetensors", "shard-000000-1.safetensors"}
    assert {path.name for path in files.glob("shard-*")} == {row.shard for row in report.rows}
    for row in report.rows:
        numpy.testing.assert_array_equal(load_file(files / row.shard)[row.output].numpy(), expected[row.path])
    assert extract(folder, tmp_path / "out", **options).num_resumed == len(NAMES)
    monkeypatch.setattr(shard_files, "MAX_HEADER_BYTES", 100)
    message = r"a \.safetensors file of 1 recordings cannot be read: its header has \d+ bytes, and 100 are allowed$"
    with pytest.raises(OutputError, match=message):
        extract(folder, tmp_path / "out", overwrite=True, **options)


def test_what_killed_processes_have_left_on_the_way_is_taken_away(folder, tmp_path, monkeypatch):
    place = tmp_path / "tmp"
    (place / "daisy-of-mine").mkdir(parents=True)
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    child = os.fork()
    if child == 0:
        with scratch.open_scratch() as folder:
            (folder / "features").mkdir()
            (folder / "features" / "a.npy").write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    with scratch.open_scratch() as mine:
        assert len(list(place.iterdir())) == 3
        assert len(extract(folder, tmp_path / "out", shards="tar").rows) == len(NAMES)
        assert {path.name for path in place.iterdir()} == {mine.name, "daisy-of-mine"}
    assert [path.name for path in place.iterdir()] == ["daisy-of-mine"]


def test_shards_have_recordings_of_all_lengths(tmp_path):
    (tmp_path / "in").mkdir()
    for index in range(60):
        soundfile.write(tmp_path / "in" / f"{index}.wav", numpy.full(1000 + 50 * index, 0.1), 16000)
    rows = extract(tmp_path / "in", tmp_path / "out", shards="tar", batch_sec=0.01, shard_mb=0.02).rows
    means = {
        shard: numpy.mean([row.duration_sec for row in rows if row.shard == shard])
        for shard in {row.shard for row in rows}
    }
    assert len(means) == 4
    assert numpy.std(list(means.values())) < 0.5 * numpy.std([row.duration_sec for row in rows])
    again = extract(tmp_path / "in", tmp_path / "again", shards="tar", batch_sec=0.01, shard_mb=0.02).rows
    assert {row.path: row.shard for row in again} == {row.path: row.shard for row in rows}


def test_impossible_shards(folder, tmp_path):
    with pytest.raises(UsageError, match="shards are tar, parquet or safetensors, found 'zip'"):
        extract(folder, tmp_path, shards="zip")
    with pytest.raises(UsageError, match="shard_mb must be above 0 and finite, found 0"):
        extract(folder, tmp_path, shards="tar", shard_mb=0)


def test_names_in_archives_stay_apart():
    names = ["a.npy", "a.b.npy", "a%2Eb.npy", "x.y/a.b.npy"]
    assert [name_member(name) for name in names] == ["a.npy", "a%2Eb.npy", "a%252Eb.npy", "x.y/a%2Eb.npy"]
