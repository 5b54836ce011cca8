"""A model as a torch module, and the encoders made from it."""

import copy
import dataclasses

import pytest
import torch

import daisy
from daisy import CheckpointError, EarlyExitEncoder, PolicyError, UsageError, checkpoints, policies
from daisy.policies import write_policy
from tests.conftest import KINDS, POST_NORM, assert_same_output, tiny_model


@pytest.fixture(scope="module")
def mini():
    return daisy.load("daisy-mini")


def write_for(path, checkpoint, policy, **more):
    details = {"target": {}, "attained": {}, "data": {}, "checkpoint": "tiny"}
    write_policy(path, policy, digest=checkpoints.digest(checkpoint), **details, **more)


@pytest.fixture
def saved(tmp_path):
    daisy.save(tiny_model(POST_NORM), tmp_path / "tiny.safetensors")
    return daisy.load(tmp_path / "tiny.safetensors")


def test_one_call_gives_the_encoder_that_three_objects_give(mini, waveforms):
    encoder = mini.encoder("forecast")
    assert encoder.policy == mini.policy("forecast")
    by_hand = EarlyExitEncoder(mini.backbone, mini.heads, mini.policy("forecast"))
    assert_same_output(encoder(waveforms), by_hand(waveforms))
    assert mini.encoder().policy == encoder.policy
    assert (encoder.keep, encoder.dtype, encoder.score_stride, encoder.fast) == ("all", "float32", 1, True)
    assert encoder.backbone is mini.backbone


def test_settings_replace_the_models_defaults(mini, waveforms):
    assert mini.encoder("entropy").policy == policies.Entropy(**mini.policies["entropy"])
    encoder = mini.encoder("entropy", threshold=1.2)
    assert encoder.policy == policies.Entropy(threshold=1.2)
    assert mini.policies["entropy"] != {"threshold": 1.2}
    by_hand = EarlyExitEncoder(mini.backbone, mini.heads, policies.Entropy(threshold=1.2))
    assert_same_output(encoder(waveforms), by_hand(waveforms))
    patient = mini.encoder("patience", tolerance=0.3, patience=2).policy
    assert patient == policies.Patience(tolerance=0.3, patience=2)
    cheaper = mini.encoder("plateau", price=0.9).policy
    assert cheaper == dataclasses.replace(mini.policy("plateau"), price=0.9)


def test_options_reach_the_encoder(mini):
    encoder = mini.encoder("fixed", layer=3, keep="last", scores=["entropy"], score_stride=4, dtype=torch.bfloat16)
    assert encoder.policy == policies.Fixed(layer=3)
    assert (encoder.keep, encoder.score_stride, encoder.dtype) == ("last", 4, "bfloat16")
    assert encoder.score_names == ["entropy"]
    assert not mini.encoder("never", fast=False).fast


def test_a_policy_object_is_used_as_it_is(mini):
    policy = policies.Deadline(budget=1.0, front_cost=(0, 0, 0), layer_cost=(0.3, 0, 0), then=mini.policy("entropy"))
    encoder = mini.encoder(policy)
    assert encoder.policy is policy
    assert encoder.score_names == ["entropy", "num_frames"]


@pytest.mark.parametrize("kind", [str, lambda path: path])
def test_a_policy_file_brings_its_stride(saved, tmp_path, kind):
    policy = policies.Entropy(threshold=1.9)
    write_for(tmp_path / "policy.json", saved.path, policy, score_stride=3)
    encoder = saved.encoder(kind(tmp_path / "policy.json"))
    assert (encoder.policy, encoder.score_stride) == (policy, 3)
    assert saved.encoder(kind(tmp_path / "policy.json"), score_stride=1).score_stride == 1
    assert saved.encoder(policy).score_stride == 1


