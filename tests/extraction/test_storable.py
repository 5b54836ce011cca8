"""Values that no feature file may hold, and names that no file can have: each such recording is refused."""

import dataclasses
import json
import os
import re

import numpy
import pytest
import soundfile
import torch
from safetensors.torch import load_file

from daisy import EarlyExitEncoder, audio, policies
from daisy.errors import AudioError
from daisy.extraction import Extractor
from daisy.extraction.feature_files import check_storable
from tests.conftest import PRE_NORM, tiny_model

REACHED = re.compile(
    r'the states of layer (\d) reach (\S+), and float16 ends at 65504; pass dtype="float32" and another folder'
)


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "in"
    place.mkdir()
    generator = torch.Generator().manual_seed(0)
    for name, length in (("short", 8000), ("long", 40000)):
        wave = 0.1 * torch.randn(length, generator=generator)
        soundfile.write(place / f"{name}.wav", wave.numpy(), 16000, subtype="FLOAT")
    return place


def extract(folder, out, bias=1e5, layer=2, keep="last", **options):
    """One dimension of layer 2 is moved by ``bias``; the layers behind it add to it, as there is no norm between."""
    model = tiny_model(dataclasses.replace(PRE_NORM, num_layers=3))
    with torch.no_grad():
        model.backbone.encoder.transformer.layers[1].feed_forward.output_dense.bias[3] = bias
    encoder = EarlyExitEncoder(model.backbone, None, policies.Fixed(layer=layer), keep=keep)
    return Extractor(encoder, out, checkpoint="0" * 64, **options).run(audio.find([folder]))


WINDOWS = {"window_sec": 1.2, "context_sec": 0.3}


@pytest.mark.parametrize("options", [{}, WINDOWS], ids=["whole", "windows"])
@pytest.mark.parametrize("format", ["safetensors", "npy"])
def test_states_beyond_float16_are_refused_and_leave_nothing(folder, tmp_path, format, options):
    out = tmp_path / "out"
    report = extract(folder, out, format=format, dtype="float16", **options)
    assert not report.rows
    for name in ("short", "long"):
        said = REACHED.fullmatch(str(report.failed[str(folder / f"{name}.wav")]))
        assert said[1] == "2"
        assert float(said[2]) == pytest.approx(1e5, rel=1e-3)
    assert {path.name for path in out.iterdir()} == {"index.json", "index.csv", "journal.jsonl"}
    assert len(json.loads((out / "index.json").read_text())["failed"]) == 2
    report = extract(folder, out, format=format, dtype="float32", **options)  # nothing was finished in the folder
    assert len(report.rows) == 2
    for row in report.rows:
        path = out / row.output
        states = torch.from_numpy(numpy.load(path)) if format == "npy" else load_file(path)["states"]
        assert states.isfinite().all()
        assert float(states.max()) == pytest.approx(1e5, rel=1e-3)


def test_layers_before_the_large_one_are_written(folder, tmp_path):
    assert len(extract(folder, tmp_path / "first", dtype="float16", layer=1).rows) == 2
    report = extract(folder, tmp_path / "all", dtype="float16", keep="all")
    assert [REACHED.fullmatch(str(error))[1] for error in report.failed.values()] == ["2", "2"]


@pytest.mark.parametrize(("bias", "said"), [(torch.nan, "numbers of layer 2 are NaN"), (torch.inf, "layer 2 are in")])
@pytest.mark.parametrize("options", [{}, WINDOWS], ids=["whole", "windows"])
def test_what_is_no_number_is_refused_in_any_type(folder, tmp_path, bias, said, options):
    report = extract(folder, tmp_path / "out", bias=bias, **options)
    assert not report.rows
    assert len(report.failed) == 2
    assert all(said in str(error) for error in report.failed.values())
    assert not list((tmp_path / "out").glob("*.safetensors"))


def test_the_limit_is_where_float16_rounds_to_infinity():
    for largest in (65504.0, 65519.99, -65519.99):
        states = torch.tensor([[0.0, largest]])
        check_storable(states, "float16", 1)
        assert states.half().isfinite().all()
    for largest in (65520.0, -65520.0, 1e30):
        states = torch.tensor([[[1.0, 2.0]], [[largest, 0.0]]])
        assert states.half().isinf().any()
        with pytest.raises(AudioError, match="float16 ends") as refusal:
            check_storable(states, "float16", 7)
        assert REACHED.fullmatch(str(refusal.value)).groups() == ("8", f"{abs(largest):.7g}")
        check_storable(states, "float32", 7)


def test_names_as_long_as_can_be(folder, tmp_path):
    """The ending of a feature file makes a name longer than the recording's."""
    wave = (folder / "short.wav").read_bytes()
    fits, too_long = "é" * 121 + "a.wav", "a" * 251 + ".wav"
    assert len(os.fsencode(fits.replace(".wav", ".safetensors"))) == len(too_long) == 255
    for name in (fits, too_long):
        (folder / name).write_bytes(wave)
    report = extract(folder, tmp_path / "out", bias=0.0)
    assert {row.output for row in report.rows} == {
        f"{name}.safetensors" for name in ("short", "long", fits.removesuffix(".wav"))
    }
    (said,) = map(str, report.failed.values())
    assert said.startswith("no file can be named aaaa")
    assert said.endswith("aaa.safetensors (263 bytes: File name too long); rename the recording")
    assert len(extract(folder, tmp_path / "npy", bias=0.0, format="npy").rows) == 4
    long = extract(folder, tmp_path / "windows", bias=0.0, **WINDOWS)
    assert (len(long.rows), len(long.failed)) == (3, 1)
    below = tmp_path / "corpus" / "n"  # of which there is no folder among the outputs yet
    below.mkdir(parents=True)
    (below / too_long).write_bytes(wave)
    (below / "z.wav").write_bytes(wave)
    report = extract(below.parent, tmp_path / "below", bias=0.0)
    assert ([row.output for row in report.rows], len(report.failed)) == (["n/z.safetensors"], 1)
