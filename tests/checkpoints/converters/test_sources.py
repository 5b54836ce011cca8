"""Every source against its own library's states, on random weights of both kinds."""

import argparse
import dataclasses
import json
import sys
import types
import warnings

import numpy
import pytest
import torch

from daisy import CheckpointError, EarlyExitEncoder, policies
from daisy.checkpoints.converters import convert, fairseq, reading
from tests.checkpoints.converters.conftest import UNITS, fairseq_config
from tests.conftest import randomise, tiny_model


def our_states(model, waveform):
    return EarlyExitEncoder(model.backbone, None, policies.Never())([waveform]).states[0]


def assert_same(ours, theirs, first_layer=1):
    for layer, expected in enumerate(theirs, first_layer):
        assert (ours[layer] - expected).abs().max() < 1e-4 * expected.std(), f"layer {layer}"


def fairseq_layers(model, waveform, num_layers, normalize):
    source = torch.nn.functional.layer_norm(waveform, waveform.shape) if normalize else waveform
    with torch.no_grad():
        layers = [model.extract_features(source[None], output_layer=n)[0][0] for n in range(1, num_layers)]
        layers.append(model.extract_features(source[None])[0][0])  # with the final norm of pre-norm models
    return layers


def test_fairseq(config, fairseq_model, waveforms, tmp_path):
    model, state = fairseq_model
    torch.save(state, tmp_path / "hubert.pt")
    with pytest.raises(CheckpointError, match="unpickling can run code, so only if .* pass allow_pickle=True"):
        convert(tmp_path / "hubert.pt")
    ours = convert(tmp_path / "hubert.pt", allow_pickle=True)
    states = our_states(ours, waveforms[-1])
    theirs = fairseq_layers(model, waveforms[-1], config.num_layers, config.normalize)
    assert_same(states, theirs)
    with torch.no_grad():
        expected = model.compute_nce(
            model.final_proj(theirs[-1]),
            model.label_embs_concat[:1].expand(len(theirs[-1]), -1),
            model.label_embs_concat[:, None].expand(-1, len(theirs[-1]), -1),
        )[:, 1:]  # column 0 repeats the positive, which is -inf in its own place
        logits = ours.final_head(states[-1])
    torch.testing.assert_close(logits[:, 1:], expected[:, 1:] * model.logit_temp / 0.2, atol=1e-3, rtol=1e-3)
    assert torch.equal(ours.backbone.mask_embedding, model.mask_emb)


@pytest.mark.parametrize("form", ["namespace", "omegaconf", "fine-tuned", "s3prl"])
def test_other_forms_of_fairseq(config, fairseq_model, waveforms, tmp_path, form):
    model, state = fairseq_model
    model_cfg, task_cfg = state["cfg"]["model"], state["cfg"]["task"]
    head = True
    if form == "namespace":
        state["args"], state["cfg"] = argparse.Namespace(**{**task_cfg, **model_cfg}), None
    elif form == "omegaconf":
        from omegaconf import OmegaConf

        state["cfg"] = OmegaConf.create(state["cfg"])
    elif form == "fine-tuned":
        head = False
        inner = {"model": model_cfg, "task": {**task_cfg, "normalize": False}}
        outer = {"_name": "hubert_ctc", "w2v_args": inner, "normalize": config.normalize}
        state["cfg"] = {"model": outer, "task": {"_name": "hubert_pretraining", "normalize": config.normalize}}
        kept = {k: v for k, v in state["model"].items() if not k.startswith(("final_proj", "label_embs"))}
        state["model"] = {f"w2v_encoder.w2v_model.{k}": v for k, v in kept.items()}
        state["model"] |= {"w2v_encoder.proj.weight": torch.zeros(5, 4), "w2v_encoder.proj.bias": torch.zeros(5)}
    else:
        state = {
            "task_cfg": task_cfg,
            "model_cfg": model_cfg,
            "model_weight": state["model"],
            "dictionaries_symbols": [[str(unit) for unit in range(UNITS)]],
        }
    torch.save(state, tmp_path / "x.pt")
    ours = convert(tmp_path / "x.pt", allow_pickle=True)
    assert (ours.final_head is not None) == head
    theirs = fairseq_layers(model, waveforms[4], config.num_layers, config.normalize)
    assert_same(our_states(ours, waveforms[4]), theirs)


