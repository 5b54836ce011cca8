"""Classify frames as units, with the exit layer's unit classifier or the nearest k-means centre."""

from __future__ import annotations

import hashlib
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from daisy.errors import CheckpointError, UsageError
from daisy.models import ExitHeads
from daisy.models.heads import SPECIAL_SYMBOLS


class UnitClassifier(Protocol):
    """Finds units from the output of a layer."""

    @property
    def num_units(self) -> int:
        """Number of units, K."""

    @property
    def source(self) -> str:
        """Identifies what determines the units; it must be the same for a run to continue."""

    def classify(self, layer: int, frames: Tensor) -> Tensor:
        """Find the units (F,) int64 of a layer's frames (F, D), on their device."""


class HeadUnits:
    """Units that exit heads predict: the full model's, from any layer.

    fairseq's dictionaries have special symbols before the units, which no frame has: units are counted without them, as
    in the .km files that the model was trained on.

    Args:
        heads: exit heads with a unit classifier for each layer.

    Raises:
        CheckpointError: where they have no classes besides special symbols.
    """

    source = "heads"

    def __init__(self, heads: ExitHeads):
        if heads.config.num_units <= SPECIAL_SYMBOLS:
            raise CheckpointError(
                f"these exit heads have {heads.config.num_units} classes: fairseq's {SPECIAL_SYMBOLS} special symbols "
                "come first, so no units are left"
            )
        self.heads, self.num_units = heads, heads.config.num_units - SPECIAL_SYMBOLS

    @torch.no_grad()
    def classify(self, layer: int, frames: Tensor) -> Tensor:
        """See `UnitClassifier`."""
        classifier = self.heads.units[layer - 1]
        weight, bias = (part[SPECIAL_SYMBOLS:].to(frames.device) for part in (classifier.weight, classifier.bias))
        return F.linear(frames.to(weight.dtype), weight, bias).argmax(-1)


class KmeansUnits:
    """Units that are the nearest centre of a k-means.

    Distances are compared in the form of a linear classifier, so that the device multiplies once. The centres' mean is
    subtracted first: large dimensions that all frames share would cost precision.

    Args:
        centres: (K, D) centres.

    Raises:
        UsageError: where they are not a matrix of finite floats.
    """

    def __init__(self, centres: Tensor):
        if centres.ndim != 2 or not centres.is_floating_point() or not len(centres):
            raise UsageError(f"k-means centres are (units, width) floats, found {tuple(centres.shape)} {centres.dtype}")
        if not centres.isfinite().all():
            raise UsageError("k-means centres must be numbers, found NaN or infinity")
        self.num_units, self.width = centres.shape
        self.source = "kmeans:" + hashlib.sha256(centres.detach().cpu().float().numpy().tobytes()).hexdigest()
        mean = centres.detach().double().mean(0).float()
        away = centres.detach().double() - mean.double()
        # The nearest centre to x has the largest (x - m)·(c - m) - |c - m|^2 / 2.
        self._mean, self._weight, self._bias = mean, away.float(), (-away.square().sum(1) / 2).float()

    def classify(self, layer: int, frames: Tensor) -> Tensor:
        """See `UnitClassifier`."""
        if self._weight.device != frames.device:
            self._mean, self._weight, self._bias = (
                tensor.to(frames.device) for tensor in (self._mean, self._weight, self._bias)
            )
        return F.linear(frames.float() - self._mean, self._weight, self._bias).argmax(-1)


def to_text(units: Tensor) -> str:
    """Write (T,) units, separated by spaces."""
    return " ".join(map(str, units.tolist()))
