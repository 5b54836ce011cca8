"""``daisy_exit_heads``: every head learns to predict the masked units, and every regressor the loss of its head."""

from dataclasses import dataclass, field
from typing import Any, List  # noqa: UP035  OmegaConf 2.0 only reads typing.List

import torch
from fairseq import metrics
from fairseq.criterions import FairseqCriterion, register_criterion
from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from torch import Tensor

from daisy.audio.mixing import NoiseBank, mix_some
from daisy.errors import UsageError
from daisy.models.head_losses import count_frames_that_count, sum_layer_losses
from fairseq_plugins.label_files import check_dataset

TARGETS = ChoiceEnum(["teacher", "labels"])


@dataclass
class DaisyExitHeadsConfig(FairseqDataclass):
    target: TARGETS = field(
        default="teacher",
        metadata={"help": "teacher: units that the backbone's own final head predicts; labels: the label files"},
    )
    pred_masked_weight: float = field(default=1.0, metadata={"help": "weight of the loss on masked frames"})
    pred_nomask_weight: float = field(default=1.0, metadata={"help": "weight of the loss on the other frames"})
    noise_manifest: str = field(
        default="", metadata={"help": "manifest of noise to mix into what the heads hear; targets stay the clean ones"}
    )
    noise_prob: float = field(default=0.5, metadata={"help": "share of utterances that get noise"})
    noise_snr_db: List[float] = field(
        default_factory=lambda: [-5.0, 20.0], metadata={"help": "range of signal-to-noise ratios in dB: [low, high]"}
    )


@register_criterion("daisy_exit_heads", dataclass=DaisyExitHeadsConfig)
class DaisyExitHeads(FairseqCriterion):
    """Mean over layers of the unit loss in nats, plus the regressors' Huber loss.

    The regressor of a layer learns the mean loss of its head on each utterance: on masked frames where frames are
    masked (`mask_prob` above 0), else on all. It reads the utterance unmasked, as it will at inference.
    """

    def __init__(self, task, target, pred_masked_weight, pred_nomask_weight, noise_manifest, noise_prob, noise_snr_db):
        super().__init__(task)
        self.from_teacher = str(target) == "teacher"
        if not self.from_teacher and not task.cfg.labels:
            raise UsageError("target=labels needs label files: task.labels=[km], or --labels '[\"km\"]'")
        if not self.from_teacher and not task.cfg.label_rate > 0:
            rate = task.cfg.label_rate
            raise UsageError(f"target=labels needs the labels' rate, task.label_rate=50 or so, found {rate:g}")
        self.pred_masked_weight, self.pred_nomask_weight = pred_masked_weight, pred_nomask_weight
        self.noise = NoiseBank.from_manifest(noise_manifest, task.cfg.sample_rate) if noise_manifest else None
        self.noise_prob, self.noise_snr_db = noise_prob, list(noise_snr_db)
        if len(self.noise_snr_db) != 2 or self.noise_snr_db[0] > self.noise_snr_db[1]:
            raise UsageError(f"noise_snr_db must be [low, high] in dB, found {self.noise_snr_db}")

    def forward(self, model, sample: dict, reduce: bool = True):
        source, padding = sample["net_input"]["source"], sample["net_input"]["padding_mask"]
        num_samples = (~padding).sum(1).cpu()
        seed = _seed(sample["id"])
        if model.training:  # fairseq seeds torch alike in every process at each update: hence the ids
            seed = (seed + int(torch.randint(1 << 31, ()))) % (1 << 31)
        noisy = self._noisy(source, num_samples, seed)
        labels = None
        if not self.from_teacher:
            for dataset in self.task.datasets.values():
                check_dataset(getattr(dataset, "dataset", dataset))
            labels = sample["target_list"][0].long()
            labels = labels.masked_fill(labels == self.task.dictionaries[0].pad(), -1)
        output = model(source, num_samples, labels, self.task.cfg.label_rate, noisy, seed)
        loss, logging = self._losses(output)
        sample_size = int(logging["ntokens"])
        if not sample_size:
            raise UsageError(
                "no frame counts: pred_nomask_weight is 0 and none is masked; give mask_prob or pred_nomask_weight"
            )
        return loss, sample_size, {**logging, "nsentences": len(source), "sample_size": sample_size}

    def _noisy(self, source: Tensor, num_samples: Tensor, seed: int) -> Tensor | None:
        """Mix noise into some utterances, drawn by the seed."""
        if self.noise is None:
            return None
        return mix_some(source, num_samples, self.noise, self.noise_prob, self.noise_snr_db, seed)

    def _losses(self, output) -> tuple[Tensor, dict[str, Any]]:
        weights = self.pred_masked_weight, self.pred_nomask_weight
        total, logging = sum_layer_losses(output, *weights)
        counted = count_frames_that_count(output, *weights)
        return total, {"loss": float(total.detach()), "ntokens": counted, **logging}

    @staticmethod
    def reduce_metrics(logging_outputs: list[dict]) -> None:
        """Log nats and accuracy per layer (on masked frames, if frames are masked) and the regressors' error."""
        log_layers(logging_outputs)

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        return True


def log_layers(logging_outputs: list[dict], final: tuple[str, ...] = ()) -> None:
    """Log nats and accuracy of each layer's exit head, the regressors' error, and the last layer's own losses.

    Args:
        logging_outputs: logs of all processes.
        final: names of the last layer's losses.
    """
    sums = {key: sum(float(log.get(key, 0)) for log in logging_outputs) for key in logging_outputs[0]}
    layers = sorted(int(key.split("_")[1]) for key in sums if key.startswith("nats_"))
    judged, sentences = max(sums["judged"], 1.0), max(sums["nsentences"], 1.0)
    metrics.log_scalar("loss", sums["loss"] / max(sums["sample_size"], 1.0), sums["sample_size"], round=4)
    for name in final:
        counted = max(sums.get(f"{name}_counted", 0.0), 1.0)
        metrics.log_scalar(name, sums.get(name, 0.0) / counted, counted, round=3)
        metrics.log_scalar(f"{name}_accuracy", sums.get(f"{name}_correct", 0.0) / counted, counted, round=3)
    for layer in layers:
        metrics.log_scalar(f"nats_{layer}", sums[f"nats_{layer}"] / judged, judged, round=3)
        metrics.log_scalar(f"accuracy_{layer}", sums[f"correct_{layer}"] / judged, judged, round=3)
        if f"error_{layer}" in sums:
            metrics.log_scalar(f"regressor_error_{layer}", sums[f"error_{layer}"] / sentences, sentences, round=3)


def _seed(ids: Tensor) -> int:
    """Derive a seed from a batch's utterances, so that a validation batch always has the same noise."""
    return int((ids.cpu() * 2654435761).sum() % (1 << 31))
