"""A budget that combines with any rule, and what rules are compared with: chance, hindsight, the published code."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from daisy.policies.base import Policy, Trajectories
from daisy.policies.rules import Never


@dataclass(frozen=True, kw_only=True)
class Deadline(Policy):
    """Leaves at the deepest layer that still fits a budget for each utterance; earlier where another rule says so.

    The budget may change from call to call: ``encoder.policy = dataclasses.replace(policy, budget=...)``.
    `daisy.calibration.cost` makes one from counted operations or measured times.
    """

    name: ClassVar[str] = "deadline"

    budget: float
    """For an utterance, front end included; milliseconds or multiply-accumulates, as the costs are."""
    front_cost: tuple[float, ...]
    """(c0, c1, c2): the front end costs c0 + c1 T + c2 T^2 for T frames."""
    layer_cost: tuple[float, ...]
    """The same of one layer with its head."""
    then: Policy = field(default_factory=Never)
    """The other rule."""
    layers: tuple[int, ...] = ()
    """Of the exits, where these are not at all layers."""

    def validate(self) -> None:
        self._numbers("budget")
        self._require(self.budget > 0, f"budget must be above 0, found {self.budget:g}")
        self._tuple("front_cost")
        self._tuple("layer_cost")
        self._require(len(self.front_cost) == len(self.layer_cost) == 3, "costs are c0, c1, c2")
        self._require(isinstance(self.then, Policy), f"then must be a policy, found {self.then!r}")
        self._require(isinstance(self.layers, tuple), f"layers must be a list of numbers, found {self.layers!r}")
        rising = list(self.layers) == sorted(set(self.layers)) and all(isinstance(n, int) for n in self.layers)
        self._require(rising, f"layers must be rising whole numbers, found {self.layers!r}")
        self._require(not isinstance(self.then, Window), "daisy_window lets batches leave, and a deadline utterances")

    @property
    def reads(self) -> frozenset[str]:
        return self.then.reads | {"num_frames"}

    def check(self, num_layers: int) -> None:
        if self.layers:
            self._require(len(self.layers) == num_layers, f"is for {len(self.layers)} exits, not for {num_layers}")
        self.then.check(num_layers)

    def decide(self, trajectories: Trajectories, layer: int) -> Tensor:
        frames = trajectories["num_frames"][:, -1].double()
        powers = torch.stack([torch.ones_like(frames), frames, frames.square()], dim=1)
        next_layer = self.layers[layer] if self.layers else layer + 1
        next_one = powers @ powers.new_tensor(self.front_cost) + next_layer * (
            powers @ powers.new_tensor(self.layer_cost)
        )
        return (next_one > self.budget) | self.then.decide(trajectories, layer).to(frames.device)


@dataclass(frozen=True, kw_only=True)
class Random(Policy):
    """An exit layer drawn from a histogram, whatever the audio: what a policy must beat to have any information.

    The draw depends on the samples alone (`daisy.policies.scores.make_draws`): exits stay the same in any batch.
    """

    name: ClassVar[str] = "random"
    scores: ClassVar[tuple[str, ...]] = ("draw",)
    layered: ClassVar[tuple[str, ...]] = ("histogram",)

    histogram: tuple[float, ...]
    """Relative frequency of each exit layer, 1 to L."""

    def validate(self) -> None:
        self._tuple("histogram")
        self._require(min(self.histogram) >= 0 < sum(self.histogram), "histogram must be frequencies, some above 0")

    def decide(self, trajectories: Trajectories, layer: int) -> Tensor:
        share = sum(self.histogram[:layer]) / sum(self.histogram)
        return trajectories["draw"][:, -1] < share


@dataclass(frozen=True, kw_only=True)
class Oracle(Policy):
    """The first layer whose units agree with the last layer's to a given degree: for analysis, from a full run."""

    name: ClassVar[str] = "oracle"
    scores: ClassVar[tuple[str, ...]] = ("final_agreement",)
    knob: ClassVar[str] = "degree"
    leaves_below: ClassVar[bool] = False

    degree: float
    """Share of frames whose unit must be the last layer's, 0 to 1."""

    def validate(self) -> None:
        self._numbers("degree")

    def decide(self, trajectories: Trajectories, layer: int) -> Tensor:
        return trajectories["final_agreement"][:, -1] >= self.degree


@dataclass(frozen=True, kw_only=True)
class Window(Policy):
    """What DAISY's published code does when it is deployed: one entropy for the batch, looked at in a few layers only.

    The batch leaves together, at the first layer of a window whose entropy over all its frames is low enough, at the
    latest at the window's end. `daisy.calibration.depth.fit_window` makes the window from a histogram.
    """

    name: ClassVar[str] = "daisy_window"
    scores: ClassVar[tuple[str, ...]] = ("entropy", "num_frames")
    exit_numbers: ClassVar[tuple[str, ...]] = ("first", "last")

    threshold: float
    """Nats."""
    first: int
    """The first layer that is looked at."""
    last: int
    """The layer at which whoever is left leaves."""

    def validate(self) -> None:
        self._numbers("threshold")
        self._whole("first", 1)
        self._whole("last", self.first)

    def decide(self, trajectories: Trajectories, layer: int) -> Tensor:
        if not self.first <= layer < self.last:
            return torch.tensor(layer >= self.last)
        frames = trajectories["num_frames"][:, -1]
        return (trajectories["entropy"][:, -1] * frames).sum() / frames.sum() <= self.threshold
