"""Truncated models: their output equals the whole model's at a fixed exit."""

import dataclasses

import pytest
import torch

import daisy
from daisy import CheckpointError, policies
from daisy.checkpoints import truncate
from daisy.recognition import Recogniser
from tests.conftest import KINDS, PRE_NORM, tiny_model
from tests.recognition.conftest import KINDS as RECOGNISERS
from tests.recognition.conftest import tiny_recogniser


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fast", [True, False])
def test_states_are_the_fixed_exits(kind, fast, waveforms, tmp_path):
    model = tiny_model(KINDS[kind])
    daisy.save(truncate(model, 2), tmp_path / "cut.safetensors")
    cut = daisy.load(tmp_path / "cut.safetensors")
    assert cut.backbone.config.num_layers == cut.heads.config.num_layers == 2
    scores = ["entropy", "regressed", "change"]
    whole = model.encoder("fixed", layer=2, scores=scores, fast=fast)(waveforms[4:])
    shallow = cut.encoder("never", scores=scores, fast=fast)(waveforms[4:])
    for states, others in zip(shallow.states, whole.states, strict=True):
        torch.testing.assert_close(states, others, atol=1e-5, rtol=1e-5)
    for name, values in shallow.scores.items():
        torch.testing.assert_close(values, whole.scores[name][:, :2], atol=1e-5, rtol=1e-5, equal_nan=True)
    assert cut.final_head is None
    assert cut.provenance["truncated"] == {"layer": 2, "of": model.backbone.config.num_layers}


@pytest.mark.parametrize("kind", RECOGNISERS)
def test_texts_are_the_fixed_exits(kind, waveforms, tmp_path):
    speech = [waveform for waveform in waveforms if len(waveform) > 960]
    daisy.save(tiny_recogniser(kind, units=True), tmp_path / "whole.safetensors")
    model = daisy.load(tmp_path / "whole.safetensors")
    layer = model.ctc.config.layers[1]
    daisy.save(truncate(model, layer), tmp_path / "cut.safetensors")
    cut = daisy.load(tmp_path / "cut.safetensors")
    assert cut.ctc.config.layers == model.ctc.config.layers[:2]
    whole = Recogniser(model, "fixed", layer=layer)
    _, log_probs = whole.run(speech)
    _, others = Recogniser(cut, policies.Never()).run(speech)
    for frames, expected in zip(others, log_probs, strict=True):
        torch.testing.assert_close(frames, expected, atol=1e-5, rtol=1e-5)
    assert [one.text for one in Recogniser(cut, policies.Never())(speech)] == [one.text for one in whole(speech)]
    assert cut.provenance["truncated"] == {
        "layer": layer,
        "of": model.backbone.config.num_layers,
        "checkpoint": "whole",
        "digest": daisy.checkpoints.digest(tmp_path / "whole.safetensors"),
    }


def test_half_rate_layers_beyond_go():
    cut = truncate(tiny_recogniser("splitformer"), 4)
    assert cut.backbone.config.split_blocks == (1,)
    assert set(cut.backbone.half_rate) == {"1"}


def test_default_policies_are_cut_or_left_out():
    model = tiny_model()
    rows = tuple(tuple(0.1 * (later + feature) for feature in range(1)) for later in range(3))
    weights = (rows, tuple((0.1, 0.2) for _ in range(2)), ((0.1, 0.2, 0.3),))
    learnt = {"price": 0.1, "features": ("entropy",), "weights": weights, "intercepts": ((0, 1, 2), (3, 4), (5,))}
    model.policies = {
        "entropy": {"threshold": (0.1, 0.2, 0.3, 0.4)},
        "confidence": {"threshold": 0.5},
        "plateau": learnt,
        "fixed": {"layer": 4},
        "random": {"histogram": (1.0, 2.0, 3.0, 4.0)},
    }
    cut = truncate(model, 3).policies
    assert set(cut) == {"entropy", "confidence", "plateau", "random"}
    assert cut["entropy"]["threshold"] == (0.1, 0.2, 0.3)
    assert cut["random"]["histogram"] == (1.0, 2.0, 3.0)
    assert cut["plateau"]["weights"] == [rows[:2], ((0.1, 0.2),)]
    assert cut["plateau"]["intercepts"] == [(0, 1), (3,)]
    assert set(truncate(model, 1).policies) == {"entropy", "confidence", "random"}
    assert truncate(model, 4).policies == model.policies


def test_weights_are_its_own():
    model = tiny_recogniser("hubert", units=True)
    cut = truncate(model, 3)
    theirs = {parameter.data_ptr() for parameter in model.parameters()}
    assert not theirs & {parameter.data_ptr() for parameter in cut.parameters()}
    assert truncate(tiny_model(), 4).final_head is not None


def test_layers_without_exit_are_refused():
    with pytest.raises(CheckpointError, match="no exit at layer 1: exits are at 2, 3, 4"):
        truncate(tiny_recogniser("hubert"), 1)
    with pytest.raises(CheckpointError, match="no layer 5: this checkpoint has layers 1 to 4"):
        truncate(tiny_model(), 5)


def test_whole_models_keep_their_form():
    assert "final_norm" not in tiny_model(PRE_NORM).config()["backbone"]
    assert truncate(tiny_model(PRE_NORM), 4).config()["backbone"] == tiny_model(PRE_NORM).config()["backbone"]
    assert truncate(tiny_model(PRE_NORM), 3).config()["backbone"]["final_norm"] is False
    assert dataclasses.replace(PRE_NORM, final_norm=False).norms_after(4) is False
