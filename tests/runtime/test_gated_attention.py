"""WavLM's packed attention: in blocks, padded, in other types, and its biases."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.nn import functional as F

from daisy.models.packing import PackedLayout
from daisy.models.relative_positions import PositionGate, RelativePositions, find_buckets, view_backwards
from daisy.runtime import gated_attention
from daisy.runtime.gated_attention import PackedBiases, PackedGate, attend_gated
from daisy.runtime.packed_backbone import PackedBackbone
from tests.conftest import KIN_KINDS, POST_NORM, randomise, tiny_model

HEADS, WIDTH = 4, 32


def test_buckets_of_distances():
    distances = torch.tensor([-10_000, -800, -799, -80, -79, -1, 0, 1, 79, 80, 81, 800, 801, 10_000])
    buckets = [159, 159, 159, 80, 79, 1, 0, 161, 239, 240, 240, 319, 319, 319]
    assert find_buckets(distances, 320, 800).tolist() == buckets


def test_the_view_of_all_pairs():
    biases = torch.arange(9.0)[None] - 4  # distances -4 to 4
    assert view_backwards(biases, 3)[0].tolist() == [[-2, -1, 0], [-1, 0, 1], [0, 1, 2]]
    assert view_backwards(biases, 3).data_ptr() == biases[:, 2:].data_ptr()


def make(lengths, dtype=torch.float32):
    generator = torch.Generator().manual_seed(3)
    relative = randomise(RelativePositions(16, 30, HEADS))
    relative.weight.data.mul_(5)
    gate = randomise(PositionGate(WIDTH // HEADS, HEADS))
    heard = torch.randn(sum(lengths), WIDTH, generator=generator)
    projected = torch.randn(sum(lengths), 3 * WIDTH, generator=generator)
    return heard, projected, relative, gate


@torch.no_grad()
def attend_plainly(heard, projected, relative, gate, lengths):
    """With a matrix of biases for each utterance, gathered entry by entry."""
    rows = []
    for x, part in zip(heard.split(lengths), projected.split(lengths), strict=True):
        frames = torch.arange(len(x))
        buckets = find_buckets(frames[None] - frames[:, None], relative.num_buckets, relative.max_distance)
        biases = relative.weight[buckets].permute(2, 0, 1)
        queries, keys, values = part.unflatten(1, (3, HEADS, -1)).permute(1, 2, 0, 3)
        weights = queries @ keys.transpose(1, 2) + gate(x[None])[0] * biases
        rows.append((weights.softmax(-1) @ values).transpose(0, 1).flatten(1))
    return torch.cat(rows)


@pytest.mark.parametrize("lengths", [[700, 30], [1], [64, 5, 64]])
@pytest.mark.parametrize("budget", [1 << 18, 4 * 64 * 64, 1])
@torch.no_grad()
def test_by_blocks_with_rows_that_mean_nothing(lengths, budget, monkeypatch):
    monkeypatch.setattr(gated_attention, "BLOCK_WEIGHTS", budget)
    heard, projected, relative, gate = make(lengths)
    expected = attend_plainly(heard, projected, relative, gate, lengths)
    nothing = torch.full((5, WIDTH), torch.nan)
    heard, projected = torch.cat([heard, nothing]), torch.cat([projected, nothing.repeat(1, 3)])
    layout = PackedLayout(torch.tensor(lengths))
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 0.02)):
        gates = PackedGate(gate, dtype)(heard.to(dtype))
        mixed = attend_gated(projected.to(dtype), gates, layout, PackedBiases(relative, dtype))
        assert mixed.dtype == dtype
        assert (mixed[: layout.total].float() - expected).norm() < tolerance * expected.norm()
        assert not mixed[layout.total :].any()


@pytest.mark.parametrize("lengths", [[40, 7, 1], [9, 9]])
@pytest.mark.parametrize("budget", [1 << 26, 300])
@torch.no_grad()
def test_padded_as_on_gpus(lengths, budget, monkeypatch):
    monkeypatch.setattr(gated_attention, "DEVICE_BLOCK_WEIGHTS", budget)
    heard, projected, relative, gate = make(lengths)
    layout = PackedLayout(torch.tensor(lengths))
    split = projected.unflatten(1, (3, HEADS, -1))
    gates = PackedGate(gate, torch.float32)(heard)
    mixed = gated_attention._attend_padded(split, gates, layout, PackedBiases(relative, torch.float32))
    torch.testing.assert_close(mixed, attend_plainly(heard, projected, relative, gate, lengths), atol=1e-5, rtol=1e-5)


def test_biases_are_listed_anew_for_longer_utterances_only(monkeypatch):
    relative = randomise(RelativePositions(16, 30, HEADS))
    biases = PackedBiases(relative, torch.float32)
    short = biases(10)
    assert biases(400).data_ptr() == biases(400).data_ptr()
    assert short.untyped_storage().data_ptr() == biases(512).untyped_storage().data_ptr()
    long = biases(513)
    assert long.shape == (HEADS, 513, 513)
    assert torch.equal(long[:, -10:, :10], short)
    with torch.no_grad():
        relative.weight.zero_()
    assert biases(2000).any()  # a copy, as all packed weights are


def test_threads_share_biases():
    """One model serves several threads, and each finds biases as long as it needs."""
    biases = PackedBiases(randomise(RelativePositions(16, 30, HEADS)), torch.float32)
    whole = biases(600).clone()
    for _ in range(10):
        biases = PackedBiases(biases._module, torch.float32)
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(biases, [600, 20, 1500, 600, 40, 1500, 600, 30]))
        assert torch.equal(found[0], whole)
        assert [part.shape[1] for part in found] == [600, 20, 1500, 600, 40, 1500, 600, 30]


def test_int8_rounds_its_linear_maps_only(waveforms):
    model, plain = tiny_model(KIN_KINDS["WavLM"]), tiny_model(POST_NORM)
    exact, rounded = (model.encoder("never", dtype=dtype)(waveforms).states[6] for dtype in ("float32", "int8"))
    assert F.cosine_similarity(exact, rounded, dim=-1).mean() > 0.998
    assert not torch.equal(exact, rounded)
    assert (exact - plain.encoder("never")(waveforms).states[6]).std() > 0.1


def test_it_is_never_captured(monkeypatch):
    monkeypatch.setattr("daisy.runtime.packed_backbone.has_varlen_attention", lambda *args: True)
    assert PackedBackbone(tiny_model(POST_NORM).backbone).supports_varlen
    assert not PackedBackbone(tiny_model(KIN_KINDS["WavLM"]).backbone).supports_varlen
    assert PackedBackbone(tiny_model(KIN_KINDS["data2vec"]).backbone).supports_varlen
