"""Variants of the plateau policy that were tried and do not ship; policies.py compares them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from daisy.calibration.families import PolicyFamily
from daisy.calibration.traces import Traces
from daisy.policies.base import Policy, Trajectories


@dataclass(frozen=True, kw_only=True)
class NaivePlateau(Policy):
    """Exits when the entropy fell by less than a given share of itself over the last layers."""

    name: ClassVar[str] = "plateau, naive"
    scores: ClassVar[tuple[str, ...]] = ("entropy",)
    min_improvement: float
    patience: int = 2

    def decide(self, trajectories: Trajectories, layer: int) -> Tensor:
        loss = trajectories["entropy"]
        if layer <= self.patience:
            return torch.zeros(len(loss), dtype=torch.bool)
        before = loss[:, -1 - self.patience]
        return before - loss[:, -1] < self.min_improvement * before


@dataclass(frozen=True, kw_only=True)
class TypicalPlateau(Policy):
    """Exits when the entropy fell by a given number of deviations less than is usual at this layer."""

    name: ClassVar[str] = "plateau, against what is usual"
    scores: ClassVar[tuple[str, ...]] = ("entropy",)
    deviations: float
    means: tuple[float, ...]
    spreads: tuple[float, ...]

    def decide(self, trajectories: Trajectories, layer: int) -> Tensor:
        loss = trajectories["entropy"]
        if layer < 2:
            return torch.zeros(len(loss), dtype=torch.bool)
        fall = loss[:, -2] - loss[:, -1]
        return (fall - self.means[layer - 1]) / self.spreads[layer - 1] < self.deviations


@dataclass(frozen=True, kw_only=True)
class LevelPlateau(NaivePlateau):
    """The naive form, with the condition that the entropy is also low."""

    name: ClassVar[str] = "plateau and level"
    level: float

    def decide(self, trajectories: Trajectories, layer: int) -> Tensor:
        return super().decide(trajectories, layer) & (trajectories["entropy"][:, -1] < self.level)


def fit_plateau_forms(tune: Traces) -> dict[str, PolicyFamily]:
    """Fit the variants on full runs: one family each, from the safest (0) to the cheapest (1)."""
    entropy = tune.scores["entropy"]
    falls = torch.cat([torch.zeros(len(tune), 1), entropy[:, :-1] - entropy[:, 1:]], dim=1)
    means, spreads = tuple(falls.mean(0).tolist()), tuple((falls.std(0) + 1e-6).tolist())
    low, high = float(entropy.min()), float(entropy.max())

    def make_family(at: Callable[[float], Policy]) -> PolicyFamily:
        return PolicyFamily(at, lambda quantile: at(quantile).exit_layers(tune.scores))

    return {
        "plateau, naive": make_family(lambda x: NaivePlateau(min_improvement=2 * x - 1)),
        "plateau, against what is usual": make_family(
            lambda x: TypicalPlateau(deviations=12 * x - 6, means=means, spreads=spreads)
        ),
        "plateau and level": make_family(
            lambda x: LevelPlateau(min_improvement=0.1, level=low + x * (high - low) + 1e-6)
        ),
    }
