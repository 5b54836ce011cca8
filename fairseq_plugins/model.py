"""``daisy_hubert``: a frozen HuBERT with exit heads that learn."""

from dataclasses import dataclass, field
from typing import Any

import torch
from fairseq.dataclass import FairseqDataclass
from fairseq.models import BaseFairseqModel, register_model
from torch import Tensor

from daisy import checkpoints
from daisy.checkpoints.converters import convert
from daisy.checkpoints.converters.plugin import STATE_KEY
from daisy.checkpoints.format import ASSETS
from daisy.errors import CheckpointError, UsageError
from daisy.models import Backbone, LayerLosses
from daisy.models.heads import ExitHeads, HeadsConfig, mean_and_std
from daisy.models.lengths import make_valid_mask
from daisy.models.losses import UnitLoss, unit_loss
from daisy.models.packing import PackedLayout
from fairseq_plugins.compatibility import mask_indices


@dataclass
class DaisyHubertConfig(FairseqDataclass):
    hubert_path: str = field(
        default="",
        metadata={"help": "HuBERT checkpoint: daisy's .safetensors, or any form that daisy convert reads"},
    )
    mask_prob: float = field(
        default=0.0,
        metadata={"help": "share of frames masked while the heads learn; 0: as at inference, every frame is seen"},
    )
    mask_length: int = field(default=10, metadata={"help": "frames in a masked span"})
    no_regressors: bool = field(default=False, metadata={"help": "train no loss regressors beside the classifiers"})


