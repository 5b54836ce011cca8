import copy

import pytest
import torch
from torch.nn import functional as F

from daisy import EarlyExitEncoder, policies
from daisy.errors import UsageError
from daisy.models.packing import PackedLayout
from daisy.runtime import private_ops
from daisy.runtime.attention import _attend_padded as attend_padded
from daisy.runtime.attention import attend
from daisy.runtime.convolution import Conv, FourierConv
from daisy.runtime.cpu_front_end import CpuFrontEnd
from daisy.runtime.cuda_front_end import CudaFrontEnd
from daisy.runtime.linear import MklLinear, OneDnnLinear, TorchLinear, make_linear, padded_view, round_up_rows
from daisy.runtime.packed_backbone import PackedBackbone
from daisy.runtime.packing_cache import pack_backbone, pack_heads
from tests.conftest import tiny_model

pytestmark = pytest.mark.filterwarnings("ignore:.*quantize.*")


def use_mkl(monkeypatch):
    """For all float32 products."""
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):
        pytest.skip("this build of torch has no packed MKL products")
    monkeypatch.setattr("daisy.runtime.linear.MKL_MIN_FEATURES", 1)
    monkeypatch.setattr(private_ops, "has_mkl_linear", lambda: True)


@torch.no_grad()
def reference(backbone, waveforms):
    """All layers by `Backbone`, each (F, D), and the feed-forward outputs."""
    num_samples = torch.tensor([len(w) for w in waveforms])
    features, num_frames = backbone.front_end(torch.nn.utils.rnn.pad_sequence(waveforms, True), num_samples)
    states, fed = [backbone.embed(features, num_frames)], []
    for layer in range(1, backbone.config.num_layers + 1):
        state, feed_forward = backbone.layer_with_feed_forward(layer, states[-1], num_frames)
        states.append(state)
        fed.append(feed_forward)
    lengths = num_frames.tolist()
    rows = [[torch.cat([s[:n] for s, n in zip(each, lengths, strict=True)]) for each in kind] for kind in (states, fed)]
    return (*rows, lengths)


@torch.no_grad()
def inferred(backbone, waveforms, lengths, dtype="float32", return_feed_forward=True):
    inference, layout = PackedBackbone(backbone, dtype), PackedLayout(torch.tensor(lengths))
    states, fed = [inference.embed(inference.front_end(waveforms), layout)], []
    for layer in range(1, backbone.config.num_layers + 1):
        state, feed_forward = inference.layer(layer, states[-1], layout, return_feed_forward)
        states.append(state)
        fed.append(feed_forward)
    return states, fed


def cosine(one, other):
    return F.cosine_similarity(one.float(), other.float(), dim=-1)


@pytest.mark.parametrize("mkl", [False, True])
@pytest.mark.parametrize(("return_feed_forward", "count", "added"), [(True, 7, 0), (False, 7, 0), (True, 6, 2)])
def test_it_is_the_backbone(model, waveforms, return_feed_forward, count, added, mkl, monkeypatch):
    if mkl:
        use_mkl(monkeypatch)
    waveforms = waveforms[:count]
    states, fed, lengths = reference(model.backbone, waveforms)
    assert round_up_rows(sum(lengths)) == sum(lengths) + added
    mine, mine_fed = inferred(model.backbone, waveforms, lengths, return_feed_forward=return_feed_forward)
    for layer, (one, other) in enumerate(zip(states, mine, strict=True)):
        assert (one - other).abs().max() < 1e-5 * one.std(), f"layer {layer}"
    for one, other in zip(fed if return_feed_forward else states[1:], mine_fed, strict=True):
        assert (one - other).abs().max() < 1e-5 * one.std()


@pytest.mark.parametrize(("dtype", "least"), [("bfloat16", 0.9995), ("int8", 0.998)])
def test_fewer_bits_give_nearly_the_same(model, waveforms, dtype, least):
    states, _, lengths = reference(model.backbone, waveforms)
    mine, _ = inferred(model.backbone, waveforms, lengths, dtype)
    expected = torch.bfloat16 if dtype == "bfloat16" else torch.float32
    for one, other in zip(states, mine, strict=True):
        assert other.dtype == expected
        assert cosine(one, other).mean() > least
        assert not torch.equal(one, other.float())


def test_blocks_of_the_front_end_do_not_show(model, waveforms, monkeypatch):
    whole = inferred(model.backbone, waveforms[-2:], [50, 74])[0][0]
    monkeypatch.setattr(
        "daisy.runtime.cpu_front_end.MAX_VALUES_PER_BLOCK", 33 * 64 * model.backbone.config.conv_layers[0][0]
    )
    in_blocks = inferred(model.backbone, waveforms[-2:], [50, 74])[0][0]
    torch.testing.assert_close(whole, in_blocks, atol=1e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "error"), [("float32", 1e-5), ("bfloat16", 0.02)])
