"""Recognisers trained in fairseq: daisy computes the same outputs with them."""

import pytest
import torch
from torch.nn import functional as F

import daisy
from daisy.errors import CheckpointError
from tests.conftest import KIN_KINDS, ODD, POST_NORM, PRE_NORM, randomise, tiny_model
from tests.fairseq_plugins import conftest  # noqa: F401  skips where fairseq is missing
from tests.fairseq_plugins.ctc_models import LETTERS, convert, make_conformer, make_hubert, make_sample


@pytest.mark.parametrize("config", [POST_NORM, PRE_NORM, ODD], ids=["post-norm", "pre-norm", "odd"])
@pytest.mark.parametrize("branch", ["linear", "attention"])
def test_a_converted_hubert_gives_the_logits_of_training(tmp_path, config, branch):
    model, task = make_hubert(tmp_path, config, branch=branch, exit_layers=[1], attention_width=16, attention_heads=2)
    randomise(model.ctc, 3)
    wave = make_sample()["net_input"]["source"][:1]
    heard = F.layer_norm(wave, wave.shape[-1:]) if config.normalize else wave  # as the task does
    with torch.no_grad():
        theirs = model.eval()(heard, torch.zeros_like(wave, dtype=torch.bool))["logits"]
        ours = convert(model, task)
        states, num_frames = ours.backbone(wave, torch.tensor([wave.shape[1]]))
        assert ours.ctc.config.layers == (1, config.num_layers)
        for layer in ours.ctc.config.layers:
            torch.testing.assert_close(ours.ctc(layer, states[layer], num_frames), theirs[layer], rtol=0, atol=2e-4)
    assert ours.tokens.symbols[4:] == tuple(LETTERS)
    assert (ours.heads, ours.final_head) == (None, None)  # of another network than the one that learns


@pytest.mark.parametrize("no_weights", [False, True])
def test_a_cut_pre_norm_hubert_learns_with_the_final_norm_and_keeps_it(tmp_path, no_weights):
    cut = daisy.checkpoints.truncate(tiny_model(PRE_NORM), 3)
    model, task = make_hubert(tmp_path, PRE_NORM, source=cut, no_pretrained_weights=no_weights)
    wave = make_sample()["net_input"]["source"][:1]
    with torch.no_grad():
        theirs = model.eval()(F.layer_norm(wave, wave.shape[-1:]), None)["logits"][3]
        ours = convert(model, task)
        states, num_frames = ours.backbone(wave, torch.tensor([wave.shape[1]]))
        assert ours.backbone.config.final_norm
        torch.testing.assert_close(ours.ctc(3, states[3], num_frames), theirs, rtol=0, atol=2e-4)
    for training in ("frozen", "branches"):  # on the network as it is
        with pytest.raises(CheckpointError, match="no final norm, with which fairseq's pre-norm HuBERT always ends"):
            make_hubert(tmp_path, PRE_NORM, source=cut, training=training, no_pretrained_weights=no_weights)


def test_a_network_that_fairseq_has_not_is_refused_without_its_weights_too(tmp_path):
    source = daisy.Model(backbone=daisy.Backbone(KIN_KINDS["WavLM"]))
    with pytest.raises(CheckpointError, match="has the positions of WavLM or data2vec"):
        make_hubert(tmp_path, source=source, no_pretrained_weights=True)


@pytest.mark.parametrize("changes", [{}, {"split_blocks": [1, 2]}, {"log_mel": False, "mask_padding": False}])
def test_a_converted_conformer_gives_the_logits_of_training(tmp_path, changes):
    model, task = make_conformer(tmp_path, **changes)
    randomise(model, 3)
    sample = make_sample()
    with torch.no_grad():
        theirs = model.eval()(**sample["net_input"])
        ours = convert(model, task)
        states, num_frames = ours.backbone(sample["net_input"]["source"], torch.tensor([8000, 6400, 4800]))
        assert theirs["num_frames"].tolist() == num_frames.tolist() == [12, 9, 7]
        assert (~theirs["padding_mask"]).sum(1).tolist() == [12, 9, 7]
        for layer in (2, 4):
            assert torch.equal(ours.ctc(layer, states[layer]), theirs["logits"][layer])
    assert ours.backbone.config.log == model.cfg.log_mel