def test_fairseqs_checkpoints_open_without_fairseq(config, tmp_path, monkeypatch):
    """The task's state holds an object of a class that cannot be imported when the file is read."""
    model = tiny_model(config, UNITS)
    if config.conv_layers[-1][0] == config.width:  # where fairseq has no projection
        projection = model.backbone.encoder.feature_projection.projection
        projection.weight.data.copy_(torch.eye(config.width))
        projection.bias.data.zero_()
    model_cfg, task_cfg = fairseq_config(config)
    absent = types.ModuleType("fairseq_that_is_absent")
    absent.Dictionary = type("Dictionary", (), {"__module__": absent.__name__})
    dictionary = absent.Dictionary()
    dictionary.symbols, dictionary.counts = [str(unit) for unit in range(UNITS)], numpy.arange(UNITS)
    state = {
        "args": argparse.Namespace(arch="hubert", seed=1),
        "cfg": {"model": model_cfg, "task": task_cfg},
        "model": fairseq.weights(model),
        "task_state": {"dictionaries": [dictionary]},
        "last_optimizer_state": {"lr": numpy.float64(0.1), "step": numpy.int64(7)},
    }
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, absent.__name__, absent)
        torch.save(state, tmp_path / "hubert.pt")
    with pytest.raises(CheckpointError, match="pass allow_pickle=True"):
        convert(tmp_path / "hubert.pt")
    ours = convert(tmp_path / "hubert.pt", allow_pickle=True)
    assert ours.backbone.config == config
    assert ours.final_head.temperature == 0.2
    for name, weight in model.backbone.state_dict().items():
        torch.testing.assert_close(ours.backbone.state_dict()[name], weight, atol=1e-6, rtol=1e-6, msg=name)
    read = reading.read_state(tmp_path / "hubert.pt", allow_pickle=True)
    assert reading.to_plain(read["task_state"]["dictionaries"])[0]["symbols"] == dictionary.symbols
    assert read["last_optimizer_state"] == {"lr": 0.1, "step": 7}


@pytest.mark.parametrize("position", ["before-norm", "after-norm", None])
def test_published_daisy(fairseq_model, waveforms, tmp_path, position):
    """Heads of the published form against fairseq's own layer results."""
    model, state = fairseq_model
    config = state["cfg"]["model"] | ({"cls_pred_position": position} if position else {})
    generator = torch.Generator().manual_seed(3)
    weights = {k: v for k, v in state["model"].items() if not k.startswith(("final_proj", "label_embs"))}
    for layer in range(config["encoder_layers"]):
        weights[f"final_proj.{layer}.weight"] = torch.randn(7, config["encoder_embed_dim"], generator=generator)
        weights[f"final_proj.{layer}.bias"] = torch.randn(7, generator=generator)
    converted = {
        "task_cfg": state["cfg"]["task"],
        "model_cfg": config,
        "model_weight": weights,
        "dictionaries_symbols": [[]],
    }
    torch.save(converted, tmp_path / "daisy.pt")
    ours = convert(tmp_path / "daisy.pt", allow_pickle=True)
    assert ours.heads.config.num_units == 7
    assert ours.heads.config.reads == ("states" if position == "after-norm" else "feed_forward")
    assert ours.final_head is None
    wave = waveforms[4]
    source = torch.nn.functional.layer_norm(wave, wave.shape) if ours.backbone.config.normalize else wave
    with torch.no_grad():
        features = model.layer_norm(model.forward_features(source[None]).transpose(1, 2))
        features = model.post_extract_proj(features) if model.post_extract_proj is not None else features
        _, results = model.encoder.extract_features(features)
    scores = EarlyExitEncoder(ours.backbone, ours.heads, policies.Never(), scores=["entropy"])([wave]).scores["entropy"]
    for layer, (states, _, feed_forward) in enumerate(results):
        read = states if position == "after-norm" else feed_forward
        if position == "after-norm" and config["layer_norm_first"] and layer == len(results) - 1:
            read = model.encoder.layer_norm(read)
        logits = read[:, 0] @ weights[f"final_proj.{layer}.weight"].T + weights[f"final_proj.{layer}.bias"]
        expected = torch.distributions.Categorical(logits=logits).entropy().mean()
        torch.testing.assert_close(scores[0, layer], expected.detach(), atol=1e-3, rtol=1e-3)


def test_states_are_those_of_s3prls_upstream(config, fairseq_model, waveforms, tmp_path):
    """Layer 0 and the final norm too: what s3prl's users call hidden_states."""
    pytest.importorskip("s3prl", reason="needs s3prl")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from s3prl.upstream.hubert.expert import UpstreamExpert
    _, state = fairseq_model
    converted = {
        "task_cfg": state["cfg"]["task"],
        "model_cfg": state["cfg"]["model"],
        "model_weight": state["model"],
        "dictionaries_symbols": [[str(unit) for unit in range(UNITS)]],
    }
    torch.save(converted, tmp_path / "converted.pt")
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        hidden = UpstreamExpert(str(tmp_path / "converted.pt")).eval()([waveforms[6]])["hidden_states"]
    ours = our_states(convert(tmp_path / "converted.pt", allow_pickle=True), waveforms[6])
    assert len(hidden) == len(ours) == config.num_layers + 1
    assert_same(ours, [states[0] for states in hidden], first_layer=0)


