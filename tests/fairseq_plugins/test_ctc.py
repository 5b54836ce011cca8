"""Recognisers in fairseq: the loss of each exit, the weights that it changes, and models that start from others."""

import pytest
import torch

import daisy
from daisy.errors import UsageError
from daisy.models import CTCHeads, CTCHeadsConfig, Tokens
from tests.conftest import POST_NORM, randomise, tiny_model
from tests.fairseq_plugins import conftest  # noqa: F401  skips where fairseq is missing
from tests.fairseq_plugins.ctc_models import (
    LETTERS,
    compute_ctc,
    convert,
    labels_of,
    make_conformer,
    make_criterion,
    make_hubert,
    make_sample,
    make_task,
)


def test_one_exit_has_the_loss_of_fairseqs_own_criterion(tmp_path):
    from fairseq.criterions.ctc import CtcCriterion, CtcCriterionConfig

    model, task = make_hubert(tmp_path, exit_layers=[4])
    model.eval()
    task.blank_symbol = "<s>"
    stock = CtcCriterion(CtcCriterionConfig(zero_infinity=True, sentence_avg=False), task)
    sample = make_sample()
    with torch.no_grad():
        loss, size, logging = make_criterion(task)(model, sample)
        wanted, wanted_size, wanted_logging = stock(model, sample)
    assert float(loss) == pytest.approx(float(wanted), rel=1e-5)
    assert size == wanted_size == 13
    for ours, theirs in (("c_errors_4", "c_errors"), ("w_errors_4", "w_errors"), ("c_total", "c_total")):
        assert logging[ours] == wanted_logging[theirs]
    assert logging["w_total"] == wanted_logging["w_total"] > 0


def test_the_loss_is_the_weighted_sum_of_the_exits(tmp_path):
    model, task = make_conformer(tmp_path)
    sample, model = make_sample(), model.eval()
    with torch.no_grad():
        output = model(**sample["net_input"])
        labels, lengths = labels_of(sample), [12, 9, 7]
        by_exit = {layer: compute_ctc(output["logits"][layer], labels, lengths) for layer in (2, 4)}
        loss, size, logging = make_criterion(task)(model, sample)
        assert float(loss) == pytest.approx(float(by_exit[2].sum() + by_exit[4].sum()), rel=1e-5)
        assert (size, logging["ctc_2"]) == (13, pytest.approx(float(by_exit[2].sum()), rel=1e-5))
        loss, size, _ = make_criterion(task, exit_weights=[0.25, 2.0], sentence_avg=True)(model, sample)
        assert float(loss) == pytest.approx(float(0.25 * by_exit[2].sum() + 2 * by_exit[4].sum()), rel=1e-5)
        assert size == 3
        confidence = {
            layer: torch.stack(
                [row[:n].softmax(-1).max(-1).values.log().mean().exp() for row, n in zip(values, lengths, strict=True)]
            ).clamp(min=0.1)
            for layer, values in output["logits"].items()
        }
        times, over = (make_criterion(task, confidence=kind)(model, sample)[0] for kind in ("times", "over"))
        assert float(times) == pytest.approx(sum(float((by_exit[n] * confidence[n]).sum()) for n in (2, 4)), rel=1e-5)
        assert float(over) == pytest.approx(sum(float((by_exit[n] / confidence[n]).sum()) for n in (2, 4)), rel=1e-5)
    with pytest.raises(UsageError, match="exit_weights must have 2 values, one for each exit, found 3"):
        make_criterion(task, exit_weights=[1.0, 1.0, 1.0])(model, sample)
    with pytest.raises(UsageError, match="label_share must be 0 to 1"):
        make_criterion(task, label_share=[1.5])


