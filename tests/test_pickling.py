"""Public objects can be pickled, copied, saved by torch and sent to a spawned process."""

import copy
import dataclasses
import inspect
import io
import pickle
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest
import torch

import daisy
from daisy import EarlyExitEncoder, audio, calibration, evaluation, policies
from daisy.errors import DaisyError
from daisy.models import LossRegressor, PackedLayout
from tests.conftest import KINDS, POST_NORM, assert_same_output, spread_policy, tiny_model
from tests.policies.examples import ALL as ALL_POLICIES

pytestmark = pytest.mark.filterwarnings("ignore:.*quantize.*")


def save_and_load(value):
    stream = io.BytesIO()
    torch.save(value, stream)
    stream.seek(0)
    return torch.load(stream, weights_only=False)


COPIES = {
    "pickle": lambda value: pickle.loads(pickle.dumps(value)),
    "deepcopy": copy.deepcopy,
    "torch.save": save_and_load,
}


@pytest.fixture(params=COPIES)
def copied(request):
    return COPIES[request.param]


def make_output():
    generator = torch.Generator().manual_seed(0)
    batch = [0.1 * torch.randn(count, generator=generator) for count in (5000, 16000, 800)]
    model = tiny_model(POST_NORM)
    return EarlyExitEncoder(model.backbone, model.heads, spread_policy(model, batch * 3))(batch)


MAKE = {
    "Backbone": lambda: tiny_model(KINDS["pre-norm"]).backbone,
    "BackboneConfig": lambda: KINDS["pre-norm"],
    "EarlyExitEncoder": lambda: tiny_model(POST_NORM).encoder("entropy", threshold=1.9),
    "ExitHeads": lambda: tiny_model(POST_NORM).heads,
    "ExitOutput": make_output,
    "FinalHead": lambda: tiny_model(POST_NORM).final_head,
    "HeadsConfig": lambda: tiny_model(POST_NORM).heads.config,
    "Model": lambda: tiny_model(POST_NORM),
}
"""An instance of each class that the package exports, errors apart."""


def assert_same(value, other):
    """The same kind with the same content."""
    assert type(other) is type(value)
    if isinstance(value, torch.nn.Module):
        assert repr(other) == repr(value)
        assert other.training == value.training
        weights, others = value.state_dict(), other.state_dict()
        assert weights.keys() == others.keys()
        assert all(torch.equal(weight, others[name]) for name, weight in weights.items())
    elif isinstance(value, daisy.ExitOutput):
        assert_same_output(other, value)
        assert torch.equal(other.last_hidden_state, value.last_hidden_state)
    elif isinstance(value, DaisyError):
        assert (str(other), other.args, vars(other)) == (str(value), value.args, vars(value))
    else:
        assert other == value


def exported_classes():
    classes = {name: getattr(daisy, name) for name in daisy.__all__}
    return {name: kind for name, kind in classes.items() if inspect.isclass(kind)}


def test_every_exported_class_is_here():
    errors = {name for name, kind in exported_classes().items() if issubclass(kind, DaisyError)}
    assert set(exported_classes()) == set(MAKE) | errors
    assert errors == {"AudioError", "CheckpointError", "DaisyError", "OutputError", "PolicyError", "UsageError"}


@pytest.mark.parametrize("name", MAKE)
def test_what_the_package_exports(copied, name):
    value = MAKE[name]()
    assert type(value) is exported_classes()[name]
    assert_same(value, copied(value))


@pytest.mark.parametrize("name", sorted(set(exported_classes()) - set(MAKE)))
def test_errors(copied, name):
    error = exported_classes()[name]("a.wav: 90 s", remedy="max_sec", path="a.wav")
    assert_same(error, copied(error))


@pytest.mark.parametrize("policy", ALL_POLICIES, ids=repr)
def test_policies(copied, policy):
    again = copied(policy)
    assert_same(policy, again)
    assert repr(again) == repr(policy)
    assert again.to_config() == policy.to_config()
    generator = torch.Generator().manual_seed(0)
    scores = {name: torch.rand(50, 12, generator=generator) for name in policy.reads} or {"any": torch.zeros(50, 12)}
    assert torch.equal(again.exit_layers(scores), policy.exit_layers(scores))


def test_traces(copied, traces):
    again = copied(traces)
    for field in dataclasses.fields(traces):
        value, other = getattr(traces, field.name), getattr(again, field.name)
        if isinstance(value, dict):
            assert value.keys() == other.keys()
            for name in value:
                torch.testing.assert_close(other[name], value[name], rtol=0, atol=0, equal_nan=True)
        elif isinstance(value, torch.Tensor):
            assert torch.equal(other, value)
        else:
            assert other == value


SPEECH = torch.sin(torch.arange(4000) / 9)


