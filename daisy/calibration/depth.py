"""Calibrate a policy on unlabelled audio to a mean depth; `daisy.calibration.guarantee` bounds its risk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy
import torch
from torch import Tensor

from daisy import policies
from daisy.calibration.families import PolicyFamily, fit_family
from daisy.calibration.traces import Traces
from daisy.errors import PolicyError
from daisy.policies import Policy

STEPS = 40
"""Steps of bisection."""


class Setting(NamedTuple):
    """A calibrated policy, and its exits."""

    policy: Policy
    exit_layers: Tensor
    """(B,) exits of the calibration utterances; see `daisy.calibration.families.PolicyFamily.exit_layers`."""


def calibrate_depth(
    name: str, traces: Traces, target: float, loss: str = "disagreement", **settings: object
) -> Setting:
    """Calibrate a policy to the mean depth on these utterances that is nearest to a target.

    Args:
        name: as in `fit_family`.
        traces: full runs on unlabelled audio.
        target: executed share of the cost of all layers, above 0 and at most 1.
        loss: see `fit_family`.
        settings: the policy's other settings.

    Returns:
        The policy, and the exits of the utterances that it was calibrated on.

    Raises:
        PolicyError: on a target out of range, or as in `fit_family`.

    Example:
        >>> import daisy
        >>> model = daisy.load("daisy-mini")
        >>> recordings = daisy.audio.find([str(daisy.checkpoints.format.ASSETS / "demo")])[:4]
        >>> waveforms = [daisy.audio.read(recording.path) for recording in recordings]
        >>> traces, _ = daisy.calibration.trace(model, waveforms, [recording.name for recording in recordings])
        >>> setting = daisy.calibration.calibrate_depth("entropy", traces, 0.5)
        >>> setting.policy.name, float(setting.exit_layers.double().mean()) < 12
        ('entropy', True)
    """
    check_depth(target)
    if name == "fixed":
        cut = policies.Fixed(layer=1 + int((traces.costs / traces.costs[-1] - target).abs().argmin()))
        return Setting(cut, torch.full((len(traces),), cut.layer))
    family = fit_family(name, traces, loss, **settings)
    quantile = find_quantile(family, traces, target)
    return Setting(family.at(quantile), family.exit_layers(quantile))


def check_depth(target: float) -> None:
    """Refuse a target that is not a depth.

    Args:
        target: executed share of the cost of all layers.

    Raises:
        PolicyError: where it is not above 0 and at most 1.
    """
    if not 0 < target <= 1:
        raise PolicyError(f"depth must be above 0 and at most 1, found {target:g}")


def find_quantile(family: PolicyFamily, traces: Traces, target: float) -> float:
    """Find the quantile whose mean depth is nearest to a target, halfway between those at which an exit changes.

    At either end a score would equal its threshold, and the last bits of other machines or batches would decide.
    """

    def reached(quantile: float) -> float:
        return mean_depth(family.exit_layers(quantile), traces)

    low, high = _edge(lambda quantile: reached(quantile) > target + 1e-9, 0.0, 1.0)
    quantile, away = min(((low, 0.0), (high, 1.0)), key=lambda side: abs(reached(side[0]) - target))
    same, _ = _edge(lambda other: reached(other) == reached(quantile), quantile, away)
    return (quantile + same) / 2


def _edge(holds: Callable[[float], bool], inside: float, outside: float) -> tuple[float, float]:
    """Find where a condition ceases to hold between two quantiles: the last one where it holds, the first where not."""
    for _ in range(STEPS):
        middle = (inside + outside) / 2
        if holds(middle):
            inside = middle
        else:
            outside = middle
    return inside, outside


def mean_depth(exit_layers: Tensor, traces: Traces) -> float:
    """Compute the mean executed share, 0 to 1, of the cost of all layers for (B,) exit layers; each run counts once."""
    return float((traces.costs[exit_layers - 1].double() / traces.costs[-1]).mean())


def fit_window(threshold: float, histogram: Sequence[float], kind: str = "avg") -> policies.Window:
    """Choose the layers to look at from a histogram of exits at this threshold, as DAISY's published code does.

    Args:
        threshold: threshold on the batch's entropy in nats.
        histogram: number of exits at each layer 1 to L, counted with every layer looked at.
        kind: "avg": from the floor of the mean exit to its ceiling; "min-max": all layers that were exits; "threshold":
            from the first to the last layer with at least a tenth of the exits.

    Raises:
        PolicyError: on another kind, or an empty histogram.
    """
    counts = numpy.asarray(histogram, dtype=float)
    if not counts.sum() > 0:
        raise PolicyError("policy daisy_window: the histogram of exits is empty")
    if kind == "avg":
        mean = float(counts @ numpy.arange(1, len(counts) + 1) / counts.sum())
        first, last = int(numpy.floor(mean)), int(numpy.ceil(mean))
    elif kind in ("min-max", "threshold"):
        among = numpy.flatnonzero(counts > 0 if kind == "min-max" else counts >= 0.1 * counts.sum())
        if not len(among):
            raise PolicyError("policy daisy_window: no layer has a tenth of the exits")
        first, last = int(among[0]) + 1, int(among[-1]) + 1
    else:
        raise PolicyError(f"policy daisy_window: kind must be avg, min-max or threshold, found {kind!r}")
    return policies.Window(threshold=threshold, first=first, last=last)
