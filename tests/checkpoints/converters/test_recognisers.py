"""Fine-tuned and published recognisers: their output layers become exits with tokens."""

import json

import pytest
import torch
from torch.nn import functional as F

from daisy.checkpoints import load, save
from daisy.checkpoints.converters import convert
from daisy.checkpoints.converters.token_files import read_token_file
from daisy.errors import CheckpointError, UsageError
from daisy.models import CTCHeads, CTCHeadsConfig, Tokens
from tests.conftest import POST_NORM, PRE_NORM, randomise, tiny_model

LETTERS = "|ETAOIN"
SYMBOLS = ("<s>", "<pad>", "</s>", "<unk>", *LETTERS)
VOCABULARY = {symbol: number for number, symbol in enumerate(("<pad>", "<s>", "</s>", "<unk>", *LETTERS))}
WAVE = 0.1 * torch.randn(9000, generator=torch.Generator().manual_seed(3))


def run_exits(model, wave=WAVE):
    """Logits of each exit, by layer."""
    with torch.no_grad():
        states, num_frames = model.backbone(wave[None], torch.tensor([len(wave)]))
        return {layer: model.ctc(layer, states[layer], num_frames)[0] for layer in model.ctc.config.layers}


def assert_close(ours, theirs):
    assert float((ours - theirs).abs().max()) < 1e-4 * float(theirs.std())


def make_fine_tuned(config, path, kept="target_dictionary"):
    """A file as fairseq leaves it after fine-tuning ``hubert_ctc`` with letters, and that model."""
    pytest.importorskip("fairseq", reason="needs fairseq")
    from types import SimpleNamespace

    from fairseq.data import Dictionary
    from fairseq.models.hubert.hubert_asr import HubertCtc, HubertCtcConfig
    from omegaconf import OmegaConf

    from fairseq_plugins.export import make_stock_checkpoint

    source = tiny_model(config)
    torch.save(make_stock_checkpoint(source), path.with_name("pretrained.pt"))
    dictionary = Dictionary()
    for letter in LETTERS:
        dictionary.add_symbol(letter)
    given = {"w2v_path": str(path.with_name("pretrained.pt")), "normalize": config.normalize, "data": "."}
    cfg = OmegaConf.merge(OmegaConf.structured(HubertCtcConfig), {**given, "apply_mask": True})
    cfg._name = "hubert_ctc"
    task = SimpleNamespace(target_dictionary=dictionary, state_dict=dict)
    model = randomise(HubertCtc.build_model(cfg, task)).eval()
    task_cfg = {"_name": "audio_finetuning", "labels": "ltr", "normalize": config.normalize}
    state = {
        "args": None,
        "cfg": {"model": OmegaConf.to_container(cfg, enum_to_str=True), "task": task_cfg},
        "model": model.state_dict(),
        "task_state": {"target_dictionary": dictionary, "dictionaries": [dictionary]},
    }
    state["task_state"] = {name: value for name, value in state["task_state"].items() if name == kept}
    torch.save(state, path)
    return model


@pytest.mark.parametrize(
    ("config", "kept"),
    [(POST_NORM, "target_dictionary"), (PRE_NORM, "dictionaries")],
    ids=["post-norm, of audio_finetuning", "pre-norm, of hubert_pretraining"],
)
def test_fairseqs_fine_tuned_hubert(config, kept, tmp_path):
    theirs = make_fine_tuned(config, tmp_path / "hubert.pt", kept)
    ours = convert(tmp_path / "hubert.pt", allow_pickle=True)
    assert (ours.tokens.symbols, ours.tokens.blank) == (SYMBOLS, 0)
    assert ours.ctc.config.layers == (config.num_layers,)
    source = F.layer_norm(WAVE, WAVE.shape) if config.normalize else WAVE
    with torch.no_grad():
        logits = theirs(source=source[None], padding_mask=torch.zeros(1, len(WAVE), dtype=torch.bool))["encoder_out"]
    assert_close(run_exits(ours)[config.num_layers], logits[:, 0])
    assert ours.provenance["left_out"] == "what is left of the prediction head"
    save(ours, tmp_path / "ours.safetensors")
    assert load(tmp_path / "ours.safetensors").tokens == ours.tokens


