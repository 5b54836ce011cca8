"""A budget that combines with any rule, and baselines to compare rules with: chance, hindsight, the published code."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from daisy.policies.base import Policy, Trajectories
from daisy.policies.rules import Never


@dataclass(frozen=True, kw_only=True)
class Deadline(Policy):
    """Leaves at the deepest layer within a budget for each utterance; earlier if another rule says so.

    The budget may change from call to call: ``encoder.policy = dataclasses.replace(policy, budget=...)``.
    `daisy.calibration.cost` makes one from counted operations or measured times.
    """

    name: ClassVar[str] = "deadline"

    budget: float
    """Budget for an utterance, front end included; milliseconds or multiply-accumulates, like the costs."""
    front_cost: tuple[float, ...]
    """(c0, c1, c2): the front end costs c0 + c1 T + c2 T^2 for T frames."""
    layer_cost: tuple[float, ...]
    """The same for one layer with its head."""
    then: Policy = field(default_factory=Never)
    """The other rule."""
    layers: tuple[int, ...] = ()
    """Layers of the exits, if not every layer has one."""

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
    """Leaves at a layer drawn from a histogram, whatever the audio: a policy with any information must beat it.

    The draw depends only on the samples (`daisy.policies.scores.make_draws`): exits are the same in any batch.
    """

    name: ClassVar[str] = "random"
    scores: ClassVar[tuple[str, ...]] = ("draw",)
    layered: ClassVar[tuple[str, ...]] = ("histogram",)

    histogram: tuple[float, ...]
    """Relative frequency of each exit, 1 to E."""

    def validate(self) -> None:
        self._tuple("histogram")
        self._require(min(self.histogram) >= 0 < sum(self.histogram), "histogram must be frequencies, some above 0")

    def decide(self, trajectories: Trajectories, layer: int) -> Tensor:
        share = sum(self.histogram[:layer]) / sum(self.histogram)
        return trajectories["draw"][:, -1] < share


@dataclass(frozen=True, kw_only=True)
class Oracle(Policy):
    """Leaves at the first layer whose units agree enough with the full model's: for analysis, from a full run."""

    name: ClassVar[str] = "oracle"
    scores: ClassVar[tuple[str, ...]] = ("final_agreement",)
    knob: ClassVar[str] = "degree"
    leaves_below: ClassVar[bool] = False

    degree: float
    """Share of frames whose unit must be the full model's, 0 to 1."""

    def validate(self) -> None:
        self._numbers("degree")

    def decide(self, trajectories: Trajectories, layer: int) -> Tensor:
        return trajectories["final_agreement"][:, -1] >= self.degree


@dataclass(frozen=True, kw_only=True)
class Window(Policy):
    """Decides like DAISY's published code in deployment: one entropy for the batch, looked at in a few layers only.

    The batch leaves as a whole, at the first layer of a window whose entropy over all frames is low enough, or at the
    end of the window. `daisy.calibration.depth.fit_window` makes the window from a histogram.
    """

    name: ClassVar[str] = "daisy_window"
    scores: ClassVar[tuple[str, ...]] = ("entropy", "num_frames")
    exit_numbers: ClassVar[tuple[str, ...]] = ("first", "last")

    threshold: float
    """Threshold in nats."""
    first: int
    """The first layer that is looked at."""
    last: int
    """The layer at which the batch leaves at the latest."""

    def validate(self) -> None:
        self._numbers("threshold")
        self._whole("first", 1)
        self._whole("last", self.first)

    def decide(self, trajectories: Trajectories, layer: int) -> Tensor:
        if not self.first <= layer < self.last:
            return torch.tensor(layer >= self.last)
        frames = trajectories["num_frames"][:, -1]
        return (trajectories["entropy"][:, -1] * frames).sum() / frames.sum() <= self.threshold