def test_policy_files_that_are_not_for_this_model(saved, tmp_path):
    path = tmp_path / "policy.json"
    daisy.save(tiny_model(POST_NORM, seed=5), tmp_path / "other.safetensors")
    write_for(path, tmp_path / "other.safetensors", policies.Entropy(threshold=1.9))
    digests = [checkpoints.digest(tmp_path / f"{name}.safetensors")[:12] for name in ("other", "tiny")]
    with pytest.raises(PolicyError) as error:
        saved.encoder(path)
    assert str(error.value) == (
        f"{path}: was calibrated for tiny ({digests[0]}), not for tiny ({digests[1]}): thresholds mean nothing for "
        "another model; calibrate one for it"
    )
    write_for(path, saved.path, policies.Fixed(layer=12))
    with pytest.raises(PolicyError, match="policy fixed: layer must be at most 4, found 12"):
        saved.encoder(path)
    with pytest.raises(PolicyError, match=r"gone\.json: No such file or directory"):
        saved.encoder(tmp_path / "gone.json")
    path.write_text("{")
    with pytest.raises(PolicyError, match=r"policy\.json: not a policy file"):
        saved.encoder(str(path))
    with pytest.raises(PolicyError, match=r"is for one checkpoint's file, and this model was not read from one"):
        tiny_model(POST_NORM).encoder(path)


def test_a_policy_file_keeps_its_layers_at_other_exits(saved, tmp_path):
    """A file says no exits where it was set at all of them."""
    path = tmp_path / "policy.json"
    write_for(path, saved.path, policies.Fixed(layer=3))
    assert saved.encoder(path, exits=[4, 3, 1]).policy == policies.Fixed(layer=2)
    assert saved.encoder(path, exits=[1, 2, 3, 4]).policy == policies.Fixed(layer=3)
    with pytest.raises(PolicyError, match=r"policy\.json: policy fixed: no exit at layer 3; exits are at 2, 4"):
        saved.encoder(path, exits=[2, 4])
    write_for(path, saved.path, policies.Window(threshold=1.0, first=2, last=4))
    assert saved.encoder(path, exits=(2, 4)).policy == policies.Window(threshold=1.0, first=1, last=2)
    write_for(path, saved.path, policies.Window(threshold=1.0, first=2, last=9))
    with pytest.raises(PolicyError, match="a damaged policy file"):
        saved.encoder(path, exits=(2, 4))
    write_for(path, saved.path, policies.Patience(tolerance=0.2))
    with pytest.raises(PolicyError, match="at layers 1, 2, 3, 4, and here they are at others: patience compares each"):
        saved.encoder(path, exits=(2, 4))
    write_for(path, saved.path, policies.Fixed(layer=2), exits=(1, 3, 4))
    assert saved.encoder(path, exits=(4, 1, 3)).policy == policies.Fixed(layer=2)
    with pytest.raises(PolicyError, match="was calibrated for exits at layers 1, 3, 4, and here they are at others"):
        saved.encoder(path)


@pytest.mark.parametrize(
    ("policy", "settings", "message"),
    [
        ("plateu", {}, "unknown policy 'plateu': did you mean plateau"),
        ("entropy", {"treshold": 1.0}, "policy entropy: unknown setting 'treshold': did you mean threshold?"),
        ("entropy", {"threshold": -1.0}, "policy entropy: threshold must be at least 0 nats, found -1.0"),
        ("entropy", {}, "policy entropy needs threshold, and the checkpoint brings no default: give threshold"),
        ("plateau", {}, "policy plateau needs price, features, weights, intercepts, and the checkpoint brings no"),
        ("fixed", {"layer": 99}, "policy fixed: layer must be at most 4, found 99"),
        ("policy.json", {"threshold": 1.0}, "threshold cannot be set here: a policy file brings its own"),
        (policies.Never(), {"threshold": 1.0}, "threshold cannot be set here: a policy that is made already has its"),
        (None, {}, "a policy is wanted (daisy.policies), found NoneType"),
        (policies.Never(), {"keep": "first"}, "keep must be one of all, last, found 'first'"),
        (policies.Never(), {"score_stride": 0}, "score_stride must be a whole number of frames, at least 1, found 0"),
        (policies.Never(), {"scores": ["entropi"]}, "unknown score 'entropi': did you mean entropy?"),
    ],
)
def test_what_no_encoder_can_be_made_of(policy, settings, message):
    with pytest.raises(UsageError if "keep" in settings else PolicyError) as error:
        tiny_model(POST_NORM).encoder(policy, **settings)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_without_heads_only_what_needs_none(waveforms):
    model = tiny_model(POST_NORM)
    model.heads = None
    assert model.encoder("fixed", layer=2)(waveforms).exit_layer.tolist() == [2] * 7
    for name in ("entropy", "plateau", "patience", "regressed"):
        with pytest.raises(CheckpointError, match=f"no exit heads, and policy {name} reads"):
            model.encoder(name, **({"threshold": 1.0} if name == "entropy" else {}))
    assert "exit heads: none" in repr(model)


