"""The criterion in this process, compared with sums computed by hand from the library."""

import argparse

import pytest
import torch
from torch.nn import functional as F

from daisy import CheckpointError, EarlyExitEncoder, policies
from daisy.errors import UsageError
from tests.fairseq_plugins.conftest import ROOT

SETTINGS = {
    "target": "teacher",
    "pred_masked_weight": 1.0,
    "pred_nomask_weight": 1.0,
    "noise_manifest": "",
    "noise_prob": 1.0,
    "noise_snr_db": [-5.0, -5.0],
}


@pytest.fixture
def build(corpus):
    """(criterion, model, a batch of three) with the given options of criterion, model and task."""
    import fairseq.utils
    from fairseq.tasks.hubert_pretraining import HubertPretrainingConfig, HubertPretrainingTask

    fairseq.utils.import_user_module(argparse.Namespace(user_dir=str(ROOT / "fairseq_plugins")))
    from fairseq_plugins.criterion import DaisyExitHeads
    from fairseq_plugins.model import DaisyHubert, DaisyHubertConfig

    def made(criterion=(), model=(), labels=()):
        task = HubertPretrainingTask(
            HubertPretrainingConfig(data=str(corpus / "data"), labels=list(labels), label_rate=50.0, pad_audio=True)
        )
        task.load_dataset("train")
        dataset = task.datasets["train"]
        options = DaisyHubertConfig(hubert_path=str(corpus / "hubert.safetensors"), **dict(model))
        torch.manual_seed(0)
        heads = DaisyHubert.build_model(options, task).eval()
        batch = dataset.collater([dataset[index] for index in (0, 3, 7)])
        return DaisyExitHeads(task, **{**SETTINGS, **dict(criterion)}), heads, batch

    return made


def own_sums(model, heard, targets):
    """Loss of each layer summed over the frames of all utterances, from single runs."""
    encoder = EarlyExitEncoder(model.backbone, None, policies.Never())
    layers = [encoder([waveform]).states[0] for waveform in heard]
    return [
        sum(
            float(F.cross_entropy(model.heads.unit_logits(layer, states[layer]), units, reduction="sum"))
            for states, units in zip(layers, targets, strict=True)
        )
        for layer in range(1, model.backbone.config.num_layers + 1)
    ]


def utterances(batch):
    net_input = batch["net_input"]
    return [w[~p] for w, p in zip(net_input["source"], net_input["padding_mask"], strict=True)]


def teacher_units(model, waveforms):
    encoder = EarlyExitEncoder(model.backbone, None, policies.Never(), keep="last")
    return [model.teacher_units(states[0]) for states in encoder(waveforms).states]


