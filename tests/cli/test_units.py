import json

import numpy
import pytest
import soundfile
import torch

import daisy
from daisy import audio
from daisy.units import UnitEncoder
from tests.cli.running import run
from tests.conftest import tiny_model


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model, one without heads, recordings at two rates, one that is broken, and a k-means."""
    folder = tmp_path_factory.mktemp("units")
    model = tiny_model(num_units=44)
    daisy.save(model, folder / "model.safetensors")
    daisy.save(daisy.Model(backbone=model.backbone), folder / "bare.safetensors")
    generator = numpy.random.default_rng(0)
    for name, rate in (("a", 16000), ("b", 8000)):
        soundfile.write(folder / f"{name}.wav", 0.1 * generator.standard_normal(rate), rate)
    (folder / "broken.wav").write_bytes(b"RIFF\0\0\0\0WAVEfmt ")
    numpy.save(folder / "km.npy", generator.standard_normal((5, 32)).astype("float32"))
    return folder


def read_units(folder):
    return [json.loads(line)["units"] for line in (folder / "units.jsonl").read_text().splitlines()]


def test_units_of_the_heads(place):
    arguments = ("units", "a.wav", "b.wav", "-c", "model.safetensors", "-p", "fixed", "--set", "layer=3")
    result = run(*arguments, "-o", "heads", "--form", "jsonl,km", cwd=place)
    assert (result.returncode, result.stderr) == (0, "")
    units = UnitEncoder(daisy.load(place / "model.safetensors"), "fixed", layer=3)
    expected = [units(audio.read(place / name))[0].units for name in ("a.wav", "b.wav")]
    assert read_units(place / "heads") == expected
    assert "units 0 to 39: 98 frames, " in result.stdout
    assert "3 of 4" in result.stdout
    again = run(*arguments, "-o", "heads", "--form", "text", cwd=place)
    assert "2 of them were finished before" in again.stdout
    index = run("index", "heads", cwd=place)
    assert index.stdout == "heads/units.json and units: 2 recordings\n"


def test_a_run_with_a_budget_of_time_goes_on(place):
    call = ("units", "a.wav", "b.wav", "-c", "model.safetensors", "-p", "fixed", "--set", "layer=3", "-o", "timed")
    begun = run(*call, "--deadline-ms", "1e6", cwd=place)
    assert begun.returncode == 0, begun.stderr
    again = run(*call, "--deadline-ms", "1e6", cwd=place)
    assert "2 of them were finished before" in again.stdout
    assert "holds a run with another policy" in run(*call, "--deadline-ms", "2e6", cwd=place).stderr


def test_a_kmeans_stops_at_its_layer(place):
    result = run(
        *("units", "a.wav", "broken.wav", "-c", "bare.safetensors", "--kmeans", "km.npy", "--layer", "2"),
        *("-o", "kmeans", "--dedup"),
        cwd=place,
    )
    assert result.returncode == 1
    assert result.stderr.count("broken.wav") == 1
    centres = torch.from_numpy(numpy.load(place / "km.npy"))
    units = UnitEncoder(daisy.load(place / "bare.safetensors"), kmeans=centres, layer=2)
    (sequence,) = units(audio.read(place / "a.wav"))
    assert read_units(place / "kmeans") == [sequence.deduplicate()[0]]
    assert "2 of 4" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-c", "bare.safetensors"), "has no exit heads, which would tell units"),
        (("-c", "model.safetensors", "--kmeans", "km.npy"), "none is given; add --layer N"),
        (("-c", "model.safetensors", "--layer", "2"), "a cut is --policy fixed --set layer=N"),
        (("-c", "model.safetensors", "--kmeans", "km.npy", "--layer", "1", "-p", "never"), "leave out --policy"),
        (("-c", "model.safetensors", "--form", "csv", "-p", "never"), "unknown form 'csv'"),
        (("-c", "model.safetensors", "--kmeans", "model.safetensors", "--layer", "1"), "holds no k-means centres"),
        (("-c", "model.safetensors", "-p", "entropy"), "policy entropy needs threshold"),
    ],
)
def test_refusals(arguments, message, place):
    result = run("units", "a.wav", *arguments, "-o", "refused", cwd=place)
    assert result.returncode == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (place / "refused").exists()
