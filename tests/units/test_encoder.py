import dataclasses

import pytest
import torch

from daisy import CheckpointError, ExitHeads, Model
from daisy.errors import PolicyError, UsageError
from daisy.models.heads import SPECIAL_SYMBOLS
from daisy.units import UnitEncoder
from tests.conftest import PRE_NORM, randomise, spread_policy, tiny_model

CENTRES = torch.randn(6, 32, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("reads", ["states", "feed_forward"])
def test_units_are_what_the_exit_layers_head_says(reads, config, waveforms):
    model = tiny_model(config)
    heads = dataclasses.replace(model.heads.config, reads=reads)
    model = Model(backbone=model.backbone, heads=randomise(ExitHeads(heads), 5))
    policy = spread_policy(model, waveforms)
    batch = UnitEncoder(model, policy)(waveforms)
    assert len({sequence.exit_layer for sequence in batch}) > 1
    for sequence, waveform in zip(batch, waveforms, strict=True):
        states = model.backbone.embed(*model.backbone.front_end(waveform[None]))
        for layer in range(1, sequence.exit_layer + 1):  # plain modules, one utterance
            states, feed_forward = model.backbone.layer_with_feed_forward(layer, states, None)
        logits = model.heads.unit_logits(layer, feed_forward if reads == "feed_forward" else states)[0]
        assert sequence.units == logits[:, SPECIAL_SYMBOLS:].argmax(-1).tolist()


def test_special_symbols_are_no_units(waveforms):
    model = tiny_model(num_units=44)
    units = UnitEncoder(model, "fixed", layer=2)
    before = units(waveforms)
    assert units.num_units == 40
    assert len({unit for sequence in before for unit in sequence.units}) > 5
    with torch.no_grad():
        for head in model.heads.units:
            head.bias[:SPECIAL_SYMBOLS] = 1000.0
    assert units(waveforms) == before


@pytest.mark.parametrize("kind", [None, PRE_NORM])
def test_layers_above_a_kmeans_are_not_run(kind, waveforms):
    model = tiny_model() if kind is None else tiny_model(kind)
    expected = UnitEncoder(model, kmeans=CENTRES, layer=2)(waveforms)
    states, num_frames = model.backbone(
        torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True), torch.tensor([len(w) for w in waveforms])
    )
    for sequence, of_layer, count in zip(expected, states[2], num_frames.tolist(), strict=True):
        assert sequence.units == torch.cdist(of_layer[:count], CENTRES).argmin(1).tolist()
        assert sequence.exit_layer == 2
    with torch.no_grad():
        for layer in model.backbone.encoder.transformer.layers[2:]:
            for parameter in layer.parameters():
                parameter.fill_(torch.nan)
    assert UnitEncoder(model, kmeans=CENTRES, layer=2)(waveforms) == expected


def test_bfloat16_changes_few_units(waveforms):
    model = tiny_model()
    exact, rounded = (UnitEncoder(model, "fixed", layer=3, dtype=dtype)(waveforms) for dtype in (None, torch.bfloat16))
    pairs = [pair for one, other in zip(exact, rounded, strict=True) for pair in zip(one.units, other.units)]  # noqa: B905
    assert sum(one != other for one, other in pairs) / len(pairs) < 0.1


def test_repetitions_are_taken_out(waveforms):
    (sequence,) = UnitEncoder(tiny_model(), "fixed", layer=1)(waveforms[-1])
    units, durations = sequence.deduplicate()
    assert sum(durations) == len(sequence.units) > len(units)


def test_refusals():
    model = tiny_model()
    bare = Model(backbone=model.backbone)
    for refused, reason in [
        (lambda: UnitEncoder(bare), "no exit heads, which would tell units"),
        (lambda: UnitEncoder(tiny_model(num_units=4)), "no units are left"),
    ]:
        with pytest.raises(CheckpointError, match=reason):
            refused()
    for given, reason in [
        (dict(kmeans=CENTRES), "pass layer=N"),
        (dict(kmeans=CENTRES, layer=5), "must be 1 to 4, found 5"),
        (dict(kmeans=CENTRES, layer=0), "must be 1 to 4, found 0"),
        (dict(kmeans=CENTRES[:, :7], layer=1), "states 7 wide, and this model's are 32 wide"),
        (dict(kmeans=CENTRES, layer=1, policy="entropy"), "no policy goes with it"),
    ]:
        with pytest.raises(UsageError, match=reason):
            UnitEncoder(model, **given)
    with pytest.raises(PolicyError, match="threshold"):
        UnitEncoder(model, "entropy")
