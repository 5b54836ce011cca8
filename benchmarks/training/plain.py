"""Exit heads trained in plain PyTorch and with the fairseq plugin: losses update by update, on the same batches.

    python -m benchmarks.training.plain

Both start with the same heads on daisy-mini's backbone, get the same recordings (cut and padded by fairseq's own
dataset) with the same noise, and learn from the units of the model's own prediction head. One side uses the plugin's
criterion and fairseq's Adam and schedule; the other is what daisy train-heads runs (daisy.training.HeadLearner).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import torch

import daisy
from benchmarks.shared.recordings import DATA, read_index
from benchmarks.shared.results import Row, write_result
from benchmarks.shared.script import ROOT, RUNS, make_parser, run_script
from daisy import _files, audio
from daisy.audio.mixing import NoiseBank
from daisy.training import HeadLearner, HeadTraining
from daisy.training.batches import HeadBatch

BATCH, RECORDINGS = 8, 120
SET = "librispeech"


def compare_updates(data: Path, model: Path, settings: HeadTraining, *, labels: bool, batch: int = BATCH) -> list[Row]:
    """Train with and without the plugin.

    Args:
        data: folder of train.tsv and noise.tsv, and with ``labels`` also train.km and dict.km.txt.
        model: path of the HuBERT.
        settings: settings of the training.
        labels: whether to learn the units of the label files.
        batch: number of recordings in a batch.

    Returns:
        A row for each update: both losses, in nats per frame, and the largest difference of a head's weight afterwards.
    """
    plugin, criterion, batches = _build_plugin(data, model, settings, labels, batch)
    adam, schedule = _build_optimizer(plugin, settings)
    dictionaries = criterion.task.dictionaries
    learner = HeadLearner(
        daisy.load(model),
        settings,
        num_units=len(dictionaries[0]) if labels else 0,
        noises=NoiseBank.from_manifest(data / "noise.tsv"),
    )
    learner.heads.load_state_dict(plugin.heads.state_dict())
    rows = []
    for update, sample in zip(range(settings.max_update), batches, strict=False):
        seeds: list[int] = []
        theirs = _update_plugin(plugin, criterion, sample, adam, schedule, update, settings, seeds)
        source, padding = sample["net_input"]["source"], sample["net_input"]["padding_mask"]
        units = None
        if labels:
            units = sample["target_list"][0].long()
            units = units.masked_fill(units == dictionaries[0].pad(), -1)
        log = learner.update(HeadBatch(source=source, num_samples=(~padding).sum(1), labels=units, seed=seeds[0]))
        differences = [
            float((ours - tensor).abs().max())
            for ours, tensor in zip(learner.heads.parameters(), plugin.heads.parameters(), strict=True)
        ]
        rows.append(
            {
                "update": update + 1,
                "learning_rate": settings.learning_rate(update),
                "plugin_loss": theirs,
                "plain_loss": log["loss"] / log["ntokens"],
                "largest_weight_difference": max(differences),
            }
        )
    return rows


def _build_plugin(
    data: Path, model: Path, settings: HeadTraining, labels: bool, batch: int
) -> tuple[Any, Any, Iterator[Any]]:
    """Make the plugin's model and criterion, and an endless iterator over batches of fairseq's dataset."""
    import fairseq.utils
    from fairseq.tasks.hubert_pretraining import HubertPretrainingConfig, HubertPretrainingTask

    fairseq.utils.import_user_module(argparse.Namespace(user_dir=str(ROOT / "fairseq_plugins")))
    from fairseq_plugins.criterion import DaisyExitHeads
    from fairseq_plugins.model import DaisyHubert, DaisyHubertConfig

    task = HubertPretrainingTask(
        HubertPretrainingConfig(
            data=str(data),
            labels=["km"] if labels else [],
            label_rate=settings.label_rate,
            pad_audio=True,
            max_sample_size=settings.max_sample_size,
        )
    )
    task.load_dataset("train")
    criterion = DaisyExitHeads(
        task,
        "labels" if labels else "teacher",
        settings.pred_masked_weight,
        settings.pred_nomask_weight,
        str(data / "noise.tsv"),
        settings.noise_prob,
        list(settings.noise_snr_db),
    )
    plugin = DaisyHubert.build_model(DaisyHubertConfig(hubert_path=str(model)), task)
    dataset = task.datasets["train"]

    def draw() -> Iterator[Any]:
        generator = numpy.random.default_rng(settings.seed)
        while True:
            order = generator.permutation(len(dataset))
            for start in range(0, len(order) - batch + 1, batch):
                yield dataset.collater([dataset[index] for index in order[start : start + batch]])

    return plugin.train(), criterion, draw()


def _build_optimizer(plugin: Any, settings: HeadTraining) -> tuple[Any, Any]:
    """Make fairseq's Adam and its polynomial decay."""
    from fairseq.optim.adam import FairseqAdam, FairseqAdamConfig
    from fairseq.optim.lr_scheduler.polynomial_decay_schedule import (
        PolynomialDecayLRSchedule,
        PolynomialDecayLRScheduleConfig,
    )

    adam = FairseqAdam(
        FairseqAdamConfig(
            adam_betas=str(settings.betas),
            adam_eps=settings.eps,
            weight_decay=settings.weight_decay,
            lr=[settings.lr],
        ),
        [parameter for parameter in plugin.parameters() if parameter.requires_grad],
    )
    schedule = PolynomialDecayLRSchedule(
        PolynomialDecayLRScheduleConfig(
            warmup_updates=settings.warmup_updates, total_num_update=settings.max_update, lr=[settings.lr]
        ),
        adam,
    )
    schedule.step_update(0)
    return adam, schedule


