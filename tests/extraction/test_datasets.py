"""The output of an extraction, read back by torch's loaders: everything exactly once."""

import json
import os
import pickle
import shutil

import pytest
import torch
from torch.utils.data import DataLoader

from daisy import UsageError
from daisy.extraction import FeatureDataset, ShardDataset, read_shard
from daisy.extraction.shard_files import KINDS
from tests.extraction import test_shard_files
from tests.extraction.test_shard_files import NAMES, extract

folder, expected = test_shard_files.folder, test_shard_files.expected
"""Recordings, and each one's states from files of their own."""


@pytest.fixture(scope="module")
def shards(folder, tmp_path_factory):
    """An extraction in shards of a kind, made once."""
    made = {}

    def make(kind, **options):
        if kind == "parquet":
            pytest.importorskip("pyarrow", reason="needs pyarrow (the extra parquet)")
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp(kind)
            extract(folder, made[kind], shards=kind, **options)
        return made[kind]

    return make


def index_rows(out):
    rows = json.loads((out / "index.json").read_text())["recordings"]
    return {row["path"]: {name: value for name, value in row.items() if name != "shard"} for row in rows}


def assert_all_once(samples, out, expected):
    assert sorted(row["path"] for _, row in samples) == sorted(expected)
    rows = index_rows(out)
    for states, row in samples:
        assert torch.equal(states, torch.from_numpy(expected[row["path"]]))
        assert {name: value for name, value in row.items() if name != "shard"} == rows[row["path"]]


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_read_whole(shards, expected, kind):
    out = shards(kind)
    assert_all_once(list(DataLoader(ShardDataset(out), batch_size=None)), out, expected)


def test_each_file_is_read_by_one_worker(shards, expected):
    out = shards("tar")
    dataset = ShardDataset(out)
    assert len(dataset.shards) > 2
    assert_all_once(list(DataLoader(dataset, batch_size=None, num_workers=2)), out, expected)
    one = ShardDataset(dataset.shards[:1])  # the other worker has nothing to do
    assert [row["path"] for _, row in DataLoader(one, batch_size=None, num_workers=2)] == [
        row["path"] for _, row in one
    ]


def test_a_share_of_the_files(shards, expected):
    paths = sorted(shards("safetensors").glob("shard-*"))
    parts = [[row["path"] for _, row in ShardDataset(paths[rank::2])] for rank in range(2)]
    assert all(parts)
    assert sorted(parts[0] + parts[1]) == sorted(expected)


def test_what_the_index_no_longer_names_is_not_read(shards, expected, tmp_path):
    """A recording that changed is in a newer shard, too."""
    out = tmp_path / "out"
    shutil.copytree(shards("tar"), out)
    index = json.loads((out / "index.json").read_text())
    old = index["recordings"][0]
    old["shard"], was = "shard-000099.tar", old["shard"]
    shutil.copy(out / was, out / "shard-000099.tar")
    (out / "index.json").write_text(json.dumps(index))
    assert_all_once(list(ShardDataset(out)), out, expected)
    twice = [row["path"] for shard in ShardDataset(out).shards for _, row in read_shard(shard)]
    assert twice.count(old["path"]) == 2


@pytest.mark.parametrize("format", ["safetensors", "npy"])
def test_recordings_by_number(folder, expected, tmp_path, format):
    extract(folder, tmp_path, format=format)
    dataset = FeatureDataset(tmp_path)
    assert len(dataset) == len(NAMES)
    assert_all_once([dataset[index] for index in range(len(dataset))], tmp_path, expected)
    order = [len(NAMES) - 1, 0]
    samples = list(DataLoader(dataset, batch_size=None, sampler=order, num_workers=2))
    assert [row["path"] for _, row in samples] == [dataset.rows[index]["path"] for index in order]


def test_safetensors_shards_by_number(shards, expected):
    out = shards("safetensors")
    dataset = FeatureDataset(out)
    assert_all_once([dataset[index] for index in range(len(dataset))], out, expected)
    copy = pickle.loads(pickle.dumps(dataset))  # as a loader's workers get it, without the files that are open here
    assert_all_once([copy[index] for index in range(len(copy))], out, expected)


def test_all_layers(folder, tmp_path):
    extract(folder, tmp_path, keep="all")
    for states, row in FeatureDataset(tmp_path):
        assert states.shape[0] == row["exit_layer"] + 1


@pytest.mark.parametrize("kind", ["tar", "parquet", "safetensors"])
def test_names_that_are_no_text_are_read_again(folder, tmp_path, kind):
    pytest.importorskip("pyarrow" if kind == "parquet" else "torch")
    (tmp_path / "in").mkdir()
    for source, name in zip(NAMES, (b"a.wav", b"caf\xe9.wav", b"z.wav"), strict=False):
        shutil.copy(folder / source, os.fsencode(tmp_path / "in") + b"/" + name)
    report = extract(tmp_path / "in", tmp_path / kind, shards=kind)
    assert report.failed == {}
    rows = [row for _, row in ShardDataset(tmp_path / kind)]
    name = "caf%25E9" if kind == "tar" else "caf%E9"  # where names are escaped for WebDataset besides
    assert sorted(row["output"] for row in rows) == ["a.safetensors", f"{name}.safetensors", "z.safetensors"]


def test_refusals(shards, folder, tmp_path):
    with pytest.raises(UsageError, match=r"tar shards are read from one end to the other: ShardDataset does that$"):
        FeatureDataset(shards("tar"))
    extract(folder, tmp_path / "files")
    with pytest.raises(UsageError, match=r"has no shard files: FeatureDataset reads a file for each recording$"):
        ShardDataset(tmp_path / "files")
    with pytest.raises(UsageError, match=r"x\.zip: a shard file ends in \.tar, \.parquet, \.safetensors$"):
        ShardDataset(["x.zip"])
    with pytest.raises(UsageError, match=r"x\.zip: a shard file ends in"):
        read_shard("x.zip")
    with pytest.raises(UsageError, match=r"^no shard files$"):
        ShardDataset([])
    with pytest.raises(UsageError, match=r"index\.json: not the index of an extraction \(FileNotFoundError"):
        FeatureDataset(tmp_path)