def test_exits_before_the_last_learn_from_its_text(tmp_path):
    """The last exit itself keeps its share of the labels, and has no teacher, as in the public code."""
    model, task = make_conformer(tmp_path)
    randomise(model.ctc, 3)
    sample, model = make_sample(), model.eval()
    with torch.no_grad():
        output = model(**sample["net_input"])
        labels, lengths = labels_of(sample), [12, 9, 7]
        paths = [row[:n].argmax(-1).unique_consecutive() for row, n in zip(output["logits"][4], lengths, strict=True)]
        heard = [path[path != 0] for path in paths]
        assert all(len(text) for text in heard)
        early, last = (float(compute_ctc(output["logits"][layer], labels, lengths).sum()) for layer in (2, 4))
        taught = float(compute_ctc(output["logits"][2], heard, lengths).sum())
        loss = float(make_criterion(task, label_share=[0.3])(model, sample)[0])
        assert loss == pytest.approx(0.3 * (early + last) + 0.7 * taught, rel=1e-5)
        loss = float(make_criterion(task, label_share=[0.65, 1.0])(model, sample)[0])
        assert loss == pytest.approx(0.65 * early + 0.35 * taught + last, rel=1e-5)


def test_published_targets_have_ends_and_padded_lengths(tmp_path):
    model, task = make_conformer(tmp_path, exit_layers=[4])
    sample, model = make_sample(), model.eval()
    with torch.no_grad():
        logits = model(**sample["net_input"])["logits"][4]
        marked = [torch.tensor([1, *row.tolist(), 2]) for row in labels_of(sample)]
        criterion = make_criterion(task, mark_ends=True, padded_lengths=True)
        alone, size, _ = criterion(_LastExit(model), sample)
    assert float(alone) == pytest.approx(float(compute_ctc(logits, marked, [12, 12, 12]).sum()), rel=1e-5)
    assert size == 13 + 6


