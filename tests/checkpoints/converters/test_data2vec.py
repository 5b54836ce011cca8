"""data2vec of transformers and fairseq, against their own states."""

import importlib

import pytest
import torch

import daisy
from daisy import CheckpointError
from daisy.checkpoints.converters import convert
from daisy.checkpoints.converters.fairseq import weights as to_fairseq
from tests.checkpoints.converters.conftest import fairseq_config
from tests.checkpoints.converters.test_huggingface import SMALL, assert_parity, their_states
from tests.checkpoints.converters.test_sources import assert_same
from tests.checkpoints.converters.test_wav2vec2 import wav2vec2_layers
from tests.conftest import POST_NORM, randomise

transformers = pytest.importorskip("transformers", reason="needs transformers")
STACK = dict(num_conv_pos_embeddings=5, conv_pos_kernel_size=19)
SHAPES = {"as published": STACK, "even kernel": dict(num_conv_pos_embeddings=2, conv_pos_kernel_size=4)}
SHAPES["one convolution"] = dict(num_conv_pos_embeddings=1, conv_pos_kernel_size=7)


@pytest.mark.parametrize("name", SHAPES)
def test_states_are_those_of_transformers(name, waveforms, tmp_path):
    config = transformers.Data2VecAudioConfig(**{**SMALL, **SHAPES[name]})
    model = randomise(transformers.Data2VecAudioModel(config)).eval()
    extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=True)
    for part in (model, extractor):
        part.save_pretrained(tmp_path / "hf")
    ours = convert(tmp_path / "hf")
    assert ours.provenance["network"] == "data2vec"
    daisy.save(ours, tmp_path / "ours.safetensors")
    ours = daisy.load(tmp_path / "ours.safetensors")
    for waveform in (waveforms[0], waveforms[4], waveforms[6]):
        expected = their_states(model, extractor, [waveform])
        for fast in (True, False):
            assert_parity(ours.encoder("never", fast=fast)([waveform]).states, expected)


def test_a_fine_tuned_one_of_transformers(waveforms, tmp_path):
    config = transformers.Data2VecAudioConfig(**{**SMALL, **STACK}, vocab_size=6)
    model = randomise(transformers.Data2VecAudioForCTC(config)).eval()
    extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=True)
    for part in (model, extractor):
        part.save_pretrained(tmp_path / "hf")
    ours = convert(tmp_path / "hf")
    assert ours.provenance["left_out"] == "lm_head"
    expected = their_states(model.data2vec_audio, extractor, [waveforms[4]])
    assert_parity(ours.encoder("never")([waveforms[4]]).states, expected)


@pytest.fixture(params=["fairseq", "s3prl"])
def data2vec(request):
    """The Data2VecAudioModel of fairseq's examples, or s3prl's copy, and the file that fairseq would write."""
    module, config_module = ("fairseq.examples.data2vec.models.data2vec_audio",) * 2
    if request.param == "s3prl":
        module, config_module = ("s3prl.upstream.data2vec.data2vec_model",) * 2
    try:
        module, config_module = importlib.import_module(module), importlib.import_module(config_module)
    except (ImportError, ValueError) as error:
        pytest.skip(f"needs {request.param}'s data2vec ({error})")
    model_cfg, _ = fairseq_config(POST_NORM)
    model_cfg = {k: v for k, v in model_cfg.items() if k not in ("label_rate", "final_dim", "logit_temp")}
    model_cfg |= {"_name": "data2vec_audio", "extractor_mode": "layer_norm", "pos_conv_depth": 5, "conv_pos": 95}
    fields = {key: value for key, value in model_cfg.items() if key != "_name"}
    model = randomise(module.Data2VecAudioModel(config_module.Data2VecAudioConfig(**fields))).eval()
    weights = {**model.state_dict(), "_ema": {"layers.0.fc1.weight": torch.zeros(2, 2)}}
    task_cfg = {"_name": "audio_pretraining", "normalize": True, "sample_rate": 16000}
    return model, {"cfg": {"model": model_cfg, "task": task_cfg}, "model": weights}


@pytest.mark.parametrize("form", ["pre-trained", "s3prl", "weights alone", "fine-tuned"])
def test_states_are_those_of_fairseq(data2vec, waveforms, tmp_path, form):
    model, state = data2vec
    overrides, left_out = None, "final_proj, _ema"
    if form == "s3prl":
        cfg = state["cfg"]
        state = {"task_cfg": cfg["task"], "model_cfg": cfg["model"], "model_weight": state["model"]}
    elif form == "weights alone":
        state, overrides = {"model": state["model"]}, {"num_heads": "4", "normalize": "true"}
    elif form == "fine-tuned":
        kept = {k: v for k, v in state["model"].items() if not k.startswith(("_ema", "final_proj"))}
        outer = {"_name": "wav2vec_ctc", "w2v_args": state["cfg"], "normalize": True}
        weights = {f"w2v_encoder.w2v_model.{key}": value for key, value in kept.items()}
        weights |= {"w2v_encoder.proj.weight": torch.zeros(5, 32), "w2v_encoder.proj.bias": torch.zeros(5)}
        state, left_out = {"cfg": {"model": outer, "task": {}}, "model": weights}, "w2v_encoder.proj"
    torch.save(state, tmp_path / "x.pt")
    ours = convert(tmp_path / "x.pt", overrides=overrides)
    assert ours.provenance["network"] == "data2vec"
    assert ours.provenance["left_out"] == left_out
    config = ours.backbone.config
    assert (config.pos_stack, config.pos_kernel, config.pre_norm, config.conv_norm) == (5, 19, False, "layer")
    theirs = wav2vec2_layers(model, waveforms[4], config.num_layers, normalize=True)
    assert_same(ours.encoder("never")([waveforms[4]]).states[0], theirs)


def test_fairseqs_hubert_has_no_place_for_it(data2vec, tmp_path):
    torch.save(data2vec[1], tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="has the positions of WavLM or data2vec, for which"):
        to_fairseq(convert(tmp_path / "x.pt"))