def test_the_dictionary_of_a_fine_tuned_hubert_lies_inside_or_beside_or_is_given(tmp_path):
    theirs = make_fine_tuned(POST_NORM, tmp_path / "hubert.pt", kept="")
    ours = convert(tmp_path / "hubert.pt", allow_pickle=True)
    assert ours.ctc is None
    assert "w2v_encoder.proj" in ours.provenance["left_out"]
    lines = "".join(f"{letter} 1\n" for letter in LETTERS)
    (tmp_path / "dict.ltr.txt").write_text(lines)
    beside = convert(tmp_path / "hubert.pt", allow_pickle=True)
    assert beside.tokens.symbols == SYMBOLS
    assert torch.equal(beside.ctc.classifiers["4"].weight, theirs.w2v_encoder.proj.weight)
    (tmp_path / "dict.ltr.txt").write_text(lines + "X 1\n")  # of another model
    assert convert(tmp_path / "hubert.pt", allow_pickle=True).ctc is None
    (tmp_path / "letters.txt").write_text(lines.replace("N", "X"))
    given = convert(tmp_path / "hubert.pt", allow_pickle=True, tokens=tmp_path / "letters.txt")
    assert given.tokens.symbols == (*SYMBOLS[:-1], "X")
    with pytest.raises(CheckpointError, match="output layer has 11 tokens, and the file of tokens 12"):
        convert(tmp_path / "hubert.pt", allow_pickle=True, tokens=tmp_path / "dict.ltr.txt")
    with pytest.raises(CheckpointError, match="has no output layer of CTC"):
        convert(tmp_path / "pretrained.pt", allow_pickle=True, tokens=tmp_path / "letters.txt")


def make_hugging_face(kind, folder, num_layers=4):
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    config = getattr(transformers, f"{kind}Config")(
        num_hidden_layers=num_layers, hidden_size=32, intermediate_size=48, num_attention_heads=4, conv_dim=(16,) * 7,
        num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4, vocab_size=len(VOCABULARY), pad_token_id=0,
    )  # fmt: skip
    model = randomise(getattr(transformers, f"{kind}ForCTC")(config)).eval()
    model.save_pretrained(folder)
    (folder / "vocab.json").write_text(json.dumps(VOCABULARY))
    (folder / "preprocessor_config.json").write_text(json.dumps({"do_normalize": False}))
    return model


@pytest.mark.parametrize("kind", ["Hubert", "Wav2Vec2"])
def test_hugging_faces_ctc_models(kind, tmp_path):
    theirs = make_hugging_face(kind, tmp_path)
    ours = convert(tmp_path)
    assert (ours.tokens.symbols, ours.tokens.blank) == (tuple(VOCABULARY), 0)
    with torch.no_grad():
        logits = theirs(WAVE[None]).logits[0]
    assert_close(run_exits(ours)[4], logits)
    (tmp_path / "vocab.json").unlink()
    (tmp_path / "other.json").write_text(json.dumps(VOCABULARY))
    assert_close(run_exits(convert(tmp_path, tokens=tmp_path / "other.json"))[4], logits)


def test_a_wav2vec2_that_computes_something_else_is_refused(tmp_path):
    make_hugging_face("Wav2Vec2", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for changes, message in (
        ({"add_adapter": True}, "wav2vec 2.0 with add_adapter is not supported"),
        ({"adapter_attn_dim": 4}, "adapter_attn_dim is not supported"),
        ({"model_type": "unispeech"}, "of type 'unispeech'; those that are read: hubert, wav2vec2"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**config, **changes}))
        with pytest.raises(CheckpointError, match=message):
            convert(tmp_path)


def test_files_of_tokens(tmp_path):
    (tmp_path / "dict.ltr.txt").write_text("| 5\nE 3\n' 1 #fairseq:overwrite\n")
    assert read_token_file(tmp_path / "dict.ltr.txt").symbols == ("<s>", "<pad>", "</s>", "<unk>", "|", "E", "'")
    (tmp_path / "vocab.json").write_text(json.dumps({"|": 1, "<pad>": 2, "a": 0}))
    assert read_token_file(tmp_path / "vocab.json") == Tokens(symbols=("a", "|", "<pad>"), blank=2)
    (tmp_path / "vocab.json").write_text(json.dumps({"a": 0, "[PAD]": 1}))
    assert read_token_file(tmp_path / "vocab.json") == Tokens(symbols=("a", "[PAD]"), blank=1)
    for name, content, message in (
        ("dict.txt", "E\n", "not a dictionary of fairseq's"),
        ("vocab.json", '{"a": 0, "b": 2}', "not a vocabulary of Hugging Face's"),
        ("vocab.json", '{"a": 0}', "has neither <pad> nor"),
        ("vocab.json", "{", "damaged"),
        ("tokens.csv", "", "tokens come from dict.ltr.txt of fairseq"),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(UsageError, match=message):
            read_token_file(tmp_path / name)
    with pytest.raises(UsageError, match="No such file"):
        read_token_file(tmp_path / "gone.txt")


def test_a_recogniser_goes_back_to_fairseqs_names_without_its_exits():
    from daisy.checkpoints.converters import fairseq

    model = tiny_model(POST_NORM)
    names = set(fairseq.weights(model))
    model.ctc = CTCHeads(CTCHeadsConfig(layers=(2, 4), width=32, num_tokens=11))
    assert set(fairseq.weights(model)) == names
