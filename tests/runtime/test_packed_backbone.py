import copy

import pytest
import torch
from torch.nn import functional as F

from daisy import EarlyExitEncoder, policies
from daisy.errors import UsageError
from daisy.runtime.linear import round_up_rows
from daisy.runtime.packed_backbone import PackedBackbone
from tests.conftest import KIN_KINDS, RARE_KINDS, tiny_model
from tests.runtime.conftest import run_packed, run_plain, use_mkl

pytestmark = pytest.mark.filterwarnings("ignore:.*quantize.*")


def cosine(one, other):
    return F.cosine_similarity(one.float(), other.float(), dim=-1)


@pytest.mark.parametrize("mkl", [False, True])
@pytest.mark.parametrize(("return_feed_forward", "count", "added"), [(True, 7, 0), (False, 7, 0), (True, 6, 2)])
def test_it_is_the_backbone(model, waveforms, return_feed_forward, count, added, mkl, monkeypatch):
    if mkl:
        use_mkl(monkeypatch)
    waveforms = waveforms[:count]
    states, fed, lengths = run_plain(model.backbone, waveforms)
    assert round_up_rows(sum(lengths)) == sum(lengths) + added
    packed_states, packed_fed = run_packed(model.backbone, waveforms, lengths, return_feed_forward=return_feed_forward)
    for layer, (plain, packed) in enumerate(zip(states, packed_states, strict=True)):
        assert (plain - packed).abs().max() < 1e-5 * plain.std(), f"layer {layer}"
    for plain, packed in zip(fed if return_feed_forward else states[1:], packed_fed, strict=True):
        assert (plain - packed).abs().max() < 1e-5 * plain.std()


@pytest.mark.parametrize(("dtype", "least"), [("bfloat16", 0.9995), ("int8", 0.998)])
def test_fewer_bits_give_nearly_the_same(model, waveforms, dtype, least):
    states, _, lengths = run_plain(model.backbone, waveforms)
    packed_states, _ = run_packed(model.backbone, waveforms, lengths, dtype)
    expected = torch.bfloat16 if dtype == "bfloat16" else torch.float32
    for plain, packed in zip(states, packed_states, strict=True):
        assert packed.dtype == expected
        assert cosine(plain, packed).mean() > least
        assert not torch.equal(plain, packed.float())


@pytest.mark.parametrize("config", [*RARE_KINDS.values(), *KIN_KINDS.values()], ids=[*RARE_KINDS, *KIN_KINDS])
@pytest.mark.parametrize(("dtype", "error", "least"), [("float32", 1e-5, 0.999999), ("bfloat16", None, 0.9995)])
def test_what_is_not_as_in_hubert(config, dtype, error, least, waveforms):
    """A batch norm before the positional convolution, none before the projection, other epsilons; quiet recordings.

    Relative positions, and convolutions one after the other for positions.
    """
    backbone = tiny_model(config).backbone
    waveforms = [*waveforms[:-1], 1e-3 * waveforms[-1]]
    states, _, lengths = run_plain(backbone, waveforms)
    packed_states, _ = run_packed(backbone, waveforms, lengths, dtype)
    for plain, packed in zip(states, packed_states, strict=True):
        assert error is None or (plain - packed).abs().max() < error * plain.std()
        assert cosine(plain, packed).mean() > least


def test_half_weights_are_rounded_once(waveforms):
    """Queries are scaled by 0.354, no power of two, in float32."""
    backbone = tiny_model().backbone.bfloat16()
    expected = PackedBackbone(copy.deepcopy(backbone).float())
    packed = PackedBackbone(backbone)
    for layer, exact in zip(packed.layers.values(), expected.layers.values(), strict=True):
        x = torch.randn(5, backbone.config.width)
        assert torch.equal(layer.inputs(x), exact.inputs(x))


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
        under_autocast = encoder(waveforms[:3]).states
    assert all(torch.equal(one, other) for one, other in zip(expected, under_autocast, strict=True))


def test_refusals():
    with pytest.raises(UsageError, match=r"unknown dtype 'bfloat61': did you mean bfloat16"):
        PackedBackbone(tiny_model().backbone, "bfloat61")
    with pytest.raises(UsageError, match="int8 is for CPUs, and the weights are on meta"):
        PackedBackbone(tiny_model().backbone.to("meta"), "int8")