def torchaudio_model(config, pretraining):
    torchaudio = pytest.importorskip("torchaudio", reason="needs torchaudio")
    layers = dict(
        extractor_mode="layer_norm" if config.conv_norm == "layer" else "group_norm",
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
    )
    if not pretraining:
        return randomise(torchaudio.models.wav2vec2_model(**layers, aux_num_out=6)).eval()
    masking = dict(
        mask_prob=0.8,
        mask_selection="static",
        mask_other=0.0,
        mask_length=10,
        no_mask_overlap=False,
        mask_min_space=1,
        mask_channel_prob=0.0,
        mask_channel_selection="static",
        mask_channel_other=0.0,
        mask_channel_length=10,
        no_mask_channel_overlap=False,
        mask_channel_min_space=1,
        skip_masked=False,
        skip_nomask=False,
        num_classes=UNITS,
        final_dim=8,
        feature_grad_mult=None,
    )
    return randomise(torchaudio.models.hubert_pretrain_model(**layers, **masking)).eval()


@pytest.mark.parametrize("pretraining", [False, True])
def test_torchaudio(config, waveforms, tmp_path, pretraining):
    model = torchaudio_model(config, pretraining)
    torch.save(model.state_dict(), tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match=r'is none of 768, 1024, 1280, 1920; pass overrides=\{"num_heads": "N"\}'):
        convert(tmp_path / "model.pth")
    overrides = {"num_heads": str(config.num_heads), "pre_norm": str(config.pre_norm)}
    ours = convert(tmp_path / "model.pth", overrides=overrides)
    assert ours.backbone.config == config
    wave = waveforms[4]
    source = torch.nn.functional.layer_norm(wave, wave.shape) if config.normalize else wave
    inner = model.wav2vec2 if pretraining else model
    with torch.no_grad():
        theirs = [states[0] for states in inner.extract_features(source[None])[0]]
        if config.pre_norm:
            theirs[-1] = inner.encoder.transformer.layer_norm(theirs[-1])
    assert_same(our_states(ours, wave), theirs)
    assert (ours.final_head is not None) == pretraining
    assert ours.ctc is None
    (tmp_path / "dict.ltr.txt").write_text("| 1\nA 1\n")  # and fairseq's four symbols
    if pretraining:
        with pytest.raises(CheckpointError, match="has no output layer of CTC"):
            convert(tmp_path / "model.pth", overrides=overrides, tokens=tmp_path / "dict.ltr.txt")
        return
    recogniser = convert(tmp_path / "model.pth", overrides=overrides, tokens=tmp_path / "dict.ltr.txt")
    assert recogniser.tokens.symbols == ("<s>", "<pad>", "</s>", "<unk>", "|", "A")
    assert recogniser.ctc.config.layers == (config.num_layers,)
    with torch.no_grad():
        logits = model(source[None])[0][0]
        states, num_frames = recogniser.backbone(wave[None], torch.tensor([len(wave)]))
        ours = recogniser.ctc(config.num_layers, states[config.num_layers], num_frames)[0]
    assert float((ours - logits).abs().max()) < 1e-4 * float(logits.std())


@pytest.mark.parametrize("wrapped", [False, True])
def test_huggingface(config, waveforms, tmp_path, wrapped):
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    hf_config = transformers.HubertConfig(
        num_hidden_layers=config.num_layers,
        hidden_size=config.width,
        intermediate_size=config.ffn_width,
        num_attention_heads=config.num_heads,
        do_stable_layer_norm=config.pre_norm,
        feat_extract_norm=config.conv_norm,
        conv_dim=[c for c, _, _ in config.conv_layers],
        conv_kernel=[k for _, k, _ in config.conv_layers],
        conv_stride=[s for _, _, s in config.conv_layers],
        conv_bias=config.conv_bias,
        num_conv_pos_embeddings=config.pos_kernel,
        num_conv_pos_embedding_groups=config.pos_groups,
        vocab_size=5,
    )
    kind = transformers.HubertForCTC if wrapped else transformers.HubertModel
    model = randomise(kind(hf_config)).eval()
    model.save_pretrained(tmp_path / "hf")
    ours = convert(tmp_path / "hf")
    eps = 1e-7 if config.normalize else 1e-5  # fairseq's where nothing is normalised
    assert ours.backbone.config == dataclasses.replace(config, normalize_eps=eps)
    wave = waveforms[4]
    source = torch.nn.functional.layer_norm(wave, wave.shape, eps=1e-7) if config.normalize else wave
    with torch.no_grad():
        inner = model.hubert if wrapped else model
        output = inner(source[None], output_hidden_states=True)
    # The last of hidden_states is before a pre-norm model's final norm from transformers 5 on, and behind it before.
    theirs = [states[0] for states in (*output.hidden_states[:-1], output.last_hidden_state)]
    assert_same(our_states(ours, wave), theirs, first_layer=0)
    with pytest.raises(CheckpointError, match="give the folder that holds config.json too"):
        convert(tmp_path / "hf" / "model.safetensors")
    (tmp_path / "hf" / "preprocessor_config.json").write_text(json.dumps({"do_normalize": not config.normalize}))
    assert convert(tmp_path / "hf").backbone.config.normalize != config.normalize
