"""Our HuBERT against torchaudio's, with the same names and shapes: same weights, same bits."""

import pytest
import torch

from tests.conftest import KINDS, tiny_model

torchaudio = pytest.importorskip("torchaudio", reason="needs torchaudio, to compare with")


def make_torchaudio_model(backbone):
    """torchaudio's model with the backbone's weights, every one of them under its own name."""
    config = backbone.config
    model = torchaudio.models.wav2vec2_model(
        extractor_mode=f"{config.conv_norm}_norm",
        extractor_conv_layer_config=list(config.conv_layers),
        extractor_conv_bias=config.conv_bias,
        encoder_embed_dim=config.width,
        encoder_projection_dropout=0.0,
        encoder_pos_conv_kernel=config.pos_kernel,
        encoder_pos_conv_groups=config.pos_groups,
        encoder_num_layers=config.num_layers,
        encoder_num_heads=config.num_heads,
        encoder_attention_dropout=0.0,
        encoder_ff_interm_features=config.ffn_width,
        encoder_ff_interm_dropout=0.0,
        encoder_dropout=0.0,
        encoder_layer_norm_first=config.pre_norm,
        encoder_layer_drop=0.0,
        aux_num_out=None,
    ).eval()
    torch.nn.utils.parametrize.remove_parametrizations(model.encoder.transformer.pos_conv_embed.conv, "weight")
    weights = backbone.state_dict()
    assert set(weights) - {"mask_embedding"} == set(model.state_dict())
    model.load_state_dict({name: weights[name] for name in model.state_dict()})
    return model


@pytest.fixture(params=KINDS)
def pair(request):
    backbone = tiny_model(KINDS[request.param]).backbone
    return backbone, make_torchaudio_model(backbone)


def normalized(backbone, batch):
    """What torchaudio is to be given: its models leave normalising to the caller."""
    return torch.nn.functional.layer_norm(batch, batch.shape[-1:]) if backbone.config.normalize else batch


@torch.no_grad()
@pytest.mark.parametrize("num_samples", [400, 719, 5000, 16000, 24123])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_recordings_of_one_length(pair, num_samples, batch_size):
    backbone, theirs = pair
    num_layers = backbone.config.num_layers
    batch = 0.1 * torch.randn(batch_size, num_samples, generator=torch.Generator().manual_seed(num_samples))
    states, num_frames = backbone(batch)
    expected, _ = theirs.extract_features(normalized(backbone, batch))
    last, _ = theirs(normalized(backbone, batch))
    assert len(states) == len(expected) + 1 == num_layers + 1
    assert last.shape[1] == int(num_frames[0])
    for layer in range(1, num_layers + (not backbone.config.pre_norm)):
        assert torch.equal(states[layer], expected[layer - 1]), f"layer {layer}"
    assert torch.equal(states[num_layers], last)  # with pre-norm the layers of `extract_features` lack the final norm


@torch.no_grad()
def test_convolutions_and_layer_0(pair):
    backbone, theirs = pair
    batch = 0.1 * torch.randn(2, 9000, generator=torch.Generator().manual_seed(1))
    features, num_frames = backbone.front_end(batch)
    expected, _ = theirs.feature_extractor(normalized(backbone, batch), None)
    assert torch.equal(features, expected)
    projected = theirs.encoder.feature_projection(expected)
    assert torch.equal(backbone.embed(features, None), theirs.encoder.transformer._preprocess(projected))
    assert num_frames.tolist() == [expected.shape[1]] * 2


@torch.no_grad()
def test_recordings_of_many_lengths_frame_by_frame(pair, waveforms):
    """From the features on: their convolutions of a padded batch let the padding count in the group norm."""
    backbone, theirs = pair
    num_samples = torch.tensor([len(waveform) for waveform in waveforms])
    padded = torch.nn.utils.rnn.pad_sequence(waveforms, batch_first=True)
    features, num_frames = backbone.front_end(padded, num_samples)
    states = [backbone.embed(features, num_frames)]
    for layer in range(1, backbone.config.num_layers + 1):
        states.append(backbone.layer(layer, states[-1], num_frames))
    expected = theirs.encoder.extract_features(features, num_frames)
    if backbone.config.pre_norm:
        expected[-1] = theirs.encoder.transformer.layer_norm(expected[-1])
    for layer, layer_states in enumerate(expected, 1):
        for row, count in enumerate(num_frames.tolist()):
            assert torch.equal(states[layer][row, :count], layer_states[row, :count]), f"layer {layer}"