def test_a_model_is_a_torch_module(model):
    assert isinstance(model, torch.nn.Module)
    assert not model.training
    assert list(model.parts()) == ["backbone", "heads", "final_head"]
    names = {name.split(".")[0] for name in model.state_dict()}
    assert names == {"backbone", "heads", "final_head"}
    assert sum(weight.numel() for weight in model.parameters()) == sum(
        weight.numel() for part in model.parts().values() for weight in part.parameters()
    )
    other = tiny_model(model.backbone.config, seed=9)
    waveform = torch.linspace(-0.5, 0.5, 8000)
    assert not torch.equal(other.encoder("never")(waveform).states[0], model.encoder("never")(waveform).states[0])
    other.load_state_dict(model.state_dict())
    assert_same_output(other.encoder("never")(waveform), model.encoder("never")(waveform))
    assert model.to("meta") is model
    assert model.device == torch.device("meta")


def test_a_model_says_what_it_is_in_a_few_lines():
    model = tiny_model(KINDS["pre-norm"])
    model.policies = {"entropy": {"threshold": 1.0}, "plateau": {}}
    assert repr(model) == (
        "Model(\n"
        "  backbone: 4 layers of width 32, pre-norm, 16000 Hz\n"
        "  exit heads: 11 units, loss regressors\n"
        "  final head: 11 units\n"
        "  policies: entropy, plateau\n"
        "  device: cpu, dtype: float32\n"
        ")"
    )


def test_load_takes_a_device_and_a_dtype(saved, waveforms):
    model = daisy.load(saved.path, device="cpu", dtype=torch.bfloat16)
    assert (model.dtype, model.device.type, model.path) == ("bfloat16", "cpu", saved.path)
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    out = model.encoder("never")(waveforms)
    assert out.last_hidden_state.dtype == torch.bfloat16
    assert_same_output(out, saved.encoder("never", dtype="bfloat16")(waveforms))
    with pytest.raises(daisy.UsageError, match="unknown dtype 'float16': did you mean bfloat16 or float32"):
        daisy.load(saved.path, dtype=torch.float16)


def test_encoders_of_one_model_share_its_weights(waveforms):
    model = tiny_model(POST_NORM)
    first, second = model.encoder("never"), model.encoder("fixed", layer=2)
    assert first.packed[0] is second.packed[0]
    assert first.packed[0] is not copy.deepcopy(model).encoder("never").packed[0]
    with torch.no_grad():
        model.backbone.encoder.transformer.layers[0].attention.v_proj.weight.mul_(2)
    assert torch.equal(first(waveforms[:1]).states[0][:3], second(waveforms[:1]).states[0])


def test_a_policy_file_is_refused_where_the_checkpoint_is_gone(saved, tmp_path):
    write_for(tmp_path / "policy.json", saved.path, policies.Entropy(threshold=1.9))
    saved.path.unlink()
    with pytest.raises(PolicyError, match=r"policy\.json: is for one checkpoint, and .* cannot be read again"):
        saved.encoder(tmp_path / "policy.json")
