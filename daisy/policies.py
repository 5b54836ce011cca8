"""Scores so far to who leaves now: pure, vectorised over the batch, usable without a model.

A trajectory is (B, l): the score of layers 1 to l. A policy sees only layers that were executed; the last layer always
ends the run, whatever the policy says.

| policy    | leaves at                                           | reads   | settings |
|-----------|-----------------------------------------------------|---------|----------|
| `entropy` | the first layer whose predicted loss is low enough  | entropy | threshold |
| `plateau` | the first layer at which it stopped improving       | entropy | min_improvement, patience, min_layer |
| `fixed`   | a given layer                                       | nothing | layer |
| `never`   | the last layer                                      | nothing | |
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from daisy.errors import PolicyError, unknown_name


@dataclass(frozen=True, kw_only=True)
class Policy(ABC):
    """What all policies share; `reads` and `decide` are a policy's own."""

    name: ClassVar[str]
    reads: ClassVar[frozenset[str]] = frozenset()
    """Scores that `decide` needs."""

    def check(self, num_layers: int) -> None:  # noqa: B027  most policies fit any backbone
        """Refuse a backbone that this policy does not fit.

        Raises:
            PolicyError: saying why.
        """

    @abstractmethod
    def decide(self, trajectories: Mapping[str, Tensor], layer: int) -> Tensor:
        """Who leaves after ``layer`` (1 to L).

        Args:
            trajectories: the scores in `reads`, each (B, layer).
            layer: the layer just executed.

        Returns:
            (B,) bool, or a 0-dimensional bool that holds for the whole batch.
        """

    def exit_layers(self, scores: Mapping[str, Tensor]) -> Tensor:
        """Exit layers (B,) int64 from the (B, L) scores of a full run: what the encoder would have done."""
        batch, num_layers = next(iter(scores.values())).shape
        exits = torch.full((batch,), num_layers)
        for layer in range(num_layers - 1, 0, -1):
            leave = self.decide({name: scores[name][:, :layer] for name in self.reads}, layer).cpu()
            exits = torch.where(leave, layer, exits)
        return exits

    def to_config(self) -> dict:
        """Name and settings, for JSON; `from_config` is the inverse."""
        return {"name": self.name, **dataclasses.asdict(self)}


@dataclass(frozen=True, kw_only=True)
class Entropy(Policy):
    """Leaves at the first layer whose predicted loss is at or below a threshold (DAISY, arXiv:2406.05464)."""

    name: ClassVar[str] = "entropy"
    reads: ClassVar[frozenset[str]] = frozenset({"entropy"})

    threshold: float
    """Nats."""

    def __post_init__(self) -> None:
        _number(self, "threshold")
        _require(self.name, self.threshold >= 0, f"threshold must be at least 0 nats, found {self.threshold}")

    def decide(self, trajectories: Mapping[str, Tensor], layer: int) -> Tensor:
        return trajectories["entropy"][:, -1] <= self.threshold


@dataclass(frozen=True, kw_only=True)
class Plateau(Policy):
    """Leaves when the predicted loss has improved by less than a share of itself over the last layers.

    This form takes noise for a plateau: there the loss falls slowly from a high level, so that noisy audio leaves as
    early as clean audio or earlier.
    """

    name: ClassVar[str] = "plateau"
    reads: ClassVar[frozenset[str]] = frozenset({"entropy"})

    min_improvement: float
    """Relative: leaves when the loss fell by less than this share of what it was ``patience`` layers ago."""
    patience: int = 2
    """Layers over which the improvement is measured."""
    min_layer: int = 3
    """The first layer at which leaving is allowed."""

    def __post_init__(self) -> None:
        _number(self, "min_improvement")
        _whole(self, "patience", "min_layer")
        _require(self.name, self.patience >= 1, f"patience must be at least 1 layer, found {self.patience}")
        _require(self.name, self.min_layer >= 1, f"min_layer must be at least 1, found {self.min_layer}")

    def decide(self, trajectories: Mapping[str, Tensor], layer: int) -> Tensor:
        loss = trajectories["entropy"]
        if layer < max(self.min_layer, self.patience + 1):
            return torch.zeros(len(loss), dtype=torch.bool, device=loss.device)
        before, now = loss[:, layer - 1 - self.patience], loss[:, layer - 1]
        return before - now < self.min_improvement * before


@dataclass(frozen=True, kw_only=True)
class Fixed(Policy):
    """Leaves at a given layer: the static cut, to which every other policy must be compared."""

    name: ClassVar[str] = "fixed"

    layer: int

    def __post_init__(self) -> None:
        _whole(self, "layer")
        _require(self.name, self.layer >= 1, f"layer must be at least 1, found {self.layer}")

    def check(self, num_layers: int) -> None:
        _require(self.name, self.layer <= num_layers, f"layer must be at most {num_layers}, found {self.layer}")

    def decide(self, trajectories: Mapping[str, Tensor], layer: int) -> Tensor:
        return torch.tensor(layer >= self.layer)


@dataclass(frozen=True, kw_only=True)
class Never(Policy):
    """Runs every layer."""

    name: ClassVar[str] = "never"

    def decide(self, trajectories: Mapping[str, Tensor], layer: int) -> Tensor:
        return torch.tensor(False)


POLICIES: dict[str, type[Policy]] = {policy.name: policy for policy in (Entropy, Plateau, Fixed, Never)}


def make(name: str, settings: Mapping[str, float | int]) -> Policy:
    """A policy by name and settings.

    Raises:
        PolicyError: on an unknown name, an unknown, missing or impossible setting.
    """
    if name not in POLICIES:
        raise PolicyError(unknown_name("policy", name, POLICIES))
    fields = {field.name: field for field in dataclasses.fields(POLICIES[name])}
    for given in settings:
        if given not in fields:
            raise PolicyError(f"policy {name}: {unknown_name('setting', given, fields)}")
    missing = [f.name for f in fields.values() if f.default is dataclasses.MISSING and f.name not in settings]
    if missing:
        raise PolicyError(
            f"policy {name} needs {', '.join(missing)}, and the checkpoint brings no default: "
            f"give it (--set {missing[0]}=VALUE)"
        )
    return POLICIES[name](**settings)


def from_config(config: Mapping) -> Policy:
    """Inverse of `Policy.to_config`."""
    settings = dict(config)
    return make(settings.pop("name"), settings)


def _number(policy: Policy, *settings: str) -> None:
    for setting in settings:
        value = getattr(policy, setting)
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        _require(policy.name, is_number, f"{setting} must be a finite number, found {value!r}")


def _whole(policy: Policy, *settings: str) -> None:
    for setting in settings:
        value = getattr(policy, setting)
        is_whole = isinstance(value, int) and not isinstance(value, bool)
        _require(policy.name, is_whole, f"{setting} must be a whole number, found {value!r}")


def _require(name: str, holds: bool, message: str) -> None:
    if not holds:
        raise PolicyError(f"policy {name}: {message}")
