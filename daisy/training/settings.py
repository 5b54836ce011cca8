"""The settings for training exit heads."""

from __future__ import annotations

import math
from dataclasses import dataclass

from daisy.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class HeadTraining:
    """Settings, with the defaults of the plugin's ``daisy_mini.yaml``; fairseq's name for each in brackets."""

    max_update: int = 800
    """Number of updates [optimization.max_update, lr_scheduler.total_num_update]."""
    lr: float = 0.002
    """Highest learning rate [optimization.lr]."""
    warmup_updates: int = 40
    """Updates over which the rate rises from 0 [lr_scheduler.warmup_updates]; it falls to 0 over the rest."""
    betas: tuple[float, float] = (0.9, 0.98)
    """Betas of Adam [optimizer.adam_betas]."""
    eps: float = 1e-6
    """Epsilon of Adam, added to the root of the uncorrected second moment, as fairseq does [optimizer.adam_eps]."""
    weight_decay: float = 0.0
    """Weight decay of Adam, decoupled from the gradient [optimizer.weight_decay]."""
    clip_norm: float = 0.0
    """Gradient norm above which gradients are scaled down; 0: never [optimization.clip_norm]."""
    max_tokens: int = 1_024_000
    """Samples per batch and process, padding included [dataset.max_tokens]."""
    max_sample_size: int = 250_000
    """Longer recordings are randomly cropped to this many samples [task.max_sample_size]."""
    min_sample_size: int = 4000
    """Recordings with fewer samples are left out [task.min_sample_size]."""
    seed: int = 1
    """Seed of the heads' initial weights, batches, crops, noise and masks [common.seed]."""
    noise_prob: float = 0.5
    """Share of utterances that get noise, where noise is given [criterion.noise_prob]."""
    noise_snr_db: tuple[float, float] = (-5.0, 20.0)
    """Lowest and highest signal-to-noise ratio in dB [criterion.noise_snr_db]."""
    mask_prob: float = 0.0
    """Share of frames that start a masked span, times its length; 0: none is masked [model.mask_prob]."""
    mask_length: int = 10
    """Frames per span [model.mask_length]."""
    pred_masked_weight: float = 1.0
    """Weight of the losses on masked frames [criterion.pred_masked_weight]."""
    pred_nomask_weight: float = 1.0
    """Weight of the losses on the other frames [criterion.pred_nomask_weight]."""
    regressors: bool = True
    """Train loss regressors beside the classifiers [model.no_regressors]."""
    label_rate: float = 50.0
    """Labels per second, where there are label files [task.label_rate]."""

    def __post_init__(self) -> None:
        least = dict.fromkeys(("max_update", "max_tokens", "max_sample_size", "min_sample_size", "mask_length"), 1)
        for name, limit in {**least, "seed": 0}.items():
            if getattr(self, name) < limit:
                raise UsageError(f"{name} must be at least {limit}, found {getattr(self, name)}")
        if not self.clip_norm >= 0:
            raise UsageError(f"clip_norm must be at least 0, found {self.clip_norm:g}")
        for name in ("lr", "label_rate"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise UsageError(f"{name} must be a number above 0, found {value:g}")
        if not 0 <= self.warmup_updates < self.max_update:
            raise UsageError(f"warmup_updates must be 0 to {self.max_update - 1}, found {self.warmup_updates}")
        if not (0 <= self.noise_prob <= 1 and 0 <= self.mask_prob < 1):
            raise UsageError(f"noise_prob and mask_prob are shares, found {self.noise_prob:g} and {self.mask_prob:g}")
        if self.noise_snr_db[0] > self.noise_snr_db[1]:
            raise UsageError(f"noise_snr_db must be the lowest and the highest, found {self.noise_snr_db}")
        if self.pred_nomask_weight <= 0 and not self.mask_prob:
            raise UsageError("no frame counts: pred_nomask_weight is 0 and none is masked")

    def learning_rate(self, num_updates: int) -> float:
        """Compute the learning rate after some updates, by fairseq's polynomial_decay with power 1, to 0.

        Source: fairseq 0.12.2, fairseq/optim/lr_scheduler/polynomial_decay_schedule.py: the first update's rate is 0.
        """
        if self.warmup_updates and num_updates <= self.warmup_updates:
            return self.lr * num_updates / self.warmup_updates
        if num_updates >= self.max_update:
            return 0.0
        return self.lr * (1 - (num_updates - self.warmup_updates) / (self.max_update - self.warmup_updates))
