"""transformers' models in memory, against their own states."""

import pytest
import torch

import daisy
from daisy import CheckpointError, ExitHeads, HeadsConfig, UsageError, policies
from tests.checkpoints.converters.test_huggingface import LARGE, SMALL, assert_parity, their_states
from tests.conftest import randomise

transformers = pytest.importorskip("transformers", reason="needs transformers")
KINDS = {
    "HuBERT": (transformers.HubertModel, transformers.HubertConfig, {}),
    "HuBERT Large": (transformers.HubertModel, transformers.HubertConfig, LARGE),
    "batch norm": (transformers.HubertModel, transformers.HubertConfig, dict(conv_pos_batch_norm=True)),
    "wav2vec 2.0": (transformers.Wav2Vec2Model, transformers.Wav2Vec2Config, {}),
    "WavLM": (transformers.WavLMModel, transformers.WavLMConfig, {}),
    "with CTC": (transformers.HubertForCTC, transformers.HubertConfig, dict(vocab_size=12)),
}


def make(name, **more):
    kind, config_type, settings = KINDS[name]
    return randomise(kind(config_type(**{**SMALL, **settings, **more}))).eval()


@pytest.mark.parametrize("do_normalize", [True, False])
@pytest.mark.parametrize("name", KINDS)
def test_states_are_those_of_the_model(name, do_normalize, waveforms):
    model = make(name)
    extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=do_normalize, return_attention_mask=True)
    ours = daisy.from_hf(model, extractor)
    network = getattr(model, "hubert", model)
    for waveform in waveforms[3:]:
        assert_parity(ours.encoder("never")([waveform]).states, their_states(network, extractor, [waveform]))
    batch = ours.encoder("fixed", layer=2)(waveforms)
    for row, waveform in enumerate(waveforms[3:], 3):
        alone = their_states(network, extractor, [waveform])[0][:3]
        assert_parity([batch.states[row]], [alone])
    assert "assumed" not in ours.provenance
    assert ours.provenance["converted_from"] == f"transformers {type(model).__name__}"


def test_a_processor_gives_its_feature_extractor(tmp_path):
    (tmp_path / "vocab.json").write_text('{"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "|": 4, "A": 5}')
    tokenizer = transformers.Wav2Vec2CTCTokenizer(str(tmp_path / "vocab.json"))
    extractor = transformers.Wav2Vec2FeatureExtractor(sampling_rate=8000, do_normalize=True)
    model = make("HuBERT")
    ours = daisy.from_hf(model, transformers.Wav2Vec2Processor(extractor, tokenizer)).backbone.config
    assert ours == daisy.from_hf(model, extractor).backbone.config
    assert (ours.sample_rate, ours.normalize) == (8000, True)
    with pytest.raises(UsageError, match="a Wav2Vec2CTCTokenizer does not tell the rate"):
        daisy.from_hf(model, tokenizer)


def test_heads_may_be_given(waveforms):
    heads = randomise(ExitHeads(HeadsConfig(num_layers=4, width=32, num_units=11)))
    ours = daisy.from_hf(make("HuBERT"), heads=heads)
    assert ours.heads is heads
    assert "normalize false: no feature extractor was given" in ours.provenance["assumed"]
    scores = ours.encoder("never", scores=["entropy"])(waveforms).scores["entropy"]
    out = ours.encoder(policies.Entropy(threshold=float(scores[:, 1].median())))(waveforms)
    assert int(out.exit_layer.min()) <= 2


def test_weight_norm_may_be_folded_and_weights_may_be_bfloat16(waveforms):
    model = make("HuBERT")
    expected = daisy.from_hf(model).encoder("never")(waveforms[4]).states[0]
    torch.nn.utils.parametrize.remove_parametrizations(model.encoder.pos_conv_embed.conv, "weight")
    torch.testing.assert_close(daisy.from_hf(model).encoder("never")(waveforms[4]).states[0], expected)
    rounded = daisy.from_hf(model.bfloat16()).encoder("never")(waveforms[4]).states[0]
    assert rounded.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(rounded, expected, dim=-1).mean() > 0.99


def test_weights_are_copied(waveforms):
    model = make("HuBERT")
    ours = daisy.from_hf(model)
    before = ours.encoder("never")(waveforms[4]).states[0].clone()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(ours.encoder("never")(waveforms[4]).states[0], before)


def test_other_models_are_refused():
    tiny = {**SMALL, "num_hidden_layers": 1}
    with pytest.raises(
        CheckpointError, match="type 'unispeech' is not supported: known are transformers' hubert, wav2vec2"
    ):
        daisy.from_hf(transformers.UniSpeechModel(transformers.UniSpeechConfig(**tiny)))
    with pytest.raises(CheckpointError, match="a Linear is not supported"):
        daisy.from_hf(torch.nn.Linear(2, 2))
    adapted = transformers.Wav2Vec2Config(**tiny, add_adapter=True, output_hidden_size=SMALL["hidden_size"])
    with pytest.raises(CheckpointError, match="add_adapter"):
        daisy.from_hf(transformers.Wav2Vec2Model(adapted))
