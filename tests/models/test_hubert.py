import dataclasses

import pytest
import torch

from daisy import BackboneConfig, CheckpointError
from daisy.models import Backbone
from tests.conftest import POST_NORM, PRE_NORM, tiny_model


def run(backbone, waveforms):
    num_samples = torch.tensor([len(w) for w in waveforms])
    batch = torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True, padding_value=float("nan"))
    with torch.no_grad():
        features, num_frames = backbone.front_end(batch, num_samples)
        states = [backbone.embed(features, num_frames)]
        for layer in range(1, backbone.config.num_layers + 1):
            states.append(backbone.layer(layer, states[-1], num_frames))
    return states, num_frames


def test_what_lies_past_an_utterances_end_is_never_read(model, waveforms):
    """The batch is padded with NaN; alone, an utterance has no padding at all."""
    together, num_frames = run(model.backbone, waveforms)
    for index, waveform in enumerate(waveforms):
        alone, own_frames = run(model.backbone, [waveform])
        assert own_frames[0] == num_frames[index]
        for layer, (one, many) in enumerate(zip(alone, together, strict=True)):
            difference = (one[0] - many[index, : own_frames[0]]).abs().max() / one.std()
            assert difference < 1e-4, f"layer {layer}"


def test_pre_norm_ends_with_the_final_norm(model, waveforms):
    states, _ = run(model.backbone, [waveforms[-1]])
    norm = model.backbone.encoder.transformer.layer_norm
    spread = ((states[-1] - norm.bias) / norm.weight).std(-1)
    if model.backbone.config.pre_norm:
        torch.testing.assert_close(spread, torch.ones_like(spread), atol=0.05, rtol=0)
        spread_before = ((states[-2] - norm.bias) / norm.weight).std(-1)
        assert (spread_before - 1).abs().mean() > 0.05  # and no layer before it


def test_normalised_input_ignores_gain_and_offset(waveforms):
    wave = waveforms[4]
    for normalize in (True, False):
        backbone = tiny_model(dataclasses.replace(PRE_NORM, normalize=normalize)).backbone
        plain, moved = run(backbone, [wave])[0][-1], run(backbone, [wave * 3 + 0.5])[0][-1]
        assert torch.allclose(plain, moved, atol=1e-3) == normalize


def test_presets_have_hubert_sizes():
    with torch.device("meta"):
        counts = [
            sum(p.numel() for p in Backbone(preset()).parameters())
            for preset in (BackboneConfig.base, BackboneConfig.large, BackboneConfig.xlarge)
        ]
    assert [round(count / 1e6) for count in counts] == [94, 315, 962]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_heads": 5}, "width 32 is not a multiple of num_heads 5"),
        ({"num_layers": 0}, "num_layers must be at least 1, found 0"),
        ({"conv_norm": "batch"}, 'conv_norm must be "group" or "layer", found \'batch\''),
        ({"depth": 3}, "unknown fields: depth"),
    ],
)
def test_impossible_configurations_are_refused(wrong, message):
    with pytest.raises(CheckpointError, match=message):
        BackboneConfig.from_dict({**dataclasses.asdict(POST_NORM), **wrong})
