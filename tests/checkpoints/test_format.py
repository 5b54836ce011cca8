import hashlib
import json
import logging
import os

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import daisy
from daisy import BackboneConfig, CheckpointError, EarlyExitEncoder, OutputError, checkpoints, policies
from tests.cli.running import run
from tests.conftest import KIN_KINDS, POST_NORM, RARE_KINDS, tiny_model


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


@pytest.mark.parametrize("name", KIN_KINDS)
def test_hubert_s_kin_keeps_what_it_has_in_other_places(name, tmp_path):
    model = tiny_model(KIN_KINDS[name])
    daisy.save(model, tmp_path / "m.safetensors")
    again = daisy.load(tmp_path / "m.safetensors")
    assert again.backbone.config == KIN_KINDS[name]
    for key, weight in model.state_dict().items():
        assert torch.equal(again.state_dict()[key], weight)


def test_a_hubert_s_metadata_is_the_same_as_ever():
    fields = set(POST_NORM.to_dict())
    assert not fields & {"final_norm", "relative_buckets", "relative_max_distance", "pos_stack"}
    assert set(KIN_KINDS["WavLM, pre-norm"].to_dict()) - fields == {"relative_buckets"}
    assert set(KIN_KINDS["data2vec"].to_dict()) - fields == {"pos_stack"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"relative_buckets": 18}, "relative_buckets 18 is not a multiple of 4"),
        ({"relative_buckets": 0}, "relative_buckets must be a whole number, at least 1, found 0"),
        ({"relative_buckets": 320, "relative_max_distance": 80}, "relative_max_distance 80 is within relative_buckets"),
        ({"pos_stack": 2, "pos_batch_norm": True}, "pos_stack and pos_batch_norm exclude each other"),
    ],
)
def test_positions_that_no_network_has(changes, message):
    with pytest.raises(daisy.CheckpointError, match=message):
        BackboneConfig.from_dict({**POST_NORM.to_dict(), **changes})


@pytest.mark.parametrize("name", RARE_KINDS)
def test_statistics_of_a_batch_norm_stay_whole_in_half_a_file(name, tmp_path):
    model = tiny_model(RARE_KINDS[name])
    daisy.save(model, tmp_path / "m.safetensors", dtype=torch.float16)
    again = daisy.load(tmp_path / "m.safetensors")
    assert again.backbone.config == model.backbone.config
    ours, theirs = (m.backbone.encoder.transformer.pos_conv_embed.batch_norm for m in (model, again))
    assert torch.equal(ours.running_var, theirs.running_var)
    assert torch.equal(ours.running_mean, theirs.running_mean)


def test_half_precision_halves_the_file_and_loads_as_float32(tmp_path):
    model = tiny_model()
    daisy.save(model, tmp_path / "full.safetensors")
    daisy.save(model, tmp_path / "half.safetensors", dtype=torch.float16)
    full, half = (os.path.getsize(tmp_path / f"{name}.safetensors") for name in ("full", "half"))
    weights = sum(p.numel() for part in model.parts().values() for p in part.parameters())
    assert 2 * weights <= full - half < 2 * weights + 1000  # and a few digits in the header
    assert daisy.load(tmp_path / "half.safetensors").backbone.dtype == torch.float32


def read_parts(path):
    with safe_open(path, framework="pt") as file:
        return file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_digest_is_of_configuration_and_tensors(dtype, tmp_path, caplog):
    """Computed here by hand, as the format says it."""
    daisy.save(tiny_model(), tmp_path / "m.safetensors", dtype=dtype)
    metadata, tensors = read_parts(tmp_path / "m.safetensors")
    config = json.loads(metadata["daisy"])
    state = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        state.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        state.update(bytes(tensor.reshape(-1).view(torch.uint8).tolist()))
    digest = config.pop("digest")
    state.update(json.dumps(config, sort_keys=True).encode())
    assert digest == state.hexdigest()
    daisy.load(tmp_path / "m.safetensors")
    assert not caplog.records


