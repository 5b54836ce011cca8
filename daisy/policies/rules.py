"""Rules that read scores of the layer just executed, or of all layers so far."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from daisy.errors import PolicyError
from daisy.policies.base import PerLayer, Policy, Trajectories, at


@dataclass(frozen=True, kw_only=True)
class Threshold(Policy):
    """Leaves at the first layer whose score is at or below a threshold, or at or above it."""

    knob: ClassVar[str] = "threshold"
    layered: ClassVar[tuple[str, ...]] = ("threshold",)

    threshold: PerLayer

    def validate(self) -> None:
        self._numbers("threshold")

    def decide(self, trajectories: Trajectories, layer: int) -> Tensor:
        now, threshold = trajectories[self.scores[0]][:, -1], at(self.threshold, layer)
        return now <= threshold if self.leaves_below else now >= threshold


@dataclass(frozen=True, kw_only=True)
class Entropy(Threshold):
    """Leaves at the first layer whose predicted loss (nats) is low enough (DAISY, arXiv:2406.05464).

    Example:
        >>> import torch
        >>> from daisy.policies import Entropy
        >>> Entropy(threshold=1.0).decide({"entropy": torch.tensor([[3.0, 0.9], [3.0, 2.0]])}, layer=2)
        tensor([ True, False])
    """

    name: ClassVar[str] = "entropy"
    scores: ClassVar[tuple[str, ...]] = ("entropy",)

    def validate(self) -> None:
        super().validate()
        values = self.threshold if isinstance(self.threshold, tuple) else (self.threshold,)
        self._require(min(values) >= 0, f"threshold must be at least 0 nats, found {min(values)}")


@dataclass(frozen=True, kw_only=True)
class Regressed(Threshold):
    """`Entropy` with the loss regressor's estimate: 2 D products an utterance, not D x K a frame as for the entropy."""

    name: ClassVar[str] = "regressed"
    scores: ClassVar[tuple[str, ...]] = ("regressed",)


@dataclass(frozen=True, kw_only=True)
class Confidence(Threshold):
    """Leaves at the first layer whose mean maximum probability is high enough (HuBERT-EE, arXiv:2204.06328)."""

    name: ClassVar[str] = "confidence"
    scores: ClassVar[tuple[str, ...]] = ("confidence",)
    leaves_below: ClassVar[bool] = False


@dataclass(frozen=True, kw_only=True)
class Margin(Threshold):
    """Leaves at the first layer where the probabilities of the two likeliest units differ enough, on average."""

    name: ClassVar[str] = "margin"
    scores: ClassVar[tuple[str, ...]] = ("margin",)
    leaves_below: ClassVar[bool] = False


@dataclass(frozen=True, kw_only=True)
class SentenceConfidence(Threshold):
    """Leaves at the first exit whose best path is likely enough, in nats per frame: 0 is certain."""

    name: ClassVar[str] = "sentence_confidence"
    scores: ClassVar[tuple[str, ...]] = ("sentence_confidence",)
    leaves_below: ClassVar[bool] = False


@dataclass(frozen=True, kw_only=True)
class Posterior(Threshold):
    """Leaves at the first exit whose best text has a large enough share of the N best (arXiv:2309.09546)."""

    name: ClassVar[str] = "posterior"
    scores: ClassVar[tuple[str, ...]] = ("posterior",)
    leaves_below: ClassVar[bool] = False


@dataclass(frozen=True, kw_only=True)
class Score(Policy):
    """Leaves at the first layer where some score is low enough, or high enough: for traces of other models."""

    name: ClassVar[str] = "score"
    layered: ClassVar[tuple[str, ...]] = ("threshold",)

    column: str
    """Name of the score."""
    threshold: PerLayer
    below: bool = True
    """Whether utterances leave at low scores, or (False) at high ones."""

    @property
    def reads(self) -> frozenset[str]:
        return frozenset({self.column})

    def validate(self) -> None:
        self._require(isinstance(self.column, str), f"column must be a score's name, found {self.column!r}")
        self._require(isinstance(self.below, bool), f"below must be true or false, found {self.below!r}")
        self._numbers("threshold")

    def decide(self, trajectories: Trajectories, layer: int) -> Tensor:
        now, threshold = trajectories[self.column][:, -1], at(self.threshold, layer)
        return now <= threshold if self.below else now >= threshold


