"""Where daisy extract computes and where its files go: valid and invalid combinations of options."""

import sys
import tarfile

import numpy
import pytest
import soundfile

import daisy
from daisy.distributed import cluster
from daisy.extraction.extracted_features import Extraction
from tests.cli.running import run
from tests.conftest import tiny_model


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("engines")
    daisy.save(tiny_model(), folder / "tiny.safetensors")
    generator = numpy.random.default_rng(0)
    (folder / "speech").mkdir()
    for index in range(3):
        soundfile.write(folder / "speech" / f"{index}.wav", 0.1 * generator.standard_normal(6000), 16000)
    return folder


EXTRACT = ("extract", "speech", "-c", "tiny.safetensors", "-p", "never", "-o")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("out", "--workers", "2"), "--cpus-per-worker and --gpus-per-worker are of --engine ray"),
        (("out", "--engine", "ray", "--device", "cuda"), "for --engine ray give --gpus-per-worker"),
        (
            ("out", "--engine", "ray", "--gpus-per-worker", "1", "--deadline-ms", "5"),
            "--deadline-ms is measured on this machine's cores, not on the workers' GPUs: --deadline-macs",
        ),
        (("s3://bucket/run",), "--out s3://bucket/run needs --journal FOLDER too"),
        (("out", "--journal", "journal"), "--journal is for results at a URL"),
    ],
)
def test_what_does_not_go_together(place, arguments, message):
    done = run(*EXTRACT, *arguments, cwd=place)
    assert done.returncode == 2
    assert message in done.stderr
    assert not (place / "out").exists()


def test_units_are_told_in_actors_too(place):
    """What it does there is in tests/distributed/test_units.py."""
    done = run("units", "speech", "-c", "tiny.safetensors", "-o", "units", "--workers", "2", cwd=place)
    assert (done.returncode, "are of --engine ray" in done.stderr) == (2, True)


def test_libraries_that_are_missing(place, monkeypatch):
    for name in ("ray", "fsspec", "fsspec.core", "pyarrow", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, name, None)
    done = run(*EXTRACT, "out", "--engine", "ray", cwd=place)
    assert (done.returncode, done.stderr) == (
        2,
        "daisy: Ray is not installed; pip install 'daisy-speech[ray]' has it\n",
    )
    done = run(*EXTRACT, "s3://bucket/run", "--journal", "journal", cwd=place)
    assert (done.returncode, done.stderr) == (
        2, "daisy: fsspec is not installed; pip install 'daisy-speech[storage]' has it\n")  # fmt: skip
    done = run(*EXTRACT, "out", "--shards", "parquet", cwd=place)
    assert done.stderr.endswith("is not installed; pip install 'daisy-speech[storage]' has it\n")


def test_shards(place):
    assert run(*EXTRACT, "shards", "--shards", "tar", cwd=place).returncode == 0
    with tarfile.open(place / "shards" / "shard-000000.tar") as archive:
        names = {f"{index}.{ending}" for index in range(3) for ending in ("safetensors", "json")}
        assert set(archive.getnames()) == names
    with pytest.raises(daisy.UsageError, match="features are in shard files, and units are made of a file for each"):
        Extraction(place / "shards")


def test_impossible_workers():
    with pytest.raises(daisy.UsageError, match="a worker needs 1 core at least, not 0"):
        cluster.Share(0)
    with pytest.raises(daisy.UsageError, match=r"a part of one, or a whole number of them, not 1\.5"):
        cluster.Share(1, 1.5)
    assert str(cluster.Share(2, 0.5)) == "2 cores and 0.5 GPU"


def test_room_for_workers():
    """Of each machine by itself, as no worker is on two."""

    class Ray:
        @staticmethod
        def nodes():
            sizes = [{"CPU": 5.0, "GPU": 1.0}, {"CPU": 3.0}, {"CPU": 16.0, "GPU": 8.0}]
            return [{"Alive": index < 2, "Resources": resources} for index, resources in enumerate(sizes)]

    assert [cluster.count_places(Ray, cluster.Share(*share)) for share in ((1,), (2,), (1, 0.5), (1, 1), (4, 1))] == [
        8, 3, 2, 1, 1]  # fmt: skip
