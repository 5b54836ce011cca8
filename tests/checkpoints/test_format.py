import json
import os

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import daisy
from daisy import CheckpointError, EarlyExitEncoder, OutputError, checkpoints, policies
from tests.conftest import tiny_model


def test_round_trip(model, waveforms, tmp_path):
    model.policies = {"entropy": {"threshold": 1.25}}
    model.provenance = {"source": "a test"}
    daisy.save(model, tmp_path / "m.safetensors")
    again = daisy.load(tmp_path / "m.safetensors")
    assert json.dumps(again.config()) == json.dumps(model.config())
    assert again.policy("entropy") == policies.Entropy(threshold=1.25)
    assert again.policy("entropy", threshold=2.0) == policies.Entropy(threshold=2.0)
    runs = [
        EarlyExitEncoder(m.backbone, m.heads, policies.Never(), scores=["entropy"])(waveforms) for m in (model, again)
    ]
    assert torch.equal(runs[0].scores["entropy"], runs[1].scores["entropy"])
    assert all(torch.equal(a, b) for a, b in zip(runs[0].states, runs[1].states, strict=True))


def test_half_precision_halves_the_file_and_loads_as_float32(tmp_path):
    model = tiny_model()
    daisy.save(model, tmp_path / "full.safetensors")
    daisy.save(model, tmp_path / "half.safetensors", dtype=torch.float16)
    full, half = (os.path.getsize(tmp_path / f"{name}.safetensors") for name in ("full", "half"))
    weights = sum(p.numel() for part in model.parts().values() for p in part.parameters())
    assert 2 * weights <= full - half < 2 * weights + 1000  # and a few digits in the header
    assert daisy.load(tmp_path / "half.safetensors").backbone.dtype == torch.float32


def test_file_states_its_format(tmp_path):
    daisy.save(tiny_model(), tmp_path / "m.safetensors")
    with safe_open(tmp_path / "m.safetensors", framework="pt") as file:
        config = json.loads(file.metadata()["daisy"])
    assert config["format_version"] == 1
    assert config["backbone"]["num_layers"] == 4


def damage(path, how):
    with safe_open(path, framework="pt") as file:
        metadata, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    how(metadata, tensors)
    save_file(tensors, path, metadata)


def edit(metadata, **changes):
    metadata["daisy"] = json.dumps(json.loads(metadata["daisy"]) | changes)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (lambda m, t: t.pop("heads.units.0.bias"), "missing heads.units.0.bias"),
        (lambda m, t: t.update(other=torch.zeros(1)), "not part of this model other"),
        (
            lambda m, t: t.update({"heads.units.0.bias": torch.zeros(3)}),
            r"heads.units.0.bias is \(3,\) where .* \(11,\)",
        ),
        (
            lambda m, t: m.pop("daisy"),
            "a .safetensors file, but not a daisy checkpoint; other forms are read by daisy.checkpoints.convert",
        ),
        (lambda m, t: m.update(daisy='{"format_version": 2}'), "format version 2, this daisy reads 1; update daisy"),
        (lambda m, t: m.update(daisy="{"), "damaged configuration"),
        (lambda m, t: m.update(daisy='{"format_version": 1}'), "the configuration has no backbone"),
        (lambda m, t: m.update(daisy="[]"), "damaged configuration"),
        (lambda m, t: edit(m, policies=None), "damaged configuration"),
        (lambda m, t: edit(m, policies={"entropy": {"threshold": "low"}}), "threshold must be a finite number"),
        (
            lambda m, t: edit(m, final_head={"num_units": -3, "final_dim": 4}),
            "final_dim and num_units must be whole numbers, at least 1, found 4 and -3",
        ),
    ],
)
def test_damaged_files_are_refused_by_name(tmp_path, how, message):
    path = tmp_path / "m.safetensors"
    daisy.save(tiny_model(), path)
    damage(path, how)
    with pytest.raises(CheckpointError, match=message) as error:
        daisy.load(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_truncated_missing_and_foreign_files(tmp_path):
    path = tmp_path / "m.safetensors"
    daisy.save(tiny_model(), path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(CheckpointError, match="not a whole .safetensors file"):
        daisy.load(path)
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="other forms are read by daisy.checkpoints.convert"):
        daisy.load(tmp_path / "other.pt")
    with pytest.raises(CheckpointError, match="no such checkpoint; bundled models: daisy-mini"):
        daisy.load("daisy-minni")
    with pytest.raises(CheckpointError, match="is a folder"):
        daisy.load(tmp_path)


def test_half_precision_that_would_overflow_is_refused(tmp_path):
    model = tiny_model()
    model.heads.units[1].weight.data[0, 0] = 1e5
    with pytest.raises(CheckpointError, match=r"heads\.units\.1\.weight would not be finite in torch\.float16"):
        daisy.save(model, tmp_path / "m.safetensors", dtype=torch.float16)
    daisy.save(model, tmp_path / "m.safetensors")


def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "m.safetensors"
    daisy.save(tiny_model(), path)
    before = path.read_bytes()

    def full_disk(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OutputError, match="No space left on device"):
        daisy.save(tiny_model(seed=5), path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["m.safetensors"]


def test_digest_is_of_the_file(tmp_path):
    daisy.save(tiny_model(), tmp_path / "a.safetensors")
    daisy.save(tiny_model(), tmp_path / "b.safetensors")
    daisy.save(tiny_model(seed=1), tmp_path / "c.safetensors")
    a, b, c = (checkpoints.digest(tmp_path / f"{name}.safetensors") for name in "abc")
    assert a == b != c
    assert len(a) == 64