def test_the_digest_is_of_what_is_read_back(tmp_path):
    """As text, 10 stands before 2; as a number behind it. And numbers beside text have no order at all."""
    model = tiny_model()
    model.provenance = {"epochs": {2: 0.5, 10: 0.25}, "mixed": {1: "a", "b": (2, None)}}
    daisy.save(model, tmp_path / "m.safetensors")
    again = daisy.load(tmp_path / "m.safetensors")
    assert again.provenance == {"epochs": {"2": 0.5, "10": 0.25}, "mixed": {"1": "a", "b": [2, None]}}


def test_of_variances_the_root_is_judged(tmp_path):
    """Features of 1e6 are unusual; their variance, 1e12, is more than any weight."""
    path, model = tmp_path / "m.safetensors", tiny_model(RARE_KINDS["post-norm"])
    batch_norm = model.backbone.encoder.transformer.pos_conv_embed.batch_norm
    batch_norm.running_var[3] = model.heads.regressors[1].variance[3] = 1e12
    daisy.save(model, path)
    again = daisy.load(path)
    assert torch.equal(again.heads.regressors[1].variance, model.heads.regressors[1].variance)
    for statistics, value, limit in (
        (batch_norm.running_var, 1e21, "1e\\+20"),
        (batch_norm.running_mean, 1e11, "1e\\+10"),
    ):
        before = statistics[3].item()
        statistics[3] = value
        with pytest.raises(CheckpointError, match=f"weights that are beyond {limit}: "):
            daisy.save(model, path)
        statistics[3] = before


@pytest.mark.parametrize(
    "change",
    [
        lambda m, t: (
            t["backbone.encoder.transformer.layers.2.attention.k_proj.weight"].view(torch.int32)[1, 1].bitwise_xor_(1)
        ),
        lambda m, t: t.update({"heads.units.0.bias": t["heads.units.0.bias"].half()}),
        lambda m, t: t.update(
            {"heads.units.0.bias": t["heads.units.1.bias"], "heads.units.1.bias": t["heads.units.0.bias"]}
        ),
        lambda m, t: edit(m, backbone={**json.loads(m["daisy"])["backbone"], "normalize": True}),
        lambda m, t: edit(m, final_head={"final_dim": 8, "num_units": 11, "temperature": 0.2}),
        lambda m, t: edit(m, policies={"entropy": {"threshold": 1.2}}),
        lambda m, t: edit(m, digest="0" * 64),
    ],
    ids=["one bit", "type", "names", "normalize", "temperature", "policy", "digest"],
)
def test_other_content_than_was_written_is_refused(change, tmp_path):
    path = tmp_path / "m.safetensors"
    model = tiny_model()
    model.policies = {"entropy": {"threshold": 1.25}}
    daisy.save(model, path)
    damage(path, lambda metadata, tensors: None)
    daisy.load(path)  # written by another program, the same content
    damage(path, change)
    with pytest.raises(CheckpointError) as error:
        daisy.load(path)
    assert str(error.value) == f"{path}: damaged: the content is not what was written (its digest); get the file again"