def test_the_front_end_of_other_devices_is_that_of_cpus(config, waveforms, dtype, error):
    """Recordings with an offset of the mean too, whose moments cancel."""
    backbone = tiny_model(config).backbone
    waveforms = [waveform + 0.3 for waveform in waveforms]
    for some in (waveforms, waveforms[4:5], waveforms[:1] * 3):
        expected = CpuFrontEnd(backbone, "float32")(some)
        found = CudaFrontEnd(backbone, dtype)(some)
        assert found.dtype == (torch.bfloat16 if dtype == "bfloat16" else torch.float32)
        assert (found.float() - expected).norm() < error * expected.norm()


@torch.no_grad()
def test_long_batches_go_through_the_front_end_in_parts(model, waveforms, monkeypatch):
    whole = CudaFrontEnd(model.backbone, "float32")(waveforms)
    channels, _, stride = model.backbone.config.conv_layers[0]
    monkeypatch.setattr("daisy.runtime.cuda_front_end.MAX_VALUES_PER_PASS", 8000 * channels // stride)
    sizes, convolve_pass = [], CudaFrontEnd._convolve_pass
    monkeypatch.setattr(
        CudaFrontEnd, "_convolve_pass", lambda *args: sizes.append(len(args[1])) or convolve_pass(*args)
    )
    torch.testing.assert_close(CudaFrontEnd(model.backbone, "float32")(waveforms), whole, atol=1e-5, rtol=1e-4)
    assert sizes == [5, 1, 1]


@torch.no_grad()
def test_the_front_end_leaves_torchs_settings_as_they_were(waveforms):
    backbone = tiny_model().backbone
    for setting in ("highest", "high", "medium"):
        torch.set_float32_matmul_precision(setting)
        try:
            CudaFrontEnd(backbone, "float32")(waveforms[-1:])
            assert torch.get_float32_matmul_precision() == setting
        finally:
            torch.set_float32_matmul_precision("highest")


def test_changed_weights_are_laid_out_anew():
    backbone = tiny_model().backbone
    first = pack_backbone(backbone, "float32")
    assert pack_backbone(backbone, "float32") is first
    assert pack_backbone(backbone, "bfloat16") is not first
    with torch.no_grad():
        backbone.encoder.transformer.layers[2].attention.k_proj.weight.mul_(2)
    assert pack_backbone(backbone, "float32") is not first
    heads = tiny_model().heads
    laid_out = pack_heads(heads, "float32")
    assert pack_heads(heads, "float32") is laid_out
    with torch.no_grad():
        heads.units[1].weight.mul_(2)
    assert pack_heads(heads, "float32") is not laid_out


def test_half_weights_are_rounded_once(waveforms):
    """Queries are scaled by 0.354, no power of two, in float32."""
    backbone = tiny_model().backbone.bfloat16()
    expected = PackedBackbone(copy.deepcopy(backbone).float())
    found = PackedBackbone(backbone)
    for mine, exact in zip(found.layers, expected.layers, strict=True):
        x = torch.randn(5, backbone.config.width)
        assert torch.equal(mine.inputs(x), exact.inputs(x))


def test_bfloat16_leaves_at_the_same_layers(waveforms):
    model, policy, scores = tiny_model(), policies.Entropy(threshold=1.9), ("entropy", "regressed")
    full = EarlyExitEncoder(model.backbone, model.heads, policies.Never(), scores=scores)(waveforms)
    assert ((full.scores["entropy"] - 1.9).abs() > 0.01).all()
    one, other = (
        EarlyExitEncoder(model.backbone, model.heads, policy, scores=scores, dtype=dtype)(waveforms)
        for dtype in ("float32", "bfloat16")
    )
    assert len(set(one.exit_layer.tolist())) > 1
    assert one.exit_layer.tolist() == other.exit_layer.tolist()
    for name in ("entropy", "regressed"):
        torch.testing.assert_close(one.scores[name], other.scores[name], atol=0.05, rtol=0, equal_nan=True)


def test_attention_padded_is_attention_each_by_itself():
    generator = torch.Generator().manual_seed(0)
    for lengths in ([5, 1, 9], [4, 4, 4]):
        projected = torch.randn(sum(lengths), 3 * 12, generator=generator)
        layout = PackedLayout(torch.tensor(lengths))
        padded = attend_padded(projected.unflatten(1, (3, 2, -1)), layout)
        torch.testing.assert_close(attend(projected, layout, 2), padded)


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


@pytest.mark.parametrize(("kernel", "groups"), [(128, 4), (15, 2), (16, 1), (2, 8)])
def test_fourier_convolution_is_the_convolution(kernel, groups):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(8, 8 // groups, kernel, generator=generator) / kernel**0.5
    bias = torch.randn(8, generator=generator)
    utterances = [torch.randn(n, 8, generator=generator) for n in (1, 3, 300, 513)]
    expected = [F.conv1d(u.T, weight, bias, padding=kernel // 2, groups=groups)[:, : len(u)].T for u in utterances]
    for some in (slice(None), slice(2, 3)):
        layout = PackedLayout(torch.tensor([len(u) for u in utterances[some]]))
        found = FourierConv(weight, bias, groups)(torch.cat(utterances[some]), layout)
        torch.testing.assert_close(found, torch.cat(expected[some]), atol=2e-5, rtol=1e-4)


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
    expected = F.linear(x, weight, offset)
    for dtype, tolerance in (("float32", 1e-5), ("bfloat16", 0.03), ("int8", 0.03)):
        linear = make_linear(weight, offset, dtype)
        if dtype == "float32":
            assert type(linear) is {"onednn": OneDnnLinear, "mkl": MklLinear, "torch": TorchLinear}[products]
            assert linear.padded_rows(37) == (40 if products == "onednn" else 37)
        x_of, plus_of = (x.bfloat16(), plus.bfloat16()) if dtype == "bfloat16" else (x, plus)
        for found, wanted in (
            (linear(x_of), expected),
            (linear(x_of, gelu=True), F.gelu(expected)),
            (linear(x_of, residual=plus_of), expected + plus),
        ):
            assert (found.float() - wanted).abs().max() < tolerance * expected.abs().max()
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


def test_convolutions_of_any_kernel_and_stride():
    generator = torch.Generator().manual_seed(0)
    for kernel, stride in ((3, 2), (2, 2), (1, 1), (4, 1)):
        x, weight = torch.randn(21, 6, generator=generator), torch.randn(5, 6, kernel, generator=generator)
        expected = F.gelu(F.conv1d(x.T, weight, stride=stride)).T
        torch.testing.assert_close(Conv(weight, None, stride)(x, gelu=True), expected, atol=1e-5, rtol=1e-5)


def test_int8_does_not_see_the_batch():
    backbone = tiny_model().backbone
    generator = torch.Generator().manual_seed(0)
    waveforms = [scale * torch.randn(8000, generator=generator) for scale in (0.5, 0.01)]
    encoder = EarlyExitEncoder(backbone, None, policies.Never(), dtype="int8")
    together = encoder(waveforms).states
    for waveform, states in zip(waveforms, together, strict=True):
        torch.testing.assert_close(encoder([waveform]).states[0], states, atol=1e-5, rtol=1e-5)


def test_autocast_around_the_encoder_changes_nothing(waveforms):
    encoder = EarlyExitEncoder(tiny_model().backbone, None, policies.Never())
    expected = encoder(waveforms[:3]).states
    with torch.autocast("cpu", torch.bfloat16):
        found = encoder(waveforms[:3]).states
    assert all(torch.equal(one, other) for one, other in zip(expected, found, strict=True))


def test_weights_changed_behind_autograd_are_forgotten_on_demand(waveforms):
    backbone = tiny_model().backbone
    encoder = EarlyExitEncoder(backbone, None, policies.Never())
    before = encoder(waveforms[4:5]).states[0]
    backbone.encoder.transformer.layers[0].attention.v_proj.weight.data.mul_(2)
    assert torch.equal(encoder(waveforms[4:5]).states[0], before)
    encoder.refresh_weights()
    states, *_ = reference(backbone, waveforms[4:5])
    torch.testing.assert_close(encoder(waveforms[4:5]).states[0], torch.stack(states), atol=1e-5, rtol=1e-4)


def test_refusals():
    with pytest.raises(UsageError, match=r"unknown dtype 'bfloat61': did you mean bfloat16"):
        PackedBackbone(tiny_model().backbone, "bfloat61")
    with pytest.raises(UsageError, match="int8 is for CPUs, and the weights are on meta"):
        PackedBackbone(tiny_model().backbone.to("meta"), "int8")


@pytest.mark.parametrize("block", [256, 4])
@pytest.mark.parametrize("lengths", [[600, 100], [20], [63, 64, 1]])
def test_bfloat16_attention_by_blocks_and_of_short_recordings(lengths, monkeypatch, block):
    monkeypatch.setattr("daisy.runtime.attention.QUERY_BLOCK", block)
    generator = torch.Generator().manual_seed(0)
    projected = torch.randn(sum(lengths), 3 * 64, generator=generator)
    projected[:, :64] *= 32**-0.5
    layout = PackedLayout(torch.tensor(lengths))
    expected = attend(projected, layout, 2)
    rows_that_mean_nothing = torch.full((5, 3 * 64), torch.nan)
    found = attend(torch.cat([projected, rows_that_mean_nothing]).bfloat16(), layout, 2)[: sum(lengths)]
    assert found.dtype == torch.bfloat16
    assert (found.float() - expected).norm() < 0.01 * expected.norm()
