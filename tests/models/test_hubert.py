import dataclasses

import pytest
import torch

from daisy import BackboneConfig, CheckpointError
from daisy.models import Backbone
from tests.conftest import KIN_KINDS, KINDS, POST_NORM, PRE_NORM, RARE_KINDS, tiny_model


def run(backbone, waveforms):
    num_samples = torch.tensor([len(w) for w in waveforms])
    batch = torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True, padding_value=float("nan"))
    with torch.no_grad():
        features, num_frames = backbone.front_end(batch, num_samples)
        states = [backbone.embed(features, num_frames)]
        for layer in range(1, backbone.config.num_layers + 1):
            states.append(backbone.layer(layer, states[-1], num_frames))
    return states, num_frames


@pytest.mark.parametrize("config", [*KINDS.values(), *RARE_KINDS.values(), *KIN_KINDS.values()])
def test_what_lies_past_an_utterances_end_is_never_read(config, waveforms):
    """The batch is padded with NaN; alone, an utterance has no padding at all."""
    backbone = tiny_model(config).backbone
    together, num_frames = run(backbone, waveforms)
    for index, waveform in enumerate(waveforms):
        alone, own_frames = run(backbone, [waveform])
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
        ({"num_layers": 0}, "num_layers must be a whole number, at least 1, found 0"),
        ({"num_layers": 2.0}, "num_layers must be a whole number, at least 1, found 2.0"),
        ({"width": True}, "width must be a whole number, at least 1, found True"),
        ({"pre_norm": "no"}, "pre_norm must be true or false, found 'no'"),
        ({"layer_norm_eps": -1e-5}, "layer_norm_eps must be a number of at least 0, below 1, found -1e-05"),
        ({"layer_norm_eps": 1e12}, "layer_norm_eps must be a number of at least 0, below 1, found 1000000000000.0"),
        ({"normalize_eps": float("nan")}, "normalize_eps must be a number of at least 0, below 1, found nan"),
        ({"normalize_eps": "1e-7"}, "normalize_eps must be a number of at least 0, below 1, found '1e-7'"),
        ({"conv_layers": [[16, 10, 0]]}, r"conv_layers must be \(channels, kernel, stride\) of each convolution"),
        ({"conv_layers": []}, r"conv_layers must be \(channels, kernel, stride\) of each convolution"),
        ({"conv_norm": "batch"}, 'conv_norm must be "group" or "layer", found \'batch\''),
        ({"depth": 3}, "unknown fields: depth"),
    ],
)
def test_impossible_configurations_are_refused(wrong, message):
    with pytest.raises(CheckpointError, match=message):
        BackboneConfig.from_dict({**dataclasses.asdict(POST_NORM), **wrong})


@torch.no_grad()
def test_batch_norm_before_the_positions_is_torchs_with_fixed_statistics():
    backbone = tiny_model(RARE_KINDS["post-norm"]).backbone.train()
    ours = backbone.encoder.transformer.pos_conv_embed.batch_norm
    theirs = torch.nn.BatchNorm1d(len(ours.weight)).eval()
    theirs.load_state_dict(ours.state_dict() | {"num_batches_tracked": torch.tensor(1)})
    x = 3 * torch.randn(2, 9, len(ours.weight), generator=torch.Generator().manual_seed(0))
    before = {name: value.clone() for name, value in ours.state_dict().items()}
    torch.testing.assert_close(ours(x), theirs(x.transpose(1, 2)).transpose(1, 2), atol=1e-5, rtol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in ours.state_dict().items())
    assert ours.bfloat16()(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("eps", [1e-7, 1e-5])
def test_a_quiet_recording_is_normalised_with_the_checkpoints_epsilon(eps):
    """At -60 dBFS the variance is 1e-6."""
    config = dataclasses.replace(PRE_NORM, normalize_eps=eps)
    backbone, waveform = (
        tiny_model(config).backbone,
        1e-3 * torch.randn(8000, generator=torch.Generator().manual_seed(0)),
    )
    scale = (waveform.var(correction=0) + eps).rsqrt()
    plain = tiny_model(dataclasses.replace(config, normalize=False)).backbone
    expected = run(plain, [(waveform - waveform.mean()) * scale])[0]
    for states, others in zip(run(backbone, [waveform])[0], expected, strict=True):
        assert (states - others).abs().max() < 1e-4 * others.std()
    assert (run(plain, [waveform])[0][-1] - expected[-1]).abs().max() > 0.1 * expected[-1].std()


@torch.no_grad()
def test_layer_norm_eps_is_that_of_all_norms_but_the_convolutions():
    config = dataclasses.replace(PRE_NORM, layer_norm_eps=0.5)
    modules = dict(tiny_model(config).backbone.named_modules())
    norms = {name: module.eps for name, module in modules.items() if isinstance(module, torch.nn.LayerNorm)}
    assert {eps for name, eps in norms.items() if "conv_layers" in name} == {1e-5}
    assert {eps for name, eps in norms.items() if "conv_layers" not in name} == {0.5}
    assert len(norms) == 7 + 2 + 2 * config.num_layers