OTHERS = {
    "Augmenter": (
        lambda traces: audio.Augmenter(audio.Augmentation(gain_db=(-6.0, 6.0), speeds=(0.9, 1.1))),
        lambda augmenter: augmenter(SPEECH, torch.Generator().manual_seed(1)).tolist(),
    ),
    "NoiseBank": (
        lambda traces: audio.NoiseBank([torch.arange(50.0), torch.ones(70)]),
        lambda bank: bank.draw(30, torch.Generator().manual_seed(1)).tolist(),
    ),
    "Condition": (lambda traces: audio.Condition("white", 5.0), lambda condition: condition),
    "Certificate": (
        lambda traces: calibration.calibrate_risk("entropy", traces, 0.3, 0.1),
        lambda certificate: (certificate.policy, certificate.exit_layers.tolist(), certificate.runs.groups),
    ),
    "Study": (
        lambda traces: evaluation.compare_policies(*traces.halves(0), depths=[0.6]),
        lambda study: evaluation.study.to_rows(study),
    ),
    "PackedLayout": (
        lambda traces: PackedLayout(torch.tensor([3, 1, 4])),
        lambda layout: (layout.cu_seqlens.tolist(), layout.strided_rows(2).tolist()),
    ),
    "LossRegressor": (
        lambda traces: LossRegressor(3, start=2.0),
        lambda regressor: regressor(torch.ones(2, 6)).tolist(),
    ),
    "PolicyFamily": (
        lambda traces: calibration.fit_family("entropy", traces),
        lambda family: (family.at(0.5), family.exit_layers(0.5).tolist()),
    ),
}
"""How each is made, and what it says or does."""


@pytest.mark.parametrize("name", OTHERS)
def test_what_else_is_public(traces, name):
    make, describe = OTHERS[name]
    value = make(traces)
    expected = describe(value)
    for how, copied in COPIES.items():
        assert describe(copied(value)) == expected, how


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        *((kind, {}) for kind in KINDS),
        ("post-norm", {"keep": "last", "scores": ["margin"], "score_stride": 2}),
        ("post-norm", {"dtype": "bfloat16"}),
        ("post-norm", {"dtype": "int8"}),
        ("post-norm", {"fast": False}),
    ],
    ids=str,
)
def test_encoders_go_on_as_they_were(copied, waveforms, kind, settings):
    """Before and after a call, which lays weights out."""
    model = tiny_model(KINDS[kind])
    encoder = EarlyExitEncoder(model.backbone, model.heads, spread_policy(model, waveforms), **settings)
    unused = copied(encoder)
    expected = encoder(waveforms)
    for again in (unused, copied(encoder)):
        assert (again.policy, again.keep, again.dtype, again.fast) == (
            encoder.policy, encoder.keep, encoder.dtype, encoder.fast)  # fmt: skip
        assert_same_output(again(waveforms), expected)
        again.policy = policies.Fixed(layer=1)
        assert again(waveforms).exit_layer.tolist() == [1] * 7
    assert_same_output(encoder(waveforms), expected)


def test_laid_out_weights_stay_behind(waveforms):
    encoder = tiny_model(POST_NORM).encoder("entropy", threshold=1.9)
    size = len(pickle.dumps(encoder))
    encoder(waveforms)
    assert len(pickle.dumps(encoder)) == size
    weights = sum(weight.numel() * weight.element_size() for weight in encoder.parameters())
    assert weights < size < 1.5 * weights


def test_a_copy_has_weights_of_its_own(copied, waveforms):
    encoder = tiny_model(POST_NORM).encoder("never")
    expected = encoder(waveforms[:2])
    other = copied(encoder)
    with torch.no_grad():
        for weight in other.parameters():
            weight.mul_(2)
    assert_same_output(encoder(waveforms[:2]), expected)
    assert not torch.equal(other(waveforms[:2]).states[0], expected.states[0])


def test_a_model_brings_its_policies_and_where_it_is_from(copied, tmp_path):
    model = tiny_model(POST_NORM)
    model.policies, model.provenance = {"entropy": {"threshold": 1.25}}, {"source": "a test"}
    daisy.save(model, tmp_path / "tiny.safetensors")
    again = copied(daisy.load(tmp_path / "tiny.safetensors").bfloat16())
    assert again.policy("entropy") == policies.Entropy(threshold=1.25)
    assert (again.provenance, again.path, again.dtype) == (
        {"source": "a test"}, tmp_path / "tiny.safetensors", "bfloat16")  # fmt: skip
    assert again.encoder("entropy").dtype == "bfloat16"


def test_a_spawned_process_gives_the_parents_exits(waveforms):
    """As workers of a data loader on macOS and Windows are, and Ray's."""
    model = tiny_model(POST_NORM)
    encoder = EarlyExitEncoder(model.backbone, model.heads, spread_policy(model, waveforms), keep="last")
    expected = encoder(waveforms)
    assert len(set(expected.exit_layer.tolist())) > 1
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        out = pool.submit(encoder, waveforms).result(timeout=120)
    assert_same_output(out, expected, tolerance=1e-6)