@dataclass(frozen=True, kw_only=True)
class Agreement(Threshold):
    """Leaves at or below the largest entropy, per layer, whose utterances agree with the full model at a set rate.

    This is Valade's rule for language models (arXiv:2407.21082), set on calibration audio. 0: no exit there.
    """

    name: ClassVar[str] = "agreement"
    scores: ClassVar[tuple[str, ...]] = ("entropy",)
    knob: ClassVar[str] = ""  # its thresholds are learnt together


@dataclass(frozen=True, kw_only=True)
class Patience(Policy):
    """Leaves when the units have stayed the same over some layers, except for a share of the frames."""

    name: ClassVar[str] = "patience"
    scores: ClassVar[tuple[str, ...]] = ("change",)
    knob: ClassVar[str] = "tolerance"
    layered: ClassVar[tuple[str, ...]] = ("tolerance",)

    tolerance: PerLayer
    """Share of frames whose unit may differ from that of the layer before."""
    patience: int = 1
    """Number of consecutive layers for which that must hold."""

    def validate(self) -> None:
        self._numbers("tolerance")
        self._whole("patience", 1)

    def decide(self, trajectories: Trajectories, layer: int) -> Tensor:
        change = trajectories[self.scores[0]]
        if layer <= self.patience:  # the first layer has none before it to compare with
            return change.new_zeros(len(change), dtype=torch.bool)
        allowed = change.new_tensor(
            [at(self.tolerance, at_layer + 1) for at_layer in range(layer - self.patience, layer)]
        )
        return (change[:, layer - self.patience :] <= allowed).all(1)


@dataclass(frozen=True, kw_only=True)
class TextPatience(Patience):
    """Leaves when the text has stayed the same over some exits, except for a share of it.

    Two empty texts do not count as equal (`daisy.policies.scores.text_change`).
    """

    name: ClassVar[str] = "text_patience"
    scores: ClassVar[tuple[str, ...]] = ("text_change",)


