"""wav2vec 2.0 of transformers, fairseq, s3prl and torchaudio, against their own states."""

import argparse
import warnings

import pytest
import torch

from daisy import CheckpointError
from daisy.checkpoints.converters import convert
from tests.checkpoints.converters.conftest import fairseq_config
from tests.checkpoints.converters.test_huggingface import LARGE, SMALL, assert_parity, their_states
from tests.checkpoints.converters.test_sources import (
    assert_same,
    our_states,
    torchaudio_model,
)
from tests.conftest import randomise

transformers = pytest.importorskip("transformers", reason="needs transformers")
QUANTIZER = dict(num_codevectors_per_group=6, codevector_dim=8, proj_codevector_dim=8)


@pytest.mark.parametrize("shape", [{}, LARGE], ids=["post-norm", "pre-norm"])
@pytest.mark.parametrize("kind", ["Wav2Vec2ForPreTraining", "Wav2Vec2Model"])
def test_a_pre_trained_one_of_transformers(kind, shape, waveforms, tmp_path):
    config = transformers.Wav2Vec2Config(**{**SMALL, **QUANTIZER, **shape})
    model = randomise(getattr(transformers, kind)(config)).eval()
    extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=True)
    for part in (model, extractor):
        part.save_pretrained(tmp_path / "hf")
    ours = convert(tmp_path / "hf")
    assert ours.provenance["network"] == "wav2vec 2.0"
    left_out = ours.provenance.get("left_out")
    assert left_out == (None if kind == "Wav2Vec2Model" else "project_hid, project_q, quantizer, quantizer.weight_proj")
    expected = their_states(getattr(model, "wav2vec2", model), extractor, [waveforms[4]])
    for fast in (True, False):
        assert_parity(ours.encoder("never", fast=fast)([waveforms[4]]).states, expected)


@pytest.fixture
def wav2vec2(config):
    """fairseq's own Wav2Vec2Model with random weights, and the file that fairseq would write."""
    module = pytest.importorskip("fairseq.models.wav2vec.wav2vec2", reason="needs fairseq")
    model_cfg, _ = fairseq_config(config)
    model_cfg = {key: value for key, value in model_cfg.items() if key != "label_rate"}
    model_cfg |= {"_name": "wav2vec2", "quantize_targets": True, "latent_vars": 6, "latent_groups": 2}
    fields = {key: value for key, value in model_cfg.items() if key != "_name"}
    model = randomise(module.Wav2Vec2Model(module.Wav2Vec2Config(**fields))).eval()
    task_cfg = {"_name": "audio_pretraining", "normalize": config.normalize, "sample_rate": 16000}
    return model, {"args": None, "cfg": {"model": model_cfg, "task": task_cfg}, "model": model.state_dict()}


def wav2vec2_layers(model, waveform, num_layers, normalize):
    """Layers 1 to L; the class returns a dictionary where HuBERT's returns a pair."""
    source = torch.nn.functional.layer_norm(waveform, waveform.shape) if normalize else waveform
    with torch.no_grad():
        result = model.extract_features(source[None], None)
    return [*(states[:, 0] for states, *_ in result["layer_results"][: num_layers - 1]), result["x"][0]]


@pytest.mark.parametrize("form", ["hydra", "namespace", "without a name", "weights alone", "s3prl"])
def test_a_pre_trained_one_of_fairseq(config, wav2vec2, waveforms, tmp_path, form):
    model, state = wav2vec2
    overrides = None
    if form == "namespace":
        kept = {key: value for key, value in state["cfg"]["model"].items() if key != "_name"}
        arguments = argparse.Namespace(arch="wav2vec2", **kept, normalize=config.normalize, sample_rate=16000)
        state = {"args": arguments, "model": state["model"]}
    elif form == "without a name":
        del state["cfg"]["model"]["_name"]
    elif form == "weights alone":
        state = {"model": state["model"]}
        shape = {name: str(getattr(config, name)).lower() for name in ("num_heads", "pre_norm", "normalize")}
        overrides = {**shape, "sample_rate": "16000"}
    elif form == "s3prl":
        state = {
            "task_cfg": state["cfg"]["task"],
            "model_cfg": state["cfg"]["model"],
            "model_weight": state["model"],
        }
    torch.save(state, tmp_path / "x.pt")
    ours = convert(tmp_path / "x.pt", allow_pickle=True, overrides=overrides)
    assert ours.provenance["network"] == "wav2vec 2.0"
    assert ours.provenance["left_out"] == "quantizer, quantizer.weight_proj, project_q, final_proj"
    assert ours.final_head is None
    assert torch.equal(ours.backbone.mask_embedding, model.mask_emb)
    theirs = wav2vec2_layers(model, waveforms[4], config.num_layers, config.normalize)
    assert_same(our_states(ours, waveforms[4]), theirs)


