"""WavLM of transformers, of its authors (as s3prl has it) and of torchaudio, against their own states."""

import warnings

import pytest
import torch

import daisy
from daisy import CheckpointError
from daisy.checkpoints.converters import convert
from daisy.checkpoints.converters.fairseq import weights as to_fairseq
from tests.checkpoints.converters.conftest import fairseq_config
from tests.checkpoints.converters.test_huggingface import LARGE, SMALL, assert_parity, their_states
from tests.conftest import KINDS, randomise

transformers = pytest.importorskip("transformers", reason="needs transformers")
SHAPES = {"post-norm": {}, "pre-norm": LARGE, "few buckets": dict(num_buckets=16, max_bucket_distance=30)}
BEYOND = 17 * 16000
"""Samples of more frames than the distance that all farther ones share, 800."""


def spread_positions(model):
    """Biases and gates of a size that shows."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("rel_attn_embed.weight", "relative_attention_bias.weight")):
                parameter.mul_(8)
            if name.endswith(("gru_rel_pos_const", "grep_a")):
                parameter.add_(1)
    return model


def long_waveform():
    return 0.1 * torch.randn(BEYOND, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("name", SHAPES)
def test_states_are_those_of_transformers(name, waveforms, tmp_path):
    """Short and long, on the packed runtime and by the plain modules."""
    model = spread_positions(randomise(transformers.WavLMModel(transformers.WavLMConfig(**{**SMALL, **SHAPES[name]}))))
    model.eval().save_pretrained(tmp_path / "hf")
    extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=name == "pre-norm")
    extractor.save_pretrained(tmp_path / "hf")
    ours = convert(tmp_path / "hf")
    assert ours.provenance["network"] == "WavLM"
    daisy.save(ours, tmp_path / "ours.safetensors")
    ours = daisy.load(tmp_path / "ours.safetensors")
    assert ours.backbone.config.relative_buckets == SHAPES[name].get("num_buckets", 320)
    for waveform in (waveforms[0], waveforms[4], long_waveform()):
        expected = their_states(model, extractor, [waveform])
        for fast in (True, False):
            assert_parity(ours.encoder("never", fast=fast)([waveform]).states, expected)
    with torch.no_grad():
        ours.backbone.encoder.transformer.rel_attn_embed.weight.zero_()
    states = ours.encoder("never")([waveforms[4]]).states[0]
    assert (states[1] - their_states(model, extractor, [waveforms[4]])[0][1]).std() > 0.1


@pytest.mark.parametrize("kind", ["WavLMForCTC", "WavLMForXVector", "WavLMForSequenceClassification"])
def test_fine_tuned_ones_of_transformers(kind, waveforms, tmp_path):
    model = randomise(getattr(transformers, kind)(transformers.WavLMConfig(**SMALL, vocab_size=7))).eval()
    extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=False)
    for part in (model, extractor):
        part.save_pretrained(tmp_path / "hf")
    ours = convert(tmp_path / "hf")
    expected = {"WavLMForCTC": "lm_head", "WavLMForSequenceClassification": "classifier, projector"}
    assert ours.provenance["left_out"] == expected.get(kind, ours.provenance["left_out"])
    assert_parity(ours.encoder("never")([waveforms[4]]).states, their_states(model.wavlm, extractor, [waveforms[4]]))


@pytest.fixture(params=["post-norm", "pre-norm"])
def shape(request):
    return KINDS[request.param]


@pytest.fixture
def published(shape):
    """The authors' own WavLM, and the file that they publish."""
    module = pytest.importorskip("s3prl.upstream.wavlm.WavLM", reason="needs s3prl")
    model_cfg, _ = fairseq_config(shape)
    cfg = {key: value for key, value in model_cfg.items() if key not in ("_name", "label_rate", "final_dim")}
    cfg |= {"normalize": shape.normalize, "relative_position_embedding": True, "gru_rel_pos": True, "max_distance": 800}
    model = spread_positions(randomise(module.WavLM(module.WavLMConfig(cfg)))).eval()
    return model, {"cfg": cfg, "model": model.state_dict()}


