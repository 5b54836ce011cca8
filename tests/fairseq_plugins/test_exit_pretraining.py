"""Exit heads trained during the pre-training of a HuBERT: each loss, the weights that it changes, and the result."""

import itertools
import re

import numpy
import pytest
import torch
from torch.nn import functional as F

import daisy
from daisy import EarlyExitEncoder, policies
from daisy.checkpoints.converters import convert
from daisy.errors import UsageError
from daisy.models import ExitHeads, HeadsConfig
from tests.conftest import POST_NORM, tiny_model
from tests.fairseq_plugins.conftest import ROOT, command

NUM_UNITS, NUM_LAYERS = 11, 4
SHAPE = {
    "encoder_layers": NUM_LAYERS, "encoder_embed_dim": 32, "encoder_ffn_embed_dim": 48, "encoder_attention_heads": 4,
    "final_dim": 8, "conv_pos": 16, "conv_pos_groups": 2, "encoder_layerdrop": 0.0, "required_seq_len_multiple": 1,
    "dropout": 0.0, "attention_dropout": 0.0, "dropout_input": 0.0, "feature_grad_mult": 0.0, "skip_nomask": False,
    "conv_feature_layers": "[(16,10,5)] + [(16,3,2)] * 4 + [(16,2,2)] * 2", "label_rate": 50.0,
}  # fmt: skip


def make_model(**changes):
    """A network with exit heads whose layers 2 and 4 are trained by them."""
    from fairseq.data import Dictionary
    from fairseq.tasks.hubert_pretraining import HubertPretrainingConfig

    from fairseq_plugins.pretraining_model import DaisyPretrainingHubert, DaisyPretrainingHubertConfig

    dictionary = Dictionary()
    for unit in range(NUM_UNITS - 4):
        dictionary.add_symbol(str(unit))
    torch.manual_seed(0)
    cfg = DaisyPretrainingHubertConfig(**{**SHAPE, "exit_heads": True, "exit_layers": [2, 4], **changes})
    return DaisyPretrainingHubert(cfg, HubertPretrainingConfig(data="", labels=["km"]), [dictionary])


