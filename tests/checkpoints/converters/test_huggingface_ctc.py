"""Hugging Face's recognisers, with one exit and with the public code's six."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import daisy
from daisy import CheckpointError
from daisy.checkpoints import convert
from daisy.checkpoints.converters.huggingface_ctc import LETTERS
from daisy.recognition import Recogniser
from tests.checkpoints.converters.test_huggingface import SMALL
from tests.conftest import randomise

transformers = pytest.importorskip("transformers", reason="needs transformers")
VOCABULARY = ["<pad>", "<s>", "</s>", "<unk>", "|", *LETTERS]
KINDS = {
    "hubert": (transformers.HubertForCTC, transformers.HubertConfig),
    "wav2vec2": (transformers.Wav2Vec2ForCTC, transformers.Wav2Vec2Config),
}


class EEWav2Vec2ForCTC(transformers.Wav2Vec2ForCTC):
    """As the public code has it: one module under seven names."""

    def __init__(self, config):
        super().__init__(config)
        self.decoders = torch.nn.ModuleList([self.lm_head for _ in range(config.num_hidden_layers // 2)])


def make(folder, kind, configuration, vocabulary=True, **options):
    """A random recogniser, saved in a folder; its states by layer, before dropout, and its head."""
    config = configuration(**{**SMALL, "vocab_size": len(VOCABULARY), "pad_token_id": 0, **options})
    model = randomise(kind(config)).eval()
    if kind is EEWav2Vec2ForCTC:  # what save_pretrained does with safetensors of modules that share their weights
        state = {key: value for key, value in model.state_dict().items() if not key.startswith("decoders.")}
        folder.mkdir(parents=True)
        save_file({k: v.contiguous() for k, v in state.items()}, folder / "model.safetensors")
        config.architectures = ["EEWav2Vec2ForCTC"]
        config.save_pretrained(folder)
    else:
        model.save_pretrained(folder)
    transformers.Wav2Vec2FeatureExtractor(do_normalize=True).save_pretrained(folder)
    if vocabulary:
        numbers = {token: number for number, token in enumerate(VOCABULARY)}
        (folder / "vocab.json").write_text(json.dumps(numbers))
    return model


@torch.no_grad()
def their_log_probs(model, waveform, layer):
    normed = (waveform - waveform.mean()) / (waveform.var(correction=0) + 1e-7).sqrt()
    states = getattr(model, "wav2vec2", None) or model.hubert
    return model.lm_head(states(normed[None], output_hidden_states=True).hidden_states[layer]).log_softmax(-1)[0]


@pytest.mark.parametrize("name", KINDS)
def test_a_fine_tuned_model_has_one_exit(name, tmp_path):
    model = make(tmp_path / "hf", *KINDS[name])
    ours = convert(tmp_path / "hf")
    assert ours.ctc.config.layers == (4,)
    assert ours.tokens.symbols == tuple(VOCABULARY)
    assert "left_out" not in ours.provenance
    waveform = 0.1 * torch.randn(16000, generator=torch.Generator().manual_seed(0))
    expected = their_log_probs(model, waveform, 4)
    daisy.save(ours, tmp_path / "ours.safetensors")
    recogniser = Recogniser(daisy.load(tmp_path / "ours.safetensors"))
    _, (log_probs,) = recogniser.run([waveform])
    torch.testing.assert_close(log_probs, expected, atol=2e-4, rtol=1e-4)
    tokenizer = transformers.Wav2Vec2CTCTokenizer(str(tmp_path / "hf" / "vocab.json"))
    assert recogniser([waveform])[0].text == tokenizer.decode(expected.argmax(-1), skip_special_tokens=True)


@pytest.mark.parametrize("vocabulary", [True, False])
def test_the_public_codes_one_head_serves_every_second_layer(vocabulary, tmp_path):
    model = make(tmp_path / "hf", EEWav2Vec2ForCTC, transformers.Wav2Vec2Config, vocabulary)
    ours = convert(tmp_path / "hf")
    assert ours.ctc.config.layers == (2, 4)
    assert ours.tokens.symbols == tuple(VOCABULARY)
    assert ("the vocabulary of facebook/wav2vec2-base" in ours.provenance.get("assumed", "")) is not vocabulary
    waveform = 0.1 * torch.randn(16000, generator=torch.Generator().manual_seed(0))
    for layer in (2, 4):
        _, (log_probs,) = Recogniser(ours, "fixed", layer=layer).run([waveform])
        torch.testing.assert_close(log_probs, their_log_probs(model, waveform, layer), atol=2e-4, rtol=1e-4)


def test_heads_of_their_own_are_told_apart(tmp_path):
    make(tmp_path / "hf", EEWav2Vec2ForCTC, transformers.Wav2Vec2Config)
    state = load_file(tmp_path / "hf" / "model.safetensors")
    head = state["lm_head.weight"]
    for index in range(2):
        state[f"decoders.{index}.weight"], state[f"decoders.{index}.bias"] = head + index + 1, state["lm_head.bias"] * 2
    save_file(state, tmp_path / "hf" / "model.safetensors")
    ours = convert(tmp_path / "hf")
    for index, layer in enumerate((2, 4)):
        assert torch.equal(ours.ctc.classifiers[str(layer)].weight, head + index + 1)


def test_a_missing_head_is_not_taken_from_another_exit(tmp_path):
    make(tmp_path / "hf", EEWav2Vec2ForCTC, transformers.Wav2Vec2Config)
    state = load_file(tmp_path / "hf" / "model.safetensors")
    state["decoders.0.weight"] = state["lm_head.weight"].clone()
    save_file(state, tmp_path / "hf" / "model.safetensors")
    ours = convert(tmp_path / "hf")  # one module under two of its names
    assert torch.equal(ours.ctc.classifiers["4"].weight, state["lm_head.weight"])
    state["decoders.0.weight"] += 1
    save_file(state, tmp_path / "hf" / "model.safetensors")
    with pytest.raises(CheckpointError, match="has CTC classifiers without decoders.1.weight"):
        convert(tmp_path / "hf")


@pytest.mark.parametrize(
    ("symbols", "settings", "path", "text"),
    [
        (["h", "i", "_", "x"], {"word_delimiter_token": "_"}, [1, 2, 3, 2], "hi i"),
        (["h", "i", " "], {"word_delimiter_token": {"content": " "}}, [1, 0, 2, 3, 2], "hi i"),
        (["h", "\u0259", "l", "o\u028a"], {"word_delimiter_token": None}, [1, 2, 3, 0, 4], "h \u0259 l o\u028a"),
    ],
)
def test_words_end_where_the_tokenizer_says(symbols, settings, path, text, tmp_path):
    make(tmp_path / "hf", *KINDS["wav2vec2"], vocabulary=False)
    vocabulary = {symbol: number for number, symbol in enumerate(["<pad>", *symbols])}
    (tmp_path / "hf" / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "hf" / "tokenizer_config.json").write_text(json.dumps(settings))
    ours = convert(tmp_path / "hf")
    assert ours.tokens.to_text(path) == text
    assert len(ours.tokens) == 32
    assert f"no text of {31 - len(symbols)} outputs" in ours.provenance["assumed"]


def test_without_a_vocabulary_nothing_is_recognised(tmp_path):
    for name, kind in KINDS.items():
        make(tmp_path / name, *kind, vocabulary=False)
        ours = convert(tmp_path / name)
        assert ours.ctc is None
        assert ours.provenance["left_out"] == "lm_head"
    shutil.copytree(tmp_path / "hubert", tmp_path / "more")
    (tmp_path / "more" / "vocab.json").write_text(json.dumps({"A": 0, "B": 40}))
    with pytest.raises(CheckpointError, match="vocab.json: has a token of number 40, and there are 32 outputs"):
        convert(tmp_path / "more")