def _update_plugin(
    plugin: Any,
    criterion: Any,
    sample: Any,
    adam: Any,
    schedule: Any,
    update: int,
    settings: HeadTraining,
    seeds: list[int],
) -> float:
    """Make one update as fairseq's trainer does, append the noise seeds to ``seeds``, and return the loss per frame."""
    mix = criterion._noisy

    def note(source: Any, num_samples: Any, seed: int) -> Any:
        seeds.append(seed)
        return mix(source, num_samples, seed)

    criterion._noisy = note
    try:
        adam.zero_grad()
        loss, size, _ = criterion(plugin, sample)
    finally:
        criterion._noisy = mix
    loss.backward()
    adam.multiply_grads(1 / size)
    if settings.clip_norm:
        adam.clip_grad_norm(settings.clip_norm)
    adam.step()
    schedule.step_update(update + 1)
    return float(loss.detach()) / size


def write_manifests(folder: Path, limit: int) -> None:
    """Write manifests of some recordings and of the noise."""
    for name, set_name, count in (("train", SET, limit), ("noise", "noise", None)):
        root = DATA / set_name
        recordings = [
            audio.Recording(path=root / row["path"], name=row["path"]) for row in read_index(set_name, "train", count)
        ]
        lines = [audio.format_manifest_line(recording, root) for recording in recordings]
        _files.write(folder / f"{name}.tsv", "\n".join([audio.format_manifest_root(root), *lines, ""]).encode())


def main() -> None:
    parser = make_parser(__doc__, quick="ten updates; nothing is written")
    parser.add_argument("--updates", type=int, default=200)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    updates = 10 if arguments.quick else arguments.updates
    settings = HeadTraining(max_update=updates, warmup_updates=max(1, updates // 20))
    folder = RUNS / "plain"
    write_manifests(folder, 24 if arguments.quick else RECORDINGS)
    model = daisy.load("daisy-mini")
    model.heads = None
    daisy.save(model, folder / "hubert.safetensors")
    settings = replace(settings, max_sample_size=80_000)
    rows = compare_updates(folder, folder / "hubert.safetensors", settings, labels=False)
    for row in rows[:: max(1, updates // 20)] + rows[-1:]:
        print(
            f"update {row['update']:4}  rate {row['learning_rate']:.5f}  plugin {row['plugin_loss']:.6f}  plain "
            f"{row['plain_loss']:.6f}  largest difference of a weight {row['largest_weight_difference']:.1e}"
        )
    if not arguments.quick:
        write_result("train_heads", rows)


if __name__ == "__main__":
    run_script(main)