@register_model("daisy_hubert", dataclass=DaisyHubertConfig)
class DaisyHubert(BaseFairseqModel):
    """The backbone is daisy's, frozen and in eval mode; only the heads have gradients.

    The configuration of backbone and heads lives in the task's state, so that a checkpoint loads without the file
    that the backbone came from.
    """

    def __init__(self, cfg: DaisyHubertConfig, parts: checkpoints.Model):
        super().__init__()
        self.cfg = cfg
        self.backbone, self.heads, self.final_head = parts.backbone, parts.heads, parts.final_head
        self.ctc = parts.ctc  # a recogniser stays one
        for frozen in (self.backbone, self.final_head, self.ctc):
            if frozen is not None:
                frozen.requires_grad_(False)

    @classmethod
    def build_model(cls, cfg: DaisyHubertConfig, task: Any) -> "DaisyHubert":
        if STATE_KEY in task.state.state_dict:
            return cls(cfg, checkpoints.build(task.state.state_dict[STATE_KEY]))
        parts = read_backbone(cfg.hubert_path)
        check_sample_rate(cfg.hubert_path, parts, task)
        if cfg.mask_prob and not isinstance(parts.backbone, Backbone):
            raise UsageError("mask_prob is for HuBERT and its kin, whose pre-training masks frames: leave it 0")
        parts.heads = ExitHeads(
            HeadsConfig(
                num_layers=parts.backbone.config.num_layers,
                width=parts.backbone.config.width,
                num_units=find_num_units(parts, task),
                regressors=not cfg.no_regressors,
            )
        )
        parts.policies = {}  # of other heads
        task.state.merge_state_dict({STATE_KEY: parts.config()})
        return cls(cfg, parts)

    def train(self, mode: bool = True) -> "DaisyHubert":
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(
        self,
        source: Tensor,
        num_samples: Tensor,
        labels: Tensor | None,
        label_rate: float,
        noisy_source: Tensor | None,
        mask_seed: int,
    ) -> LayerLosses:
        """Run one step.

        Args:
            source: (B, N) waveforms; the teacher hears these.
            num_samples: (B,) int64 on the CPU.
            labels: (B, M) int64 units of the label files, -1 where there is none; None to take the teacher's.
            label_rate: labels a second.
            noisy_source: (B, N) waveforms that the heads learn on, where they are not ``source``.
            mask_seed: of the masked frames.

        Raises:
            CheckpointError: where the teacher is asked and has no prediction head, or other units than the heads.
        """
        with torch.no_grad():
            features, num_frames = self.backbone.front_end(source, num_samples)
            layers = None
            if labels is None:
                layers = self._run_layers(self.backbone.embed(features, num_frames), num_frames)
                targets = self.teacher_units(layers[-1])
            else:
                targets = self.aligned(labels, label_rate, features.shape[1])
            if noisy_source is not None:
                features, _ = self.backbone.front_end(noisy_source, num_samples)
                layers = None
            if layers is None:
                layers = self._run_layers(self.backbone.embed(features, num_frames), num_frames)
            valid = make_valid_mask(num_frames, features.shape[1]).to(features.device)
            masked = None
            if self.cfg.mask_prob:
                masked = mask_indices(valid, self.cfg.mask_prob, self.cfg.mask_length, mask_seed)
            valid = valid & (targets >= 0)
            learnt_on = layers
            if masked is not None:
                projected = self.backbone.project(features)
                projected[masked] = self.backbone.mask_embedding.to(projected.dtype)
                learnt_on = self._run_layers(self.backbone.position(projected, num_frames), num_frames)
        losses = self._unit_losses(learnt_on, targets, valid, masked)
        judged = [unmasked if masked is None else on_masked for on_masked, unmasked in losses]
        return LayerLosses(
            masked=[loss for loss, _ in losses],
            unmasked=[loss for _, loss in losses],
            judged=judged,
            predicted=self._predicted(layers, num_frames, judged) if self.heads.regressors is not None else [],
        )

    def _predicted(self, layers: list[Tensor], num_frames: Tensor, judged: list[UnitLoss]) -> list[Tensor]:
        """What each layer's regressor makes of the utterances as they are heard, (B,) nats."""
        predicted, layout = [], PackedLayout(num_frames, layers[0].device)
        valid = make_valid_mask(num_frames, layers[0].shape[1]).to(layers[0].device)
        for regressor, states, loss in zip(self.heads.regressors, layers, judged, strict=True):
            pooled = mean_and_std(states[valid], layout)
            if self.training:
                counted = loss.num_counted > 0
                regressor.observe(pooled[counted], loss.mean()[counted])
            predicted.append(regressor(pooled))
        return predicted

    def teacher_units(self, states: Tensor) -> Tensor:
        """Predict each frame's unit with the backbone's own final head, (B, T).

        Raises:
            CheckpointError: where it has no prediction head, or one of other units than the exit heads.
        """
        if self.final_head is None:
            raise CheckpointError("this HuBERT has no prediction head of its own: train with target=labels")
        if self.final_head.num_units != self.heads.config.num_units:
            raise CheckpointError(
                f"the teacher predicts {self.final_head.num_units} units and the labels have "
                f"{self.heads.config.num_units}: with target=teacher give no labels (task.labels=[])"
            )
        return self.final_head(states).argmax(-1)

    def aligned(self, labels: Tensor, label_rate: float, length: int) -> Tensor:
        """Align labels (B, M) at their rate to targets (B, length) at the frame rate, -1 past their end."""
        config = self.backbone.config
        per_frame = label_rate * config.frame_hop / config.sample_rate
        places = (torch.arange(length, device=labels.device) * per_frame).long()
        known = places < labels.shape[1]
        return torch.where(known, labels[:, places.clamp(max=labels.shape[1] - 1)], -1)

    def _run_layers(self, states: Tensor, num_frames: Tensor) -> list[Tensor]:
        """Layer 0 to the states of layers 1 to L."""
        return self.backbone.run_layers(states, num_frames)[1:]

    def _unit_losses(
        self, layers: list[Tensor], targets: Tensor, valid: Tensor, masked: Tensor | None
    ) -> list[tuple[UnitLoss, UnitLoss]]:
        """Per layer the losses over (masked, unmasked) frames; padding is in neither."""
        batch = len(valid)
        group = valid.nonzero()[:, 0]  # masked frames count for utterance b, the others for b + batch
        group = group + batch if masked is None else torch.where(masked[valid], group, group + batch)
        wanted = targets[valid]
        losses = []
        for layer, states in enumerate(layers, 1):
            loss = unit_loss(self.heads.unit_logits(layer, states[valid]), wanted, group, 2 * batch)
            losses.append((UnitLoss(*(x[:batch] for x in loss)), UnitLoss(*(x[batch:] for x in loss))))
        return losses


def read_backbone(path: str) -> checkpoints.Model:
    """Read the model to put heads on; existing exit heads are dropped by the caller."""
    if not path:
        raise UsageError("daisy_hubert needs --hubert-path (model.hubert_path): the HuBERT to put heads on")
    if path.endswith(".safetensors") or path in {file.stem for file in ASSETS.glob("*.safetensors")}:
        return checkpoints.load(path)
    return convert(path, allow_pickle=True)  # fairseq itself unpickles what it loads


def check_sample_rate(path: str, model: checkpoints.Model, task: Any) -> None:
    """Check that a task's audio has the rate that a HuBERT was trained on.

    Raises:
        UsageError: where it has not.
    """
    rate = model.backbone.config.sample_rate
    if task.cfg.sample_rate != rate:
        raise UsageError(
            f"{path}: takes audio at {rate} Hz, and the task gives it at {task.cfg.sample_rate} Hz "
            f"(task.sample_rate={rate} with recordings of that rate)"
        )


def find_num_units(parts: checkpoints.Model, task: Any) -> int:
    """Find the width of the heads: that of the task's labels where it has any, else the teacher's.

    Raises:
        CheckpointError: where there is neither.
    """
    if task.dictionaries:
        return len(task.dictionaries[0])
    if parts.final_head is None:
        raise CheckpointError("this HuBERT has no prediction head of its own, and the task brings no labels")
    return parts.final_head.num_units
