"""The type that an encoder computes in: chosen when it is made, or by casting it or its model."""

import copy

import pytest
import torch

from daisy import EarlyExitEncoder, UsageError, policies
from tests.conftest import POST_NORM, assert_same_output, tiny_model

pytestmark = pytest.mark.filterwarnings("ignore:.*quantize.*")
STATE_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.float32}


def make_encoder(**settings):
    model = tiny_model(POST_NORM)
    return EarlyExitEncoder(model.backbone, model.heads, policies.Never(), scores=["entropy"], **settings)


@pytest.mark.parametrize("name", STATE_DTYPES)
def test_names_and_torchs_types_say_the_same(waveforms, name):
    by_name, by_type = make_encoder(dtype=name), make_encoder(dtype=getattr(torch, name))
    assert by_name.dtype == by_type.dtype == name
    out = by_name(waveforms)
    assert {states.dtype for states in out.states} == {STATE_DTYPES[name]}
    assert out.scores["entropy"].dtype == torch.float32
    assert_same_output(by_type(waveforms), out)


CASTS = {
    "bfloat16()": lambda module: module.bfloat16(),
    "to(torch.bfloat16)": lambda module: module.to(torch.bfloat16),
    "to(device, dtype)": lambda module: module.to("cpu", torch.bfloat16),
    "to(tensor)": lambda module: module.to(torch.zeros(1, dtype=torch.bfloat16)),
    "type(torch.bfloat16)": lambda module: module.type(torch.bfloat16),
}


@pytest.mark.parametrize("cast", CASTS)
def test_a_cast_encoder_computes_as_one_made_so(waveforms, cast):
    expected = make_encoder(dtype="bfloat16")(waveforms)
    encoder = make_encoder()
    exact = encoder(waveforms)
    assert CASTS[cast](encoder) is encoder
    assert encoder.dtype == "bfloat16"
    assert_same_output(encoder(waveforms), expected)
    assert {weight.dtype for weight in encoder.parameters()} == {torch.float32}  # packed from their full precision
    assert encoder.float() is encoder
    assert encoder.dtype == "float32"
    assert_same_output(encoder(waveforms), exact)


@pytest.mark.parametrize("cast", CASTS)
def test_a_cast_model_makes_encoders_so(waveforms, cast):
    model = tiny_model(POST_NORM)
    weights = copy.deepcopy(model.state_dict())
    assert CASTS[cast](model) is model
    assert model.dtype == "bfloat16"
    assert all(torch.equal(weight, weights[name]) for name, weight in model.state_dict().items())
    encoder = model.encoder("never", scores=["entropy"])
    assert encoder.dtype == "bfloat16"
    assert_same_output(encoder(waveforms), make_encoder(dtype="bfloat16")(waveforms))
    assert model.encoder("never", dtype="float32").dtype == "float32"
    assert model.float().encoder("never").dtype == "float32"


def test_moving_changes_no_dtype():
    for name in STATE_DTYPES:
        encoder = make_encoder(dtype=name)
        assert encoder.cpu().to("cpu").dtype == name
        assert encoder.eval().requires_grad_(False).dtype == name
    assert tiny_model(POST_NORM).bfloat16().cpu().dtype == "bfloat16"


def test_an_encoder_inside_a_module_is_cast_with_it(waveforms):
    pair = torch.nn.ModuleDict({"encoder": make_encoder(), "linear": torch.nn.Linear(32, 5)}).bfloat16()
    assert pair["encoder"].dtype == "bfloat16"
    assert pair["linear"].weight.dtype == torch.bfloat16
    logits = pair["linear"](pair["encoder"](waveforms).last_hidden_state)
    assert logits.shape == (7, 74, 5)


@pytest.mark.parametrize(
    ("cast", "name"),
    [
        (lambda module: module.half(), "float16"),
        (lambda module: module.double(), "float64"),
        (lambda module: module.to(torch.float16), "float16"),
        (lambda module: module.to("cpu", torch.float64), "float64"),
    ],
)
def test_other_types_are_refused_in_one_line(waveforms, cast, name):
    encoder, model = make_encoder(), tiny_model(POST_NORM)
    expected = encoder(waveforms[:3])
    for module in (encoder, model):
        with pytest.raises(UsageError) as error:
            cast(module)
        assert str(error.value).startswith(f"unknown dtype '{name}': ")
        assert str(error.value).endswith("known are bfloat16, float32, int8")
        assert "\n" not in str(error.value)
        assert module.dtype == "float32"
        assert {weight.dtype for weight in module.parameters()} == {torch.float32}
    assert_same_output(encoder(waveforms[:3]), expected)


@pytest.mark.parametrize(
    ("dtype", "message"),
    [
        (torch.float16, "unknown dtype 'float16': did you mean bfloat16 or float32?"),
        ("half", "unknown dtype 'half': known are bfloat16, float32, int8"),
        ("float", "unknown dtype 'float': did you mean"),
        (None, "unknown dtype 'None': known are bfloat16, float32, int8"),
    ],
)
def test_dtypes_that_nobody_computes_in(dtype, message):
    with pytest.raises(UsageError) as error:
        make_encoder(dtype=dtype)
    assert str(error.value).startswith(message)


def test_int8_is_for_cpus():
    model = tiny_model(POST_NORM).to("meta")
    with pytest.raises(UsageError, match="dtype int8 is for CPUs, and the weights are on meta"):
        model.encoder("never", dtype="int8")
