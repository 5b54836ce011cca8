"""`daisy.training` beside the plugin: the same losses update by update, on the same batches from the same heads."""

import argparse

import numpy
import pytest
import torch

import daisy
from daisy.audio.mixing import NoiseBank
from daisy.training import HeadLearner, HeadTraining
from daisy.training.batches import HeadBatch
from tests.fairseq_plugins.conftest import ROOT

UPDATES = 12


@pytest.mark.parametrize("from_labels", [False, True])
def test_losses_are_the_plugins_update_by_update(from_labels, corpus):
    import fairseq.utils
    from fairseq.optim.adam import FairseqAdam, FairseqAdamConfig
    from fairseq.optim.lr_scheduler.polynomial_decay_schedule import (
        PolynomialDecayLRSchedule,
        PolynomialDecayLRScheduleConfig,
    )
    from fairseq.tasks.hubert_pretraining import HubertPretrainingConfig, HubertPretrainingTask

    fairseq.utils.import_user_module(argparse.Namespace(user_dir=str(ROOT / "fairseq_plugins")))
    from fairseq_plugins.criterion import DaisyExitHeads
    from fairseq_plugins.model import DaisyHubert, DaisyHubertConfig

    labels = ["km"] if from_labels else []
    task = HubertPretrainingTask(
        HubertPretrainingConfig(data=str(corpus / "data"), labels=labels, label_rate=50.0, pad_audio=True)
    )
    task.load_dataset("train")
    dataset = task.datasets["train"]
    noise = str(corpus / "data" / "noise.tsv")
    criterion = DaisyExitHeads(task, "labels" if from_labels else "teacher", 1.0, 1.0, noise, 0.0, [0.0, 5.0])
    plugin = DaisyHubert.build_model(DaisyHubertConfig(hubert_path=str(corpus / "hubert.safetensors")), task)
    plugin.train()
    settings = HeadTraining(
        max_update=UPDATES, warmup_updates=3, lr=0.01, clip_norm=0.5, weight_decay=0.01, noise_prob=0.0
    )
    learner = HeadLearner(
        daisy.load(corpus / "hubert.safetensors"),
        settings,
        num_units=len(task.dictionaries[0]) if from_labels else 0,
        noises=NoiseBank.from_manifest(noise),
    )
    learner.heads.load_state_dict(plugin.heads.state_dict())
    adam = FairseqAdam(
        FairseqAdamConfig(adam_betas="(0.9,0.98)", adam_eps=1e-6, weight_decay=0.01, lr=[0.01]),
        [parameter for parameter in plugin.parameters() if parameter.requires_grad],
    )
    schedule = PolynomialDecayLRSchedule(
        PolynomialDecayLRScheduleConfig(warmup_updates=3, total_num_update=UPDATES, lr=[0.01]), adam
    )
    schedule.step_update(0)
    generator, losses = numpy.random.default_rng(0), []
    for update in range(UPDATES):
        assert adam.get_lr() == pytest.approx(settings.learning_rate(update))
        batch = dataset.collater([dataset[index] for index in generator.permutation(12)[:3]])
        adam.zero_grad()
        loss, size, _ = criterion(plugin, batch)
        loss.backward()
        adam.multiply_grads(1 / size)
        adam.clip_grad_norm(0.5)
        adam.step()
        schedule.step_update(update + 1)
        source, padding = batch["net_input"]["source"], batch["net_input"]["padding_mask"]
        units = None
        if from_labels:
            units = batch["target_list"][0].long()
            units = units.masked_fill(units == task.dictionaries[0].pad(), -1)
        log = learner.update(HeadBatch(source=source, num_samples=(~padding).sum(1), labels=units, seed=update))
        assert log["ntokens"] == size
        losses.append((float(loss.detach()) / size, log["loss"] / size))
    theirs, ours = zip(*losses, strict=True)
    assert ours == pytest.approx(theirs, rel=1e-5)
    assert len(set(theirs)) == UPDATES
    for name, tensor in plugin.heads.state_dict().items():
        torch.testing.assert_close(learner.heads.state_dict()[name], tensor, rtol=1e-3, atol=1e-5)
