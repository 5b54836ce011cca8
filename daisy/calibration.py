"""Unlabelled audio to a policy with a target."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from daisy import policies
from daisy.errors import PolicyError
from daisy.policies import Policy

STEPS = 50


def depth(policy: Policy, scores: Mapping[str, Tensor]) -> float:
    """Mean executed share of layers, 0 to 1, over the utterances of a full run's (B, L) scores."""
    num_layers = next(iter(scores.values())).shape[1]
    return float(policy.exit_layers(scores).double().mean()) / num_layers


def for_depth(name: str, scores: Mapping[str, Tensor], target: float, **settings: float | int) -> Policy:
    """The policy whose mean depth on these utterances is nearest to a target.

    Args:
        name: entropy, plateau or fixed.
        scores: (B, L) scores of a full run on unlabelled audio.
        target: executed share of layers, above 0 and at most 1.
        settings: the policy's other settings.

    Raises:
        PolicyError: on a target out of range, or a policy that has nothing to tune.
    """
    if not 0 < target <= 1:
        raise PolicyError(f"depth must be above 0 and at most 1, found {target}")
    if name == "fixed":
        num_layers = next(iter(scores.values())).shape[1]
        return policies.make(name, {"layer": max(1, round(target * num_layers))})
    if name not in KNOBS:
        raise PolicyError(f"policy {name} has no setting that moves its depth; tunable are fixed, {', '.join(KNOBS)}")
    knob, bounds = KNOBS[name]
    low, high = bounds(scores)

    def policy(value: float) -> Policy:
        return policies.make(name, {**settings, knob: value})

    for _ in range(STEPS):  # a larger value leaves earlier, for every knob in KNOBS
        middle = (low + high) / 2
        if depth(policy(middle), scores) > target:
            low = middle
        else:
            high = middle
    return min((policy(low), policy(high)), key=lambda p: abs(depth(p, scores) - target))


Bounds = Callable[[Mapping[str, Tensor]], tuple[float, float]]
KNOBS: dict[str, tuple[str, Bounds]] = {
    "entropy": ("threshold", lambda scores: (0.0, float(scores["entropy"].max()))),
    "plateau": ("min_improvement", lambda scores: (-10.0, 2.0)),
}
"""The setting that moves a policy's depth, and values between which it goes from every layer to as few as it can."""
