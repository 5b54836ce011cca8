"""daisy extract --engine ray."""

import csv

import numpy
import pytest
import soundfile

import daisy
from tests.cli.running import run
from tests.conftest import tiny_model


@pytest.fixture
def place(tmp_path):
    daisy.save(tiny_model(), tmp_path / "tiny.safetensors")
    generator = numpy.random.default_rng(0)
    (tmp_path / "speech").mkdir()
    for index in range(3):
        soundfile.write(tmp_path / "speech" / f"{index}.wav", 0.1 * generator.standard_normal(6000), 16000)
    return tmp_path


EXTRACT = ("extract", "speech", "-c", "tiny.safetensors", "-p", "never", "-o")


def test_the_command_line_with_shards(place, cluster):
    done = run(*EXTRACT, "ray", "--engine", "ray", "--workers", "1", "--shards", "safetensors", cwd=place)
    assert done.returncode == 0, done.stderr
    assert "1 worker on 1 machine, the first after " in done.stdout
    assert " audio hours an hour, mean exit layer 4.00\n" in done.stdout
    rows = list(csv.DictReader((place / "ray" / "index.csv").read_text().splitlines()))
    assert [(row["shard"], row["output"]) for row in rows] == [
        ("shard-000000.safetensors", f"{index}.safetensors") for index in range(3)]  # fmt: skip
    assert (place / "ray" / "shard-000000.safetensors").is_file()