class _LastExit(torch.nn.Module):
    """A model of which the criterion sees the last exit alone."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, **inputs):
        output = self.model(**inputs)
        last = max(output["logits"])
        return {**output, "logits": {last: output["logits"][last]}}


def changed_parts(model, sample, task):
    """Names of the parts that one backward pass reaches."""
    model.zero_grad()
    make_criterion(task)(model, sample)[0].backward()
    reached = [name for name, p in model.named_parameters() if p.grad is not None and float(p.grad.abs().max()) > 0]
    return {".".join(name.split(".")[: 3 if name.startswith("ctc.") else 2]) for name in reached}


@pytest.fixture
def fine_tuned(tmp_path):
    """A recogniser with one exit at the end, as the first of two stages leaves it."""
    source = tiny_model(POST_NORM)
    tokens = Tokens(symbols=("<s>", "<pad>", "</s>", "<unk>", *LETTERS))
    source.ctc = randomise(CTCHeads(CTCHeadsConfig(layers=(4,), width=32, num_tokens=len(tokens))), 9)
    source.tokens = tokens
    return source


def test_what_learns_in_each_kind_of_training(tmp_path, fine_tuned):
    sample = make_sample()
    exits = {"ctc.classifiers.2", "ctc.classifiers.4"}
    model, task = make_hubert(tmp_path, freeze_finetune_updates=3, feature_grad_mult=0.0)
    model.train()
    model.set_num_updates(2)
    assert changed_parts(model, sample, task) == exits
    model.set_num_updates(3)
    layers = {"hubert.encoder", "hubert.layer_norm", "hubert.post_extract_proj"}
    assert changed_parts(model, sample, task) == exits | layers
    model, task = make_hubert(tmp_path, feature_grad_mult=0.1)
    assert changed_parts(model.train(), sample, task) == exits | layers | {"hubert.feature_extractor"}
    model, task = make_hubert(tmp_path, training="frozen")
    assert changed_parts(model.train(), sample, task) == exits
    assert convert(model, task).heads is not None  # still of this network
    model, task = make_hubert(tmp_path, source=fine_tuned, training="branches")
    assert changed_parts(model.train(), sample, task) == {"ctc.classifiers.2"}
    assert torch.equal(model.ctc.classifiers["4"].weight, fine_tuned.ctc.classifiers["4"].weight)
    with pytest.raises(UsageError, match="training=branches is the second stage"):
        make_hubert(tmp_path, training="branches")


def test_exits_of_other_tokens_are_not_taken_over(tmp_path, fine_tuned):
    fine_tuned.tokens = Tokens(symbols=("<s>", "<pad>", "</s>", "<unk>", *LETTERS[::-1]))
    with pytest.raises(UsageError, match="of the same tokens"):
        make_hubert(tmp_path, source=fine_tuned, training="branches")


def test_masks_and_layer_drop_are_of_training_and_of_what_learns(tmp_path):
    sample = make_sample()["net_input"]
    masked = {"apply_mask": True, "mask_prob": 0.65, "mask_channel_prob": 0.5, "mask_channel_length": 4}

    def differs(model):
        first = model(**sample)["logits"][4]  # two draws of four layers are alike now and then
        return any(not torch.equal(model(**sample)["logits"][4], first) for _ in range(10))

    model, _ = make_hubert(tmp_path, **masked)
    assert differs(model.train())
    assert not differs(model.eval())
    model, _ = make_hubert(tmp_path, layerdrop=0.5)
    assert differs(model.train())
    assert not differs(model.eval())
    model, _ = make_hubert(tmp_path, training="frozen", dropout=0.5, layerdrop=0.5, **masked)
    assert not differs(model.train())
    with pytest.raises(UsageError, match="less than one mask of mask_channel_length 64"):
        make_hubert(tmp_path, apply_mask=True, mask_channel_prob=0.1, mask_channel_length=64)


def test_what_does_not_go_together_is_refused(tmp_path):
    from fairseq_plugins.ctc_model import make_parts

    model, task = make_hubert(tmp_path)
    source = tiny_model(POST_NORM)
    task.cfg.normalize = True
    with pytest.raises(UsageError, match=r"hears audio that is not normalised: task\.normalize=false"):
        make_parts(model.cfg, source, task)
    task.cfg.normalize, task.cfg.sample_rate = False, 8000
    with pytest.raises(UsageError, match="takes audio at 16000 Hz, and the task gives it at 8000 Hz"):
        make_parts(model.cfg, source, task)
    task.cfg.sample_rate, task.target_dictionary = 16000, None
    with pytest.raises(UsageError, match="a recogniser learns from texts"):
        make_parts(model.cfg, source, task)
    with pytest.raises(UsageError, match=r"exit_layers must be 1 to 4, found \[5\]"):
        make_hubert(tmp_path, exit_layers=[2, 5])
    with pytest.raises(UsageError, match=r"exit_layers: 3 is inside a block with a half-rate layer; ends are 2, 4"):
        make_conformer(tmp_path, encoder_layers=4, split_blocks=[1, 2], exit_layers=[3, 4])
    with pytest.raises(UsageError, match=r"needs --w2v-path \(model.w2v_path\)"):
        make_hubert(tmp_path, w2v_path="")


def test_batch_norms_stay_in_float32(tmp_path):
    model, task = make_conformer(tmp_path)
    model.to(torch.bfloat16).train()
    assert model.backbone.layers[0].self_attn.out_proj.weight.dtype == torch.bfloat16
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm1d)]
    assert norms
    assert all(norm.running_var.dtype == norm.weight.dtype == torch.float32 for norm in norms)
    sample = make_sample()
    sample["net_input"]["source"] = sample["net_input"]["source"].bfloat16()
    make_criterion(task)(model, sample)[0].backward()
    assert all(norm.running_mean.abs().max() > 0 for norm in norms)
    ours = convert(model, task)
    assert torch.equal(ours.backbone.layers[0].conv_module.sequential[3].running_var, norms[0].running_var)


def test_heads_on_units_are_put_on_a_recogniser_which_stays_one(tmp_path, fine_tuned):
    from fairseq_plugins.model import DaisyHubert, DaisyHubertConfig

    daisy.save(fine_tuned, tmp_path / "recogniser.safetensors")
    task = make_task(tmp_path)
    task.dictionaries = []
    cfg = DaisyHubertConfig(hubert_path=str(tmp_path / "recogniser.safetensors"), no_regressors=True)
    model = DaisyHubert.build_model(cfg, task)
    ours = convert(model, task)
    assert ours.heads.config.num_units == 11
    assert torch.equal(ours.ctc.classifiers["4"].weight, fine_tuned.ctc.classifiers["4"].weight)
    assert not any(parameter.requires_grad for parameter in model.ctc.parameters())
