"""torch's private operators may vanish or change in any release: results stay, or one line names what is missing."""

import pytest
import torch
from torch.nn import functional as F

from daisy.errors import UsageError
from daisy.runtime import linear, private_ops
from tests.conftest import tiny_model


@pytest.mark.parametrize(
    ("compute", "right"),
    [
        (F.linear, True),
        (lambda x, weight, bias: F.linear(x, weight, bias) + 0.01, False),
        (lambda x, weight, bias: F.linear(x, weight), False),
        (lambda x, weight, bias: F.linear(x, weight, bias).T, False),
        (lambda x, weight, bias: F.linear(x, weight, bias) * torch.nan, False),
        (lambda x, weight, bias: torch.ops.mkldnn._an_operator_that_is_gone(x, weight), False),
        (lambda x, weight, bias: torch.ops.aten.linear(x, weight, bias, "an argument more"), False),
    ],
)
def test_an_operator_is_used_where_it_is_there_and_right(compute, right):
    assert private_ops._is_right(compute, torch.float32, 1e-5) is right


@pytest.fixture
def without_private_operators(monkeypatch):
    for name in ("has_onednn_linear", "has_int8_linear", "has_mkl_linear"):
        monkeypatch.setattr(private_ops, name, lambda *arguments: False)


def test_states_are_the_same_without_them(waveforms, monkeypatch, without_private_operators):
    model = tiny_model()
    without = model.encoder("never")(waveforms)
    monkeypatch.undo()
    for ours, others in zip(tiny_model().encoder("never")(waveforms).states, without.states, strict=True):
        torch.testing.assert_close(ours, others, atol=1e-4, rtol=1e-4)


def test_int8_is_refused_where_torch_has_no_products_for_it(waveforms, without_private_operators):
    with pytest.raises(UsageError) as error:
        tiny_model().encoder("never", dtype="int8")(waveforms)
    assert str(error.value) == f"torch {torch.__version__} has no int8 products: compute in float32 or bfloat16"


def test_this_torch_has_them_on_usual_processors():
    """Where this fails after an upgrade of torch, an operator has gone, and the library is slower than it was."""
    if not torch.backends.mkldnn.is_available() or not torch.cpu._is_avx2_supported():
        pytest.skip("needs oneDNN on an x86 processor")
    assert private_ops.has_onednn_linear(torch.float32)
    assert private_ops.has_int8_linear()
    assert isinstance(linear.make_linear(torch.randn(16, 32), None), linear.OneDnnLinear)