def test_a_file_from_before_there_were_digests_loads_with_a_note(tmp_path, caplog, monkeypatch):
    path = tmp_path / "m.safetensors"
    daisy.save(tiny_model(), path)
    damage(path, forget_digest)
    again = daisy.load(path)
    (record,) = caplog.records
    assert (record.name.partition(".")[0], record.levelname) == ("daisy", "WARNING")
    assert record.getMessage().startswith(f"{path}: written before checkpoints had a digest of their content")
    caplog.clear()
    daisy.save(again, path)
    daisy.load(path)
    daisy.load("daisy-mini")
    assert not caplog.records
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # pytest's: a program has none, and prints what is logged
    done = run("info", path, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    damage(path, forget_digest)
    assert run("info", path, cwd=tmp_path).stderr.startswith(f"{path}: written before checkpoints had a digest")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("older", [False, True])
def test_weights_that_are_no_numbers_are_refused(value, older, tmp_path):
    path = tmp_path / "m.safetensors"
    daisy.save(tiny_model(), path)
    damage(path, lambda m, t: t["heads.units.1.weight"].view(-1)[7:8].fill_(value))
    if older:
        damage(path, forget_digest)
    with pytest.raises(CheckpointError, match=r"weights that are not finite: heads\.units\.1\.weight; get the file"):
        daisy.load(path)


def test_a_configuration_allocates_nothing_that_the_tensors_do_not_have(tmp_path):
    """A terabyte, if it did."""
    path = tmp_path / "m.safetensors"
    for changes in ({"ffn_width": 2**40}, {"num_layers": 10**9}, {"width": 2**24, "num_heads": 1, "pos_groups": 1}):
        daisy.save(tiny_model(), path)
        damage(path, lambda m, t, new=changes: edit(m, backbone={**json.loads(m["daisy"])["backbone"], **new}))
        with pytest.raises(
            CheckpointError, match=r"the configuration says|exit heads for 4 layers of width 32"
        ) as error:
            daisy.load(path)
        assert "\n" not in str(error.value)


def test_layers_that_are_only_claimed_are_not_built(tmp_path):
    path, model = tmp_path / "m.safetensors", tiny_model()
    model.heads = None
    daisy.save(model, path)
    damage(path, lambda m, t: edit(m, backbone={**json.loads(m["daisy"])["backbone"], "num_layers": 5000}))
    with pytest.raises(CheckpointError, match=r"the configuration says 5000 layers, and there are \d+ tensors"):
        daisy.load(path)


def test_loading_draws_no_random_numbers(tmp_path):
    daisy.save(tiny_model(), tmp_path / "m.safetensors")
    torch.manual_seed(3)
    before = torch.get_rng_state()
    daisy.load(tmp_path / "m.safetensors")
    assert torch.equal(torch.get_rng_state(), before)


def test_file_states_its_format(tmp_path):
    daisy.save(tiny_model(), tmp_path / "m.safetensors")
    with safe_open(tmp_path / "m.safetensors", framework="pt") as file:
        config = json.loads(file.metadata()["daisy"])
    assert config["format_version"] == 1
    assert config["backbone"]["num_layers"] == 4


def damage(path, how):
    metadata, tensors = read_parts(path)
    how(metadata, tensors)
    save_file(tensors, path, metadata)


def edit(metadata, **changes):
    metadata["daisy"] = json.dumps(json.loads(metadata["daisy"]) | changes)


def forget_digest(metadata, tensors):
    config = json.loads(metadata["daisy"])
    del config["digest"]
    metadata["daisy"] = json.dumps(config)


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
        (lambda m, t: edit(m, provenance="a test"), r"damaged configuration \(provenance must be an object\)"),
        (lambda m, t: edit(m, backbone="base"), r"damaged configuration \(backbone must be an object\)"),
        (lambda m, t: t.update({"heads.units.0.bias": torch.zeros(11).int()}), "heads.units.0.bias is torch.int32, no"),
        (
            lambda m, t: edit(m, heads={**json.loads(m["daisy"])["heads"], "num_layers": 3}),
            "exit heads for 3 layers of width 32, and a backbone with 4 of width 32",
        ),
        (lambda m, t: edit(m, heads={**json.loads(m["daisy"])["heads"], "num_units": 0}), "num_units must be a whole"),
        (
            lambda m, t: edit(m, heads={**json.loads(m["daisy"])["heads"], "regressors": 1}),
            "regressors must be true or",
        ),
        (
            lambda m, t: edit(m, final_head={"num_units": 11, "final_dim": 8, "temperature": 0}),
            "temperature must be a number above 0, found 0",
        ),
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
    model.heads.units[1].weight.data[0, 0] = torch.nan
    with pytest.raises(CheckpointError, match=r"weights that are not finite: heads\.units\.1\.weight$"):
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