def test_heads_hear_the_noise_and_are_taught_the_clean_units(build, corpus):
    criterion, model, batch = build({"noise_manifest": str(corpus / "data" / "noise.tsv")})
    clean = utterances(batch)
    loss, size, logged = criterion(model, batch)
    from fairseq_plugins.criterion import _seed

    lengths = torch.tensor([len(w) for w in clean])
    noisy = criterion._noisy(batch["net_input"]["source"], lengths, _seed(batch["id"]))
    heard = [row[:length] for row, length in zip(noisy, lengths.tolist(), strict=True)]
    for before, after in zip(clean, heard, strict=True):
        snr = 10 * torch.log10(before.square().mean() / (after - before).square().mean())
        assert abs(float(snr) + 5) < 0.01
    expected = own_sums(model, heard, teacher_units(model, clean))
    of_heard = own_sums(model, heard, teacher_units(model, heard))
    assert [logged[f"nats_{layer}"] for layer in range(1, 5)] == pytest.approx(expected, rel=1e-5)
    assert of_heard != pytest.approx(expected, rel=1e-4)  # the two can be told apart
    assert size == sum((len(w) - 400) // 320 + 1 for w in clean)
    regressed = sum(logged[f"error_{layer}"] for layer in range(1, 5))
    assert regressed > 0
    assert float(loss) > sum(expected) / 4  # the regressors' part comes on top


@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0), (1.0, 1.0), (0.5, 2.0)])
def test_masked_and_other_frames_are_weighted(build, weights):
    criterion, model, batch = build(
        {"pred_masked_weight": weights[0], "pred_nomask_weight": weights[1]},
        {"mask_prob": 0.65, "mask_length": 5, "no_regressors": True},
    )
    loss, size, logged = criterion(model, batch)
    again, _, _ = criterion(model, batch)
    assert torch.equal(loss, again), "validation must not depend on chance"
    output = model(*criterion_arguments(criterion, batch))
    masked = sum(float(part.loss.sum()) for part in output.masked)
    others = sum(float(part.loss.sum()) for part in output.unmasked)
    counts = [int(part[0].num_counted.sum()) for part in (output.masked, output.unmasked)]
    assert float(loss) == pytest.approx((weights[0] * masked + weights[1] * others) / 4, rel=1e-5)
    assert size == sum(count for count, weight in zip(counts, weights, strict=True) if weight)
    assert sum(counts) == sum((len(w) - 400) // 320 + 1 for w in utterances(batch))
    assert 0.1 < counts[0] / sum(counts) < 0.9
    assert logged["judged"] == counts[0]


def criterion_arguments(criterion, batch):
    from fairseq_plugins.criterion import _seed

    source, padding = batch["net_input"]["source"], batch["net_input"]["padding_mask"]
    return source, (~padding).sum(1), None, 50.0, None, _seed(batch["id"])


def test_training_draws_anew_and_follows_fairseqs_seed(build, corpus):
    criterion, model, batch = build(
        {"noise_manifest": str(corpus / "data" / "noise.tsv"), "noise_snr_db": [-5.0, 20.0]}, {"mask_prob": 0.65}
    )
    model.train()
    assert not model.backbone.training
    losses = []
    for seed in (1, 2, 1):
        torch.manual_seed(seed)
        losses.append(float(criterion(model, batch)[2]["nats_4"]))
    assert losses[0] == losses[2] != losses[1]


def test_label_files_are_the_targets(build):
    criterion, model, batch = build({"target": "labels"}, labels=["km"])
    targets = [labels[: (labels != 1).sum()].long() for labels in batch["target_list"][0]]
    waveforms = utterances(batch)
    frames = [(len(w) - 400) // 320 + 1 for w in waveforms]
    _, size, logged = criterion(model, batch)
    counted = [min(len(t), f) for t, f in zip(targets, frames, strict=True)]
    assert size == sum(counted)
    expected = own_sums(model, waveforms, [t[:n] for t, n in zip(targets, counted, strict=True)])
    assert logged["nats_2"] == pytest.approx(expected[1], rel=1e-4)


def test_refusals(build, corpus):
    criterion, model, batch = build({"pred_nomask_weight": 0.0})
    with pytest.raises(UsageError, match="no frame counts: pred_nomask_weight is 0 and none is masked"):
        criterion(model, batch)
    dictionary = corpus / "data" / "dict.km.txt"
    before = dictionary.read_text()
    dictionary.write_text(before + "7 1\n8 1\n")
    try:
        criterion, model, batch = build(labels=["km"])
    finally:
        dictionary.write_text(before)
    assert model.heads.config.num_units == 13
    with pytest.raises(CheckpointError, match=r"no prediction head to learn from: train with target=labels"):
        criterion(model, batch)
    with pytest.raises(UsageError, match=r"target=labels needs label files: task\.labels=\[km\]"):
        build({"target": "labels"})
    with pytest.raises(UsageError, match=r"noise_snr_db must be \[low, high\] in dB, found \[20.0, 0.0\]"):
        build({"noise_snr_db": [20.0, 0.0]})


def test_half_precision(build, corpus):
    """As fairseq runs it with common.bf16: weights and input cast, losses finite and near those of float32."""
    options = {"noise_manifest": str(corpus / "data" / "noise.tsv"), "target": "labels"}
    criterion, model, batch = build(options, labels=["km"])
    full = criterion(model, batch)[2]
    batch["net_input"]["source"] = batch["net_input"]["source"].bfloat16()
    half = criterion(model.bfloat16(), batch)[2]
    for layer in range(1, 5):
        assert half[f"nats_{layer}"] == pytest.approx(full[f"nats_{layer}"], rel=0.1)
        assert half[f"error_{layer}"] == pytest.approx(full[f"error_{layer}"], rel=0.1)