def test_states_are_those_of_s3prls_upstream(config, wav2vec2, waveforms, tmp_path):
    pytest.importorskip("s3prl", reason="needs s3prl")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from s3prl.upstream.wav2vec2.expert import UpstreamExpert
    _, state = wav2vec2
    converted = {"task_cfg": state["cfg"]["task"], "model_cfg": state["cfg"]["model"], "model_weight": state["model"]}
    torch.save(converted, tmp_path / "converted.pt")
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        hidden = UpstreamExpert(str(tmp_path / "converted.pt")).eval()([waveforms[6]])["hidden_states"]
    ours = our_states(convert(tmp_path / "converted.pt", allow_pickle=True), waveforms[6])
    assert len(hidden) == len(ours) == config.num_layers + 1
    assert_same(ours, [states[0] for states in hidden], first_layer=0)


TOKENS = ["<s>", "<pad>", "</s>", "<unk>", "|", "A"]


def fine_tune(state, kind, normalize, **options):
    """The file that fairseq writes for ``wav2vec_ctc`` or ``wav2vec_seq2seq``."""
    place = "w2v_encoder.w2v_model." if kind == "wav2vec_ctc" else "encoder.w2v_model."
    kept = {k: v for k, v in state["model"].items() if not k.startswith(("quantizer", "project_q", "final_proj"))}
    weights = {place + key: value for key, value in kept.items()}
    width = len(kept["encoder.layer_norm.weight"])
    generator = torch.Generator().manual_seed(4)
    if kind == "wav2vec_ctc":
        weights["w2v_encoder.proj.weight"] = torch.randn(len(TOKENS), width, generator=generator)
        weights["w2v_encoder.proj.bias"] = torch.randn(len(TOKENS), generator=generator)
    else:
        weights |= {"decoder.embed_tokens.weight": torch.zeros(6, 8), "encoder.proj.weight": torch.zeros(8, width)}
    inner = {"model": state["cfg"]["model"], "task": {**state["cfg"]["task"], "normalize": not normalize}}
    outer = {"_name": kind, "w2v_args": inner, "normalize": normalize, **options}
    return {"cfg": {"model": outer, "task": {"_name": "audio_finetuning", "labels": "ltr"}}, "model": weights}


@pytest.mark.parametrize("kind", ["wav2vec_ctc", "wav2vec_seq2seq"])
def test_a_fine_tuned_one_of_fairseq(config, wav2vec2, waveforms, tmp_path, kind):
    model, state = wav2vec2
    torch.save(fine_tune(state, kind, config.normalize), tmp_path / "x.pt")
    ours = convert(tmp_path / "x.pt", allow_pickle=True)
    assert ours.provenance["network"] == "wav2vec 2.0"
    kept = "w2v_encoder.proj" if kind == "wav2vec_ctc" else "decoder.embed_tokens, encoder.proj"
    assert ours.provenance["left_out"] == kept
    theirs = wav2vec2_layers(model, waveforms[4], config.num_layers, config.normalize)
    assert_same(our_states(ours, waveforms[4]), theirs)


def test_what_is_added_to_the_blank_is_kept(wav2vec2, tmp_path):
    _, state = wav2vec2
    (tmp_path / "dict.ltr.txt").write_text("".join(f"{token} 1\n" for token in TOKENS[4:]))
    plain = fine_tune(state, "wav2vec_ctc", False)
    bias = plain["model"]["w2v_encoder.proj.bias"].clone()
    for options, added in (({}, 0.0), ({"blank_weight": 2.5, "blank_mode": "add"}, 2.5), ({"blank_weight": -1}, -1.0)):
        torch.save(fine_tune(state, "wav2vec_ctc", False, **options), tmp_path / "x.pt")
        exits = convert(tmp_path / "x.pt", allow_pickle=True).ctc
        assert exits.config.blank == 0
        kept = next(iter(exits.classifiers.values())).bias
        assert torch.equal(kept - bias, torch.tensor([added, 0, 0, 0, 0, 0]))
    torch.save(fine_tune(state, "wav2vec_ctc", False, blank_weight=2.5, blank_mode="set"), tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="wav2vec_ctc with blank_mode=set is not supported, only add"):
        convert(tmp_path / "x.pt", allow_pickle=True)


def test_quantised_input_is_refused(wav2vec2, tmp_path):
    _, state = wav2vec2
    state["cfg"]["model"]["quantize_input"] = True
    torch.save(state, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"wav2vec 2\.0 with quantize_input=True is not supported, only False"):
        convert(tmp_path / "x.pt", allow_pickle=True)
    del state["cfg"]
    state["model"]["project_inp.weight"] = torch.zeros(4, 4)
    torch.save(state, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"no place in a wav2vec 2\.0: project_inp\.weight"):
        convert(tmp_path / "x.pt", allow_pickle=True)


@pytest.mark.parametrize("pretraining", [False, True])
def test_torchaudios_state_dicts_do_not_tell_it_from_hubert(config, tmp_path, pretraining):
    torch.save(torchaudio_model(config, pretraining).state_dict(), tmp_path / "model.pth")
    ours = convert(tmp_path / "model.pth", overrides={"num_heads": str(config.num_heads)})
    assert ours.provenance.get("network") == (None if pretraining else "HuBERT or wav2vec 2.0")
