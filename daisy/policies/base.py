"""Base class of all policies."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from daisy.errors import PolicyError

Trajectories = Mapping[str, Tensor]
PerLayer = float | tuple[float, ...]
"""One number, or one for each exit."""


@dataclass(frozen=True, kw_only=True)
class Policy(ABC):
    """Base class of all policies; each policy has its own `decide`."""

    name: ClassVar[str]
    scores: ClassVar[tuple[str, ...]] = ()
    knob: ClassVar[str] = ""
    """Setting that calibration tunes, if it is a threshold on the one score; else empty."""
    leaves_below: ClassVar[bool] = True
    """Whether utterances leave at or below that threshold, or (False) at or above it."""
    layered: ClassVar[tuple[str, ...]] = ()
    """Settings that may be one number for each exit."""
    exit_numbers: ClassVar[tuple[str, ...]] = ()
    """Settings that are the number of an exit, 1 to E."""

    @property
    def reads(self) -> frozenset[str]:
        """Scores that `decide` needs."""
        return frozenset(self.scores)

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            object.__setattr__(self, field.name, _frozen(getattr(self, field.name)))
        self.validate()

    def validate(self) -> None:  # noqa: B027  a policy without settings has nothing to refuse
        """Refuse impossible settings.

        Raises:
            PolicyError: where a setting is impossible; names it.
        """

    def check(self, num_layers: int) -> None:
        """Refuse a number of exits that this policy does not fit; that of layers if every layer has an exit.

        Raises:
            PolicyError: where it does not fit; gives the reason.
        """
        for setting in self.layered:
            value = getattr(self, setting)
            if isinstance(value, tuple):
                self._require(len(value) == num_layers, f"{setting} is for {len(value)} layers, not for {num_layers}")

    @abstractmethod
    def decide(self, trajectories: Trajectories, layer: int) -> Tensor:
        """Decide which utterances leave at exit ``layer``.

        Args:
            trajectories: the scores in `reads`, each (B, layer).
            layer: exit, 1 to E; if every layer has one, the layer just executed.

        Returns:
            (B,) bool, or a 0-dimensional bool that holds for the whole batch.
        """

    def exit_layers(self, scores: Trajectories) -> Tensor:
        """Decide from the scores of full runs at which exits the utterances would have left.

        Args:
            scores: the scores in `reads`, (B, E) each; if it reads none, any score, whose shape gives B and E.

        Returns:
            (B,) int64 exits, 1 to E; if every layer has one, the exit layers.

        Raises:
            PolicyError: where there are no scores, or the policy does not fit this number of exits.

        Example:
            >>> import torch
            >>> from daisy.policies import Entropy
            >>> Entropy(threshold=1.0).exit_layers({"entropy": torch.tensor([[3.0, 0.9, 0.5], [3.0, 2.0, 1.5]])})
            tensor([2, 3])
        """
        self._require(bool(scores), "of how many runs is unknown: give at least one score, whichever it is")
        batch, num_layers = next(iter(scores.values())).shape
        self.check(num_layers)
        exits = torch.full((batch,), num_layers)
        for layer in range(num_layers - 1, 0, -1):
            leave = self.decide({name: scores[name][:, :layer] for name in self.reads}, layer).cpu()
            exits = torch.where(leave, layer, exits)
        return exits

    def to_config(self) -> dict[str, Any]:
        """Return name and settings for JSON; `from_config` is the inverse."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {"name": self.name} | {
            name: value.to_config() if isinstance(value, Policy) else value for name, value in values.items()
        }

    def _tuple(self, setting: str) -> None:
        value = getattr(self, setting)
        self._require(isinstance(value, tuple), f"{setting} must be a list of numbers, found {value!r}")
        self._numbers(setting)

    def _require(self, holds: bool, message: str) -> None:
        if not holds:
            raise PolicyError(f"policy {self.name}: {message}")

    def _numbers(self, *settings: str) -> None:
        for setting in settings:
            value = getattr(self, setting)
            values = value if isinstance(value, tuple) else (value,)
            self._require(
                bool(values) and all(_is_number(v) for v in values),
                f"{setting} must be a finite number, found {value!r}",
            )

    def _whole(self, setting: str, least: int) -> None:
        value = getattr(self, setting)
        is_whole = isinstance(value, int) and not isinstance(value, bool)
        self._require(is_whole, f"{setting} must be a whole number, found {value!r}")
        self._require(value >= least, f"{setting} must be at least {least}, found {value}")


def at(setting: PerLayer, layer: int) -> float:
    """Return a setting's value at exit ``layer`` (1 to E)."""
    return setting[layer - 1] if isinstance(setting, tuple) else setting


def count_exit(policy: str, setting: str, layer: Any, exits: Sequence[int]) -> int:
    """Return the number, 1 to E, of the exit at a layer.

    Args:
        policy: name of the policy, for the error.
        setting: name of the setting with the layer, for the error.
        layer: layer of the network.
        exits: layers of the exits, rising.

    Raises:
        PolicyError: where no exit is at this layer.
    """
    if layer not in exits:
        raise PolicyError(f"policy {policy}: no exit at {setting} {layer}; exits are at {', '.join(map(str, exits))}")
    return list(exits).index(layer) + 1


def _frozen(value: object) -> object:
    """Turn JSON's lists into tuples, so that policies can be compared and cannot change."""
    return tuple(_frozen(item) for item in value) if isinstance(value, list | tuple) else value


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