def test_states_are_those_of_s3prls_upstream(published, waveforms, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from s3prl.upstream.wavlm.expert import UpstreamExpert
    torch.save(published[1], tmp_path / "wavlm.pt")
    ours = convert(tmp_path / "wavlm.pt")
    assert ours.provenance == {"converted_from": "wavlm.pt", "network": "WavLM"}
    assert torch.equal(ours.backbone.mask_embedding, published[0].mask_emb)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        expert = UpstreamExpert(str(tmp_path / "wavlm.pt")).eval()
        for waveform in (waveforms[6], long_waveform()):
            hidden = torch.stack([states[0] for states in expert([waveform])["hidden_states"]])
            for fast in (True, False):
                assert_parity(ours.encoder("never", fast=fast)([waveform]).states, [hidden])


def test_options_of_the_published_form(published, tmp_path):
    _, state = published
    path = tmp_path / "wavlm.pt"
    del state["cfg"]["max_distance"]  # the class's own default
    torch.save(state, path)
    assert convert(path).backbone.config.relative_max_distance == 1280
    torch.save({**state, "cfg": {**state["cfg"], "num_buckets": 64}}, path)
    with pytest.raises(CheckpointError, match=r"rel_attn_embed\.weight"):
        convert(path)
    torch.save({**state, "cfg": {**state["cfg"], "gru_rel_pos": False}}, path)
    with pytest.raises(CheckpointError, match="WavLM with relative_position_embedding without gru_rel_pos is not"):
        convert(path)
    torch.save({**state, "cfg": {**state["cfg"], "relative_position_embedding": False}}, path)
    with pytest.raises(CheckpointError, match=r"rel_attn_embed\.weight|gru_rel_pos"):
        convert(path)


def test_weights_alone_of_the_published_form(published, shape, tmp_path):
    torch.save({"model": published[1]["model"]}, tmp_path / "x.pt")
    ours = convert(tmp_path / "x.pt")
    assert ours.backbone.config.num_heads == shape.num_heads  # of the biases' shape
    assert "relative_max_distance 800: the weights do not tell" in ours.provenance["assumed"]
    assert "num_heads" not in ours.provenance["assumed"]
    given = convert(tmp_path / "x.pt", overrides={"relative_max_distance": "1280"})
    assert given.backbone.config.relative_max_distance == 1280
    assert "relative_max_distance" not in given.provenance["assumed"]


def test_states_are_those_of_torchaudio(shape, waveforms, tmp_path):
    torchaudio = pytest.importorskip("torchaudio", reason="needs torchaudio")
    model = torchaudio.models.wavlm_model(
        extractor_mode="layer_norm" if shape.conv_norm == "layer" else "group_norm",
        extractor_conv_layer_config=list(shape.conv_layers),
        extractor_conv_bias=shape.conv_bias,
        encoder_embed_dim=shape.width,
        encoder_projection_dropout=0.0,
        encoder_pos_conv_kernel=shape.pos_kernel,
        encoder_pos_conv_groups=shape.pos_groups,
        encoder_num_layers=shape.num_layers,
        encoder_num_heads=shape.num_heads,
        encoder_num_buckets=320,
        encoder_max_distance=800,
        encoder_attention_dropout=0.0,
        encoder_ff_interm_features=shape.ffn_width,
        encoder_ff_interm_dropout=0.0,
        encoder_dropout=0.0,
        encoder_layer_norm_first=shape.pre_norm,
        encoder_layer_drop=0.0,
        aux_num_out=None,
    )
    model = spread_positions(randomise(model)).eval()
    torch.save(model.state_dict(), tmp_path / "model.pth")
    ours = convert(tmp_path / "model.pth")
    assert ours.provenance["network"] == "WavLM"
    for waveform in (waveforms[4], long_waveform()):
        source = torch.nn.functional.layer_norm(waveform, waveform.shape) if shape.normalize else waveform
        with torch.no_grad():
            theirs = [states[0] for states in model.extract_features(source[None])[0]]
            if shape.pre_norm:
                theirs[-1] = model.encoder.transformer.layer_norm(theirs[-1])
        assert_parity([ours.encoder("never")([waveform]).states[0][1:]], [torch.stack(theirs)])


def test_fairseqs_hubert_has_no_place_for_it(published, tmp_path):
    torch.save(published[1], tmp_path / "wavlm.pt")
    with pytest.raises(CheckpointError, match="has the positions of WavLM or data2vec, for which"):
        to_fairseq(convert(tmp_path / "wavlm.pt"))
