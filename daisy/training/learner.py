"""Update exit heads with one batch."""

from __future__ import annotations

import math
from functools import partial

import numpy
import torch
from torch import Tensor, nn

from daisy.audio.mixing import NoiseBank, mix_some
from daisy.checkpoints import Model
from daisy.errors import CheckpointError, UsageError
from daisy.models import Backbone, ExitHeads, HeadsConfig
from daisy.models.head_losses import compute_head_losses, count_frames_that_count, sum_layer_losses
from daisy.training.batches import HeadBatch
from daisy.training.settings import HeadTraining

Log = dict[str, float]
"""Sums over a batch, by name; see `daisy.models.head_losses.sum_layer_losses`."""


class HeadLearner(nn.Module):
    """A frozen network, the exit heads that learn on it, and their optimiser.

    Args:
        model: model whose heads, if any, are replaced by new ones.
        settings: settings of the training.
        num_units: number of units in label files, special symbols included; 0: that of the model's own prediction head.
        noises: noises to mix into the heads' input.
        bfloat16: multiply in bfloat16 (autocast); weights and losses stay in float32.

    Raises:
        CheckpointError: where there are no labels and the model has no prediction head.
        UsageError: where frames are to be masked, but the model has no mask embedding.
    """

    def __init__(
        self,
        model: Model,
        settings: HeadTraining,
        num_units: int = 0,
        noises: NoiseBank | None = None,
        *,
        bfloat16: bool = False,
    ):
        super().__init__()
        if not num_units and model.final_head is None:
            raise CheckpointError("this model has no prediction head of its own to learn from: give labels")
        if settings.mask_prob and not isinstance(model.backbone, Backbone):
            raise UsageError("mask_prob is for HuBERT and its kin, whose pre-training masks frames: leave it 0")
        self.settings, self.noises, self._autocasts = settings, noises, bfloat16
        self.backbone, self.final_head = model.backbone.requires_grad_(False), model.final_head
        self.heads = make_heads(model, settings, num_units).to(self.backbone.device)
        self.num_updates = 0
        self.optimizer = torch.optim.AdamW(
            self.heads.parameters(), lr=settings.lr, betas=settings.betas, weight_decay=settings.weight_decay
        )

    def train(self, mode: bool = True) -> HeadLearner:
        """Set the heads to training mode or not; the backbone stays in evaluation mode."""
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(self, batch: HeadBatch) -> tuple[Tensor, Log]:
        """Compute the summed loss of a batch, and sums for the log, including ``ntokens`` and ``nsentences``."""
        settings, device = self.settings, self.backbone.device
        noisy = None
        if self.noises is not None:
            noisy = mix_some(
                batch.source, batch.num_samples, self.noises, settings.noise_prob, settings.noise_snr_db, batch.seed
            ).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=self._autocasts):
            output = compute_head_losses(
                self.backbone,
                self.heads,
                batch.source.to(device),
                batch.num_samples,
                teacher=self._teach,
                labels=None if batch.labels is None else batch.labels.to(device),
                label_rate=settings.label_rate,
                noisy_source=noisy,
                draw_mask=partial(self._draw_mask, batch.seed) if settings.mask_prob else None,
            )
        weights = settings.pred_masked_weight, settings.pred_nomask_weight
        loss, log = sum_layer_losses(output, *weights)
        counted = count_frames_that_count(output, *weights)
        return loss, {"loss": float(loss.detach()), "ntokens": counted, "nsentences": float(len(batch.source)), **log}

    def update(self, batch: HeadBatch) -> Log:
        """Learn from a batch, together with the batches of all other processes if there are any.

        Raises:
            UsageError: where loss or gradient are not finite.
        """
        self.train()
        self.optimizer.zero_grad()
        loss, log = self(batch)
        loss.backward()
        log = sum_over_processes(log, self.backbone.device)
        parameters = [parameter for parameter in self.heads.parameters() if parameter.requires_grad]
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            if torch.distributed.is_initialized():
                torch.distributed.all_reduce(parameter.grad)
            parameter.grad /= max(log["ntokens"], 1.0)
        norm = float(nn.utils.clip_grad_norm_(parameters, self.settings.clip_norm or math.inf))
        if not math.isfinite(log["loss"] + norm):
            raise UsageError(
                f"training has diverged: update {self.num_updates + 1} has loss {log['loss']:g} and a gradient of norm "
                f"{norm:g}",
                remedy="diverged",
            )
        self._step()
        return log

    def _step(self) -> None:
        """Take a step of Adam as in fairseq: the epsilon is not divided by the second moment's correction."""
        correction = 1 - self.settings.betas[1] ** (self.num_updates + 1)
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate(self.num_updates)
            group["eps"] = self.settings.eps / correction**0.5
        self.optimizer.step()
        self.num_updates += 1

    def _teach(self, states: Tensor) -> Tensor:
        assert self.final_head is not None
        units: Tensor = self.final_head(states).argmax(-1)
        return units

    def _draw_mask(self, seed: int, valid: Tensor) -> Tensor:
        """Draw spans of frames, (B, T) bool, determined by the seed alone."""
        generator, masked = numpy.random.default_rng(seed), torch.zeros_like(valid)
        for row, count in enumerate(valid.sum(1).tolist()):
            spans = draw_spans(count, self.settings.mask_prob, self.settings.mask_length, generator)
            masked[row, :count] = spans.to(valid.device)
        return masked


def make_heads(model: Model, settings: HeadTraining, num_units: int) -> ExitHeads:
    """Make new heads, with initial weights determined by the seed alone."""
    config = model.backbone.config
    if not num_units:
        assert model.final_head is not None
        num_units = model.final_head.num_units
    shape = HeadsConfig(
        num_layers=config.num_layers, width=config.width, num_units=num_units, regressors=settings.regressors
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        return ExitHeads(shape)


def draw_spans(num_frames: int, mask_prob: float, mask_length: int, generator: numpy.random.Generator) -> Tensor:
    """Draw masked frames, (T,) bool, as in HuBERT's pre-training (static spans that may overlap, at least two)."""
    count = max(2, int(mask_prob * num_frames / mask_length + generator.random()))
    length = min(mask_length, max(1, num_frames - 1))
    starts = generator.choice(num_frames - length + 1, min(count, num_frames - length + 1), replace=False)
    masked = torch.zeros(num_frames, dtype=torch.bool)
    masked[(torch.from_numpy(starts)[:, None] + torch.arange(length)).flatten()] = True
    return masked


def sum_over_processes(log: Log, device: torch.device) -> Log:
    """Add up a log over all processes; return it as it is for a single process."""
    if not torch.distributed.is_initialized():
        return log
    sums = torch.tensor(list(log.values()), dtype=torch.float64, device=device)
    torch.distributed.all_reduce(sums)
    return dict(zip(log, sums.tolist(), strict=True))


def describe_log(log: Log) -> Log:
    """Turn sums into means: loss and nats per frame, accuracy, and the regressors' error in nats per utterance."""
    judged, sentences = max(log["judged"], 1.0), max(log["nsentences"], 1.0)
    means = {"loss": log["loss"] / max(log["ntokens"], 1.0)}
    for name, value in log.items():
        kind, _, layer = name.partition("_")
        if kind == "nats":
            means[name] = value / judged
        elif kind == "correct":
            means[f"accuracy_{layer}"] = value / judged
        elif kind == "error":
            means[f"regressor_error_{layer}"] = value / sentences
    return means


def sum_logs(logs: list[Log]) -> Log:
    """Add up the logs of several batches."""
    return {name: sum(log[name] for log in logs) for name in logs[0]}
