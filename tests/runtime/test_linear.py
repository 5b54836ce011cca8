"""Matrix products whose number of rows is rounded up."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from daisy.runtime import private_ops
from daisy.runtime.linear import MklLinear, OneDnnLinear, TorchLinear, make_linear, padded_view, round_up_rows
from tests.runtime.conftest import use_mkl

pytestmark = pytest.mark.filterwarnings("ignore:.*quantize.*")

counts = st.integers(1, 1 << 20)


@given(counts)
def test_rounding_adds_few_rows(count):
    rows = round_up_rows(count)
    assert count <= rows <= count * (1.125 if count < 256 else 1.0625)
    assert round_up_rows(rows) == rows


@given(counts, counts)
def test_rounding_keeps_the_order(one, other):
    few, many = sorted((one, other))
    assert round_up_rows(few) <= round_up_rows(many)


def test_an_octave_has_eight_sizes_and_sixteen_where_they_are_large():
    for exponent in range(3, 14):
        octave = range((1 << exponent) + 1, (1 << exponent + 1) + 1)
        sizes = {round_up_rows(count) for count in octave}
        assert len(sizes) == (8 if exponent < 8 else 16)


@st.composite
def slices(draw):
    """Rows that stand somewhere in a larger tensor, and how many are wanted."""
    total, width = draw(st.integers(1, 12)), draw(st.integers(1, 3))
    start = draw(st.integers(0, total - 1))
    stop = draw(st.integers(start + 1, total))
    return total, width, start, stop, draw(st.integers(stop - start, stop - start + 6))


@given(slices())
def test_a_padded_view_begins_with_the_rows_and_writes_nothing(where):
    total, width, start, stop, rows = where
    whole = torch.arange(float(total * width)).view(total, width)
    part = whole[start:stop]
    padded = padded_view(part, rows)
    assert padded.shape == (rows, width)
    assert torch.equal(padded[: stop - start], part)
    if start + rows <= total:  # there is room: nothing is copied
        assert padded.data_ptr() == part.data_ptr()
        assert torch.equal(padded, whole[start : start + rows])
    else:
        assert not padded[stop - start :].any()
    assert torch.equal(whole, torch.arange(float(total * width)).view(total, width))


@settings(max_examples=30)
@given(st.integers(1, 80), st.integers(0, 20), st.sampled_from(["nothing", "gelu", "residual"]))
def test_rows_that_are_added_change_no_product(count, room, then):
    """Whatever stands behind the rows in memory, not numbers too."""
    generator = torch.Generator().manual_seed(count)
    weight, bias = torch.randn(16, 24, generator=generator), torch.randn(16, generator=generator)
    buffers = torch.randn(count, 24, generator=generator), torch.randn(count, 16, generator=generator)
    x, residual = (torch.cat([rows, torch.full((room, rows.shape[1]), torch.nan)])[:count] for rows in buffers)
    product = F.linear(x, weight, bias)
    expected = {"nothing": product, "gelu": F.gelu(product), "residual": product + residual}[then]
    linear = make_linear(weight, bias)
    result = linear(x, gelu=then == "gelu", residual=residual if then == "residual" else None)
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-5)


def test_recordings_of_many_lengths_share_the_shapes_of_products():
    sizes = [round_up_rows(count) for count in range(1, 2000)]
    for count, size in enumerate(sizes, start=1):
        assert count <= size <= (1.125 if count < 256 else 1.0625) * count
    assert len(set(sizes)) < 100
    x = torch.arange(10.0).view(5, 2)
    assert torch.equal(padded_view(x[:3], 5), x)
    assert torch.equal(padded_view(x[1:3], 4), x[1:])
    assert torch.equal(padded_view(x[1:3], 5), F.pad(x[1:3], (0, 0, 0, 3)))
    assert torch.equal(padded_view(x, 6), F.pad(x, (0, 0, 0, 1)))
    assert torch.equal(padded_view(x[::2], 5)[3:], torch.zeros(2, 2))


@pytest.mark.parametrize("rows", [1, 37, 600])
@pytest.mark.parametrize("products", ["onednn", "mkl", "torch"])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_maps_with_what_follows(bias, products, rows, monkeypatch):
    if products == "mkl":
        use_mkl(monkeypatch)
    elif products == "torch":  # as on a CPU that oneDNN does not know, or that multiplies no bfloat16
        monkeypatch.setattr(private_ops, "has_onednn_linear", lambda dtype: False)
    generator = torch.Generator().manual_seed(0)
    x, plus = torch.randn(rows, 24, generator=generator), torch.randn(rows, 16, generator=generator)
    before = plus.clone()
    weight = torch.randn(16, 24, generator=generator)
    offset = torch.randn(16, generator=generator) if bias else None
    product = F.linear(x, weight, offset)
    for dtype, tolerance in (("float32", 1e-5), ("bfloat16", 0.03), ("int8", 0.03)):
        linear = make_linear(weight, offset, dtype)
        if dtype == "float32":
            assert type(linear) is {"onednn": OneDnnLinear, "mkl": MklLinear, "torch": TorchLinear}[products]
            assert linear.padded_rows(37) == (40 if products == "onednn" else 37)
        x_of, plus_of = (x.bfloat16(), plus.bfloat16()) if dtype == "bfloat16" else (x, plus)
        for result, expected in (
            (linear(x_of), product),
            (linear(x_of, gelu=True), F.gelu(product)),
            (linear(x_of, residual=plus_of), product + plus),
        ):
            assert (result.float() - expected).abs().max() < tolerance * product.abs().max()
    assert torch.equal(plus, before)  # what is added stays as it was


def test_mkl_lays_weights_out_for_any_number_of_rows(monkeypatch):
    use_mkl(monkeypatch)
    generator = torch.Generator().manual_seed(0)
    for wide, narrow in ((768, 512), (384, 1536)):
        weight, bias = torch.randn(wide, narrow, generator=generator), torch.randn(wide, generator=generator)
        linear = make_linear(weight, bias)
        for rows in (1, 2, 511, 513, 1500):
            x = torch.randn(rows, narrow, generator=generator)
            expected = F.linear(x.double(), weight.double(), bias.double())
            assert (linear(x) - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize(
    ("processor", "leads"), [("vendor_id : GenuineIntel", True), ("vendor_id : AuthenticAMD", False), (None, True)]
)
def test_mkl_is_for_intels_processors(processor, leads, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_avx512_supported", lambda: True)

    def read_text(path):
        if processor is None:
            raise FileNotFoundError(path)
        return processor

    monkeypatch.setattr("pathlib.Path.read_text", read_text)
    monkeypatch.setattr("platform.processor", lambda: "Intel64 Family 6 Model 143 Stepping 8, GenuineIntel")
    assert private_ops._is_intel_with_avx512() == leads
    monkeypatch.setattr(torch.cpu, "_is_avx512_supported", lambda: False)
    assert not private_ops._is_intel_with_avx512()
