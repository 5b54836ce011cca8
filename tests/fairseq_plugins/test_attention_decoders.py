"""Attention decoders beside CTC in training."""

import pytest
import torch
from torch.nn import functional as F

from daisy.errors import UsageError
from tests.conftest import randomise
from tests.fairseq_plugins import conftest  # noqa: F401  skips where fairseq is missing
from tests.fairseq_plugins.ctc_models import (
    compute_ctc,
    convert,
    labels_of,
    make_conformer,
    make_criterion,
    make_sample,
)

END = 2


@pytest.fixture
def trained(tmp_path):
    model, task = make_conformer(tmp_path, decoder_layers=2)
    randomise(model.decoders, 3)
    return model.eval(), task


@torch.no_grad()
def test_an_exits_loss_is_a_share_of_cross_entropy_and_of_ctc(trained):
    model, task = trained
    sample = make_sample()
    loss, _, logging = make_criterion(task, attention_share=0.6)(model, sample)
    texts = torch.full((3, 6), END)
    texts[:, 1:] = sample["target"]
    output = model(**sample["net_input"], texts=texts)
    expected = torch.zeros(())
    for layer in (2, 4):
        ctc = compute_ctc(output["logits"][layer], labels_of(sample), output["num_frames"].tolist()).sum()
        entropy = sum(
            F.cross_entropy(row[: len(text) + 1], torch.cat([text, torch.tensor([END])]), reduction="sum")
            for row, text in zip(output["next_logits"][layer], labels_of(sample), strict=True)
        )
        assert logging[f"ctc_{layer}"] == pytest.approx(float(ctc), rel=1e-4)
        assert logging[f"ce_{layer}"] == pytest.approx(float(entropy), rel=1e-4)
        expected += 0.4 * ctc + 0.6 * entropy
    assert float(loss) == pytest.approx(float(expected), rel=1e-4)


@torch.no_grad()
def test_a_converted_recogniser_has_the_decoders_of_training(trained):
    model, task = trained
    sample = make_sample()
    texts = torch.tensor([[END, 5, 6]] * 3)
    output = model(**sample["net_input"], texts=texts)
    ours = convert(model, task)
    num_samples = (~sample["net_input"]["padding_mask"]).sum(1)
    states, num_frames = ours.backbone(sample["net_input"]["source"], num_samples)
    for layer in (2, 4):
        torch.testing.assert_close(
            ours.decoders(layer, states[layer], num_frames, texts), output["next_logits"][layer], atol=1e-5, rtol=1e-5
        )
    assert (ours.decoders.config.begin, ours.decoders.config.num_blocks) == (END, 2)


def test_all_decoders_learn_and_impossible_shares_are_refused(trained):
    model, task = trained
    loss, _, _ = make_criterion(task)(model.train(), make_sample())
    loss.backward()
    for layer in ("2", "4"):
        assert all(p.grad is not None and bool(p.grad.any()) for p in model.decoders.classifiers[layer].parameters())
        assert bool(model.decoders.blocks[layer][1].linear2.weight.grad.any())
    with pytest.raises(UsageError, match="attention_share must be 0 to 1"):
        make_criterion(task, attention_share=1.5)