def make_sample(lengths=(8000, 8000)):
    generator = torch.Generator().manual_seed(1)
    source = 0.1 * torch.randn(len(lengths), max(lengths), generator=generator)
    padding = torch.arange(max(lengths)) >= torch.tensor(lengths)[:, None]
    return {
        "id": torch.arange(len(lengths)),
        "net_input": {"source": source.masked_fill(padding, 0.0), "padding_mask": padding},
        "target_list": [torch.randint(4, NUM_UNITS, (len(lengths), max(lengths) // 320), generator=generator)],
    }


def make_criterion(**changes):
    from fairseq_plugins.pretraining_criterion import DaisyExitPretraining

    weights = {"pred_masked_weight": 1.0, "pred_nomask_weight": 0.5, "exit_weight": 2.0, "feature_weight": 0.0}
    return DaisyExitPretraining(None, **{"exit_layer_weights": [], **weights, **changes})


def run(model, sample):
    return model(target_list=sample["target_list"], **sample["net_input"])


@pytest.mark.parametrize("pre_norm", [False, True])
def test_a_layers_loss_is_the_cross_entropy_of_its_head_on_its_states(pre_norm):
    """States are those that daisy's encoder gives; with nothing masked both see the same."""
    changes = {"layer_norm_first": pre_norm, "extractor_mode": "layer_norm" if pre_norm else "default"}
    model = make_model(**changes, conv_bias=pre_norm, mask_prob=0.0).eval()
    sample = make_sample()
    with torch.no_grad():
        output = run(model, sample)["exits"]
    from daisy.checkpoints.converters import fairseq

    ours = fairseq.from_parts({**SHAPE, **changes, "conv_bias": pre_norm}, {}, model.state_dict())
    encoder = EarlyExitEncoder(ours.backbone, None, policies.Never())
    for row, states in enumerate(encoder(list(sample["net_input"]["source"])).states):
        targets = sample["target_list"][0][row, : states.shape[1]]
        for layer in range(1, NUM_LAYERS + 1):
            wanted = F.cross_entropy(
                ours.heads.unit_logits(layer, states[layer][: len(targets)]), targets, reduction="sum"
            )
            loss = output.unmasked[layer - 1]
            assert float(loss.num_counted[row]) == len(targets)
            assert float(loss.loss[row]) == pytest.approx(float(wanted), rel=1e-4)
            assert not output.masked[layer - 1].num_counted.any()


def test_losses_change_the_layers_below_them_and_only_where_told():
    model = make_model(exit_layers=[2])
    output = run(model, make_sample())["exits"]
    for layer, reached in ((1, 0), (2, 2), (3, 0), (4, 0)):
        model.zero_grad()
        (output.masked[layer - 1].loss.sum() + output.unmasked[layer - 1].loss.sum()).backward(retain_graph=True)
        changed = [
            number
            for number, parameters in enumerate(model.encoder.layers, 1)
            if any(p.grad is not None and p.grad.abs().max() > 0 for p in parameters.parameters())
        ]
        assert changed == list(range(1, reached + 1))
        heads = [
            float(head.weight.grad.abs().max()) if head.weight.grad is not None else 0.0
            for head in model.exits.heads.units
        ]
        assert [value > 0 for value in heads] == [number == layer for number in range(1, NUM_LAYERS + 1)]
        reaches_the_masks = model.mask_emb.grad is not None and float(model.mask_emb.grad.abs().max()) > 0
        assert reaches_the_masks == (reached > 0)


def test_regressors_learn_the_mean_loss_and_change_no_layer():
    model = make_model()
    output = run(model, make_sample())["exits"]
    for regressor, judged, masked, unmasked in zip(
        model.exits.heads.regressors, output.judged, output.masked, output.unmasked, strict=True
    ):
        mean = (masked.loss + unmasked.loss) / (masked.num_counted + unmasked.num_counted)
        assert torch.allclose(judged.mean(), mean.detach())
        assert float(regressor.count) == 2  # statistics of both utterances
        assert float(regressor.mean[-1]) == pytest.approx(float(mean.mean()), rel=1e-5)
    sum(predicted.sum() for predicted in output.predicted).backward()
    assert all(p.grad is None for p in model.encoder.parameters())


def test_the_whole_loss_is_the_weighted_sum_of_its_parts():
    model, sample = make_model().eval(), make_sample()

    def compute(**weights):
        numpy.random.seed(0)  # of the masks
        return make_criterion(**weights)(model, sample)

    loss, counted, logging = compute()
    numpy.random.seed(0)
    exits = run(model, sample)["exits"]
    of_layers = sum(
        masked.loss.sum()
        + 0.5 * unmasked.loss.sum()
        + 2 * F.huber_loss(predicted, judged.mean(), reduction="none").sum() * 12
        for masked, unmasked, judged, predicted in zip(
            exits.masked, exits.unmasked, exits.judged, exits.predicted, strict=True
        )
    )
    assert counted == logging["final_masked_counted"] + logging["final_other_counted"] == 48
    own = logging["final_masked"] + 0.5 * logging["final_other"]
    assert float(loss) == pytest.approx(own + 2.0 * float(of_layers) / NUM_LAYERS, rel=1e-5)
    masked_only, counted, _ = compute(pred_nomask_weight=0.0, exit_weight=0.0)
    assert counted == logging["final_masked_counted"] > 0
    assert float(masked_only) == pytest.approx(logging["final_masked"], rel=1e-6)
    weighted, _, _ = compute(exit_layer_weights=[3.0, 0.25], exit_weight=1.0)
    more = [
        (weight - 1) * (exits.masked[layer - 1].loss.sum() + 0.5 * exits.unmasked[layer - 1].loss.sum())
        for layer, weight in ((2, 3.0), (4, 0.25))
    ]
    assert float(weighted) == pytest.approx(own + float(of_layers + sum(more)) / NUM_LAYERS, rel=1e-5)
    assert float(compute(exit_weight=0.0, feature_weight=10.0)[0]) == pytest.approx(own, rel=1e-6)  # they are frozen
    model.feature_grad_mult = 0.1
    features, counted, _ = compute(exit_weight=0.0, feature_weight=10.0)
    penalty = 10.0 * float(run(model, sample)["features_pen"]) * counted
    assert float(features) == pytest.approx(own + penalty, rel=1e-5)


def test_weights_without_frames_are_refused():
    for changes, weights in (
        ({}, {"pred_masked_weight": 0.0, "pred_nomask_weight": 0.0}),
        ({"unmasked_prob": 1.0}, {"pred_nomask_weight": 0.0}),
        ({"mask_prob": 0.0}, {"pred_nomask_weight": 0.0}),
    ):
        with pytest.raises(UsageError, match="no frame counts"):
            make_criterion(**weights)(make_model(**changes), make_sample())
    for name in ("skip_masked", "skip_nomask"):
        with pytest.raises(UsageError, match=f"model.{name} leaves frames out of HuBERT's own loss"):
            make_criterion()(make_model(**{name: True}), make_sample())
    skipping = make_model(skip_nomask=True).eval()
    assert make_criterion(pred_nomask_weight=0.0)(skipping, make_sample())[1] > 0


def test_a_batch_of_which_by_chance_no_frame_counts_changes_nothing():
    model, criterion = make_model(unmasked_prob=0.5).train(), make_criterion(pred_nomask_weight=0.0)
    counts = set()
    for seed in range(8):
        torch.manual_seed(seed)
        model.zero_grad()
        loss, counted, logging = criterion(model, make_sample((8000,)))
        loss.backward()
        changed = any(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())
        assert changed == (float(loss) > 0) == (counted > 0) == (logging["sample_size"] > 0)
        counts.add(counted > 0)
    assert counts == {True, False}


def test_exit_heads_and_criterion_go_together():
    from fairseq.criterions.hubert_criterion import HubertCriterion

    plain = make_model(exit_heads=False, exit_layers=[])
    with pytest.raises(UsageError, match="give model.exit_heads=true"):
        make_criterion()(plain, make_sample())
    stock = HubertCriterion(None, 1.0, 0.0, loss_weights=[10.0])
    assert float(stock(plain, make_sample())[0]) > 0
    with pytest.raises(UsageError, match="give criterion._name=daisy_exit_pretraining"):
        stock(make_model(), make_sample())
    with pytest.raises(UsageError, match="exit_layers are of exit heads"):
        make_model(exit_heads=False)


def test_the_stock_criterion_counts_the_front_end_where_it_learns():
    from fairseq.criterions.hubert_criterion import HubertCriterion

    for multiplier, is_counted in ((0.0, False), (0.1, True)):
        model = make_model(exit_heads=False, exit_layers=[], feature_grad_mult=multiplier).eval()
        _, _, logging = HubertCriterion(None, 1.0, 0.0, loss_weights=[10.0])(model, make_sample())
        assert ("loss_features_pen" in logging) == is_counted


@pytest.mark.parametrize(
    ("weights", "layers", "message"),
    [
        ([1.0], [2, 4], r"exit_layer_weights has 1 numbers, and model.exit_layers 2: give a weight for each"),
        ([1.0, 0.0], [2, 4], r"exit_layer_weights must be above 0, found \[1.0, 0.0\]"),
        ([1.0, 1.0], [2, 2], r"exit_layers must name a layer once, found \[2, 2\]"),
    ],
)
def test_weights_of_layers_that_cannot_be_met_are_refused(weights, layers, message):
    with pytest.raises(UsageError, match=message):
        make_criterion(exit_layer_weights=weights)(make_model(exit_layers=layers), make_sample())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_losses_in_half_precision_are_those_of_float32(dtype):
    """Sums of losses stay in float32 whatever the network is in."""
    model, sample = make_model().eval(), make_sample()
    losses = {}
    for precision in (torch.float32, dtype):
        numpy.random.seed(0)
        sample["net_input"]["source"] = sample["net_input"]["source"].to(precision)
        loss, _, _ = make_criterion()(model.to(precision), sample)
        loss.backward()
        losses[precision] = float(loss)
        assert loss.dtype == torch.float32
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    assert losses[dtype] == pytest.approx(losses[torch.float32], rel=0.02)


def test_some_utterances_are_heard_whole():
    model = make_model(unmasked_prob=1.0)
    sample = make_sample()
    assert not run(model, sample)["exits"].masked[0].num_counted.any()
    assert run(model.eval(), sample)["exits"].masked[0].num_counted.all()  # in validation all are masked
    torch.manual_seed(0)
    many = make_sample((4000,) * 200)
    half = run(make_model(unmasked_prob=0.5).train(), many)["exits"].masked[0].num_counted
    assert 70 < int((half == 0).sum()) < 130


def test_of_some_layers_left_out_each_hands_on_the_states_of_the_layer_below(monkeypatch):
    model = make_model(encoder_layerdrop=0.5, mask_prob=0.0).train()
    for head in model.exits.heads.units[1:]:
        head.load_state_dict(model.exits.heads.units[0].state_dict())
    draws = itertools.cycle((0.9, 0.1, 0.9, 0.1))  # fairseq runs a layer if the draw is above the rate
    monkeypatch.setattr(numpy.random, "random", lambda: next(draws))
    losses = [of_layer.loss.sum() for of_layer in run(model, make_sample())["exits"].judged]
    assert losses[0] == losses[1] != losses[2] == losses[3]
    losses[3].backward()
    used = [any(p.grad is not None for p in layer.parameters()) for layer in model.encoder.layers]
    assert used == [True, False, True, False]


def test_a_layer_left_out_by_layerdrop_hands_on_what_it_was_given():
    model = make_model(encoder_layerdrop=1.0).train()
    output = run(model, make_sample())["exits"]
    for head in model.exits.heads.units[1:]:
        head.load_state_dict(model.exits.heads.units[0].state_dict())
    again = run(model, make_sample())["exits"]
    assert len(output.judged) == NUM_LAYERS
    assert all(torch.equal(judged.loss, again.judged[0].loss) for judged in again.judged)
    with pytest.raises(UsageError, match=r"exit_layers must be 1 to 4, found \[5\]"):
        make_model(exit_layers=[5])


def test_heads_that_predict_as_many_units_are_taken_over():
    model = make_model()
    heads = ExitHeads(HeadsConfig(num_layers=NUM_LAYERS, width=32, num_units=NUM_UNITS))
    torch.nn.init.ones_(heads.units[3].weight)
    model.exits.start_from(heads)
    assert model.exits.heads.units[3].weight.eq(1).all()
    other = ExitHeads(HeadsConfig(num_layers=NUM_LAYERS, width=32, num_units=NUM_UNITS + 1))
    model.exits.start_from(other)
    assert model.exits.heads.units[3].weight.eq(1).all()


TINY_NETWORK = (
    *(f"model.{name}={value!r}" for name, value in SHAPE.items() if name.split("_")[0] in ("encoder", "final")),
    f"model.conv_feature_layers={SHAPE['conv_feature_layers']!r}",
    "+model.conv_pos=16",
    "+model.conv_pos_groups=4",
)


def test_pretrain_with_exits_resume_and_convert(corpus, programs, tmp_path):
    start = tiny_model(POST_NORM, num_units=NUM_UNITS)
    daisy.save(start, tmp_path / "start.safetensors")

    def pretrain(updates):
        return command(
            programs / "fairseq-hydra-train", "--config-dir", ROOT / "fairseq_plugins" / "config", "--config-name",
            "hubert_mini_exits", f"common.user_dir={ROOT / 'fairseq_plugins'}", "common.cpu=true",
            f"task.data={corpus / 'data'}", f"task.label_dir={corpus / 'data'}", "task.min_sample_size=4000",
            f"task.noise_manifest={corpus / 'data' / 'noise.tsv'}", f"hydra.run.dir={tmp_path / 'run'}",
            "dataset.max_tokens=40000", f"optimization.max_update={updates}", "lr_scheduler.total_num_update=100",
            "lr_scheduler.warmup_updates=0", "dataset.validate_interval_updates=2", "common.log_interval=1",
            "checkpoint.save_interval_updates=2", f"model.warm_start={tmp_path / 'start.safetensors'}",
            "model.exit_layers=[1,2,3,4]", "criterion.exit_layer_weights=[1,1,0.5,2]", *TINY_NETWORK,
        )  # fmt: skip

    pretrain(2)
    log = pretrain(4)
    assert len(re.findall(r"Loaded checkpoint .*2 updates", log)) == 1
    assert all(f"nats_{layer}=" in log and f"accuracy_{layer}=" in log for layer in range(1, NUM_LAYERS + 1))
    model = convert(tmp_path / "run" / "checkpoints" / "checkpoint_last.pt", allow_pickle=True)
    assert (model.heads.config.num_layers, model.heads.config.num_units) == (NUM_LAYERS, NUM_UNITS)
    assert all(float(regressor.count) > 0 for regressor in model.heads.regressors)
    out = model.encoder("entropy", threshold=0.0)([torch.zeros(8000)])
    assert int(out.exit_layer) == NUM_LAYERS  # nothing is that sure
    stock = tmp_path / "stock.pt"
    command(programs / "python", "-m", "fairseq_plugins.export", tmp_path / "run/checkpoints/checkpoint_last.pt", stock)
    code = (
        "from fairseq import checkpoint_utils\n"
        f"models, _, task = checkpoint_utils.load_model_ensemble_and_task([{str(stock)!r}])\n"
        "print('KIND', type(models[0]).__name__, len(task.dictionaries[0]))\n"
    )
    assert f"KIND HubertModel {NUM_UNITS}" in command(programs / "python", "-c", code)