@dataclass(frozen=True, kw_only=True)
class LookAhead(Policy):
    """Leaves when no later layer is predicted to gain its price.

    After each layer a linear forecast from all scores so far predicts how much lower the loss is at each later one.
    If the best of these gains, each minus the price of its layers, is not above 0, running on does not pay.
    `daisy.calibration.forecast` learns the weights from full runs, without labels.
    """

    scores: ClassVar[tuple[str, ...]] = ("entropy",)  # of some heads; `reads` has the scores that were learnt from

    price: float
    """Least gain per further layer in the predicted loss, a share of frames or nats; the higher, the earlier exits."""
    features: tuple[str, ...]
    """Scores that the forecast reads."""
    weights: tuple[tuple[tuple[float, ...], ...], ...] = field(repr=False)
    """For layers l = 1 to L - 1, for each later layer, l weights of each feature in turn. 0: not read."""
    intercepts: tuple[tuple[float, ...], ...] = field(repr=False)
    """For layers l = 1 to L - 1, one for each later layer."""

    @property
    def reads(self) -> frozenset[str]:
        return frozenset(self.features)

    def validate(self) -> None:
        self._numbers("price")
        named = isinstance(self.features, tuple) and all(isinstance(name, str) for name in self.features)
        self._require(named and bool(self.features), f"features must be names of scores, found {self.features!r}")
        try:
            matrices = [torch.tensor(rows, dtype=torch.float32) for rows in self.weights]
            offsets = [torch.tensor(row, dtype=torch.float32) for row in self.intercepts]
        except (TypeError, ValueError):
            raise PolicyError(f"policy {self.name}: weights and intercepts must be numbers") from None
        self._require(len(matrices) == len(offsets) > 0, "weights and intercepts differ in layers")
        for layer, (matrix, offset) in enumerate(zip(matrices, offsets, strict=True), 1):
            later = len(matrices) + 1 - layer
            fits = matrix.shape == (later, layer * len(self.features)) and offset.shape == (later,)
            self._require(fits, f"the weights of layer {layer} are {tuple(matrix.shape)}, {tuple(offset.shape)}")
            finite = bool(matrix.isfinite().all() and offset.isfinite().all())
            self._require(finite, f"the weights of layer {layer} are not all finite")
        object.__setattr__(self, "_matrices", matrices)
        object.__setattr__(self, "_offsets", offsets)
        object.__setattr__(self, "_used", [(matrix != 0).any(0) for matrix in matrices])
        object.__setattr__(self, "_prices", [self.price * torch.arange(1, len(offset) + 1) for offset in offsets])

    def check(self, num_layers: int) -> None:
        layers = len(self.weights) + 1
        self._require(layers == num_layers, f"was learnt on a model of {layers} layers, this one has {num_layers}")

    def gains(self, trajectories: Trajectories, layer: int) -> Tensor:
        """Predict how much lower the loss is at each later layer than at ``layer``: (B, L - layer)."""
        matrix, offset = self._matrices[layer - 1], self._offsets[layer - 1]  # type: ignore[attr-defined]
        seen = torch.cat([trajectories[name][:, :layer] for name in self.features], dim=1).float().cpu()
        gains: Tensor = torch.where(self._used[layer - 1], seen, 0.0) @ matrix.T + offset  # type: ignore[attr-defined]
        return gains

    def decide(self, trajectories: Trajectories, layer: int) -> Tensor:
        prices: Tensor = self._prices[layer - 1]  # type: ignore[attr-defined]
        return (self.gains(trajectories, layer) - prices).amax(1) <= 0


@dataclass(frozen=True, kw_only=True)
class Forecast(LookAhead):
    """`LookAhead` for the share of frames whose unit is not yet the full model's, from several scores."""

    name: ClassVar[str] = "forecast"


@dataclass(frozen=True, kw_only=True)
class Plateau(LookAhead):
    """Leaves when the predicted loss has stopped improving: DAISY's second rule, as a forecast.

    The forecast reads the predicted loss at the layers so far. The naive form (less than a share of the loss was gained
    over the last layers) takes noise for a plateau, because there the loss falls slowly from a high level: noisy audio
    leaves as early as clean audio or earlier, and in models whose layers gain unequally it stops before the important
    ones. On networks trained with exits, this form does not go deeper under every kind of noise either.
    `benchmarks.policies.policies` compares them.
    """

    name: ClassVar[str] = "plateau"


@dataclass(frozen=True, kw_only=True)
class RegressedPlateau(LookAhead):
    """`Plateau` with the loss regressor's estimate."""

    name: ClassVar[str] = "regressed_plateau"


@dataclass(frozen=True, kw_only=True)
class Fixed(Policy):
    """Leaves at a given layer: the static cut, with which every other policy must be compared."""

    name: ClassVar[str] = "fixed"
    exit_numbers: ClassVar[tuple[str, ...]] = ("layer",)

    layer: int
    """Exit, 1 to E: the layer itself if every layer has one."""

    def validate(self) -> None:
        self._whole("layer", 1)

    def check(self, num_layers: int) -> None:
        self._require(self.layer <= num_layers, f"layer must be at most {num_layers}, found {self.layer}")

    def decide(self, trajectories: Trajectories, layer: int) -> Tensor:
        return torch.tensor(layer >= self.layer)


@dataclass(frozen=True, kw_only=True)
class Never(Policy):
    """Runs every layer."""

    name: ClassVar[str] = "never"

    def decide(self, trajectories: Trajectories, layer: int) -> Tensor:
        return torch.tensor(False)
