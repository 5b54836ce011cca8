"""Unlabelled audio to a policy with a mean depth; `daisy.calibration.guarantee` bounds its risk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy
import torch
from torch import Tensor

from daisy import policies
from daisy.calibration import forecast
from daisy.calibration.traces import Traces
from daisy.errors import PolicyError
from daisy.policies import Policy
from daisy.policies.rules import LookAhead

STEPS = 40
NEVER_EXIT = 1e6
"""Beyond any score or price: with such a setting nobody leaves early."""
EXIT_DIRECTION = {"entropy": 1, "regressed": 1, "confidence": -1, "margin": -1, "patience": 1, "oracle": -1}
"""Policies with a threshold on one score; 1: they leave at or below it."""
LOOK_AHEAD = {
    "forecast": ("disagreement", ("entropy", "confidence", "margin", "change")),
    "plateau": ("entropy", ("entropy",)),
    "regressed_plateau": ("regressed", ("regressed",)),
}
"""Look-ahead policies: the score or loss that is predicted, and what from."""
FAMILIES = (*EXIT_DIRECTION, *LOOK_AHEAD, "agreement", "fixed")
CALIBRATED_FAMILIES = tuple(name for name in FAMILIES if name != "oracle")
"""Those that can decide for new recordings; the oracle is told what only a full run knows."""
FULL_MODEL_FAMILIES = ("forecast", "agreement")
"""Those that learn from the full model's units: the checkpoint must hold HuBERT's own prediction head."""


class PolicyFamily(NamedTuple):
    """All policies of one kind, from the safest (0, runs everything) to the cheapest (1)."""

    at: Callable[[float], Policy]
    """The policy at a quantile from 0 to 1."""
    exit_layers: Callable[[float], Tensor]
    """(B,) exits of the utterances that it was learnt from, as if it had not seen them (cross-fitting)."""


def fit_family(name: str, traces: Traces, loss: str = "disagreement", **settings: object) -> PolicyFamily:
    """Learn a policy's family from full runs.

    Quantiles are shares: about so many of the utterances and layers would let leave.

    Args:
        name: of `FAMILIES`, or one of the traces' scores, for a threshold on it.
        traces: full runs on unlabelled audio.
        loss: what ``forecast`` predicts and ``agreement`` holds, one of the traces' losses.
        settings: the policy's other settings.

    Returns:
        The family, from running everything to leaving at once.

    Raises:
        PolicyError: on a policy that has no such family, or traces that lack what it reads.
    """
    if name in LOOK_AHEAD:
        return _of_gains(name, traces, loss, settings)
    at: Callable[[float], Policy]
    if name in EXIT_DIRECTION:
        at = _of_threshold(name, traces, settings)
    elif name == "agreement":
        at = _of_agreement(traces, loss)
    elif name == "fixed":
        last = traces.num_layers
        at = lambda quantile: policies.Fixed(layer=round(last - quantile * (last - 1)))  # noqa: E731
    elif name in traces.scores:
        at = _of_column(name, traces, loss)
    else:
        raise PolicyError(f"policy {name} has nothing to calibrate; what can be is {', '.join(FAMILIES)}")
    return PolicyFamily(at, lambda quantile: at(quantile).exit_layers(readable_scores(traces)))


class Setting(NamedTuple):
    """A policy that was set, and what it does."""

    policy: Policy
    exit_layers: Tensor
    """(B,) of the utterances that it was set on, as if it had not seen them."""


def calibrate_depth(
    name: str, traces: Traces, target: float, loss: str = "disagreement", **settings: object
) -> Setting:
    """Set a policy to the mean depth on these utterances that is nearest to a target.

    Args:
        name: as in `fit_family`.
        traces: full runs on unlabelled audio.
        target: executed share of the cost of all layers, above 0 and at most 1.
        loss: see `fit_family`.
        settings: the policy's other settings.

    Returns:
        The policy, and the exits of the utterances that it was set on.

    Raises:
        PolicyError: on a target out of range, or as `fit_family`.

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
    """Refuse what is no depth.

    Args:
        target: executed share of the cost of all layers.

    Raises:
        PolicyError: where it is not above 0 and at most 1.
    """
    if not 0 < target <= 1:
        raise PolicyError(f"depth must be above 0 and at most 1, found {target:g}")


def find_quantile(family: PolicyFamily, traces: Traces, target: float) -> float:
    """Find the quantile whose mean depth is nearest to a target, halfway between those at which an exit changes.

    At the edge, a score would equal its threshold, and the last bits of other machines or batches would decide.
    """

    def reached(quantile: float) -> float:
        return mean_depth(family.exit_layers(quantile), traces)

    low, high = _edge(lambda quantile: reached(quantile) > target + 1e-9, 0.0, 1.0)
    quantile, away = min(((low, 0.0), (high, 1.0)), key=lambda side: abs(reached(side[0]) - target))
    same, _ = _edge(lambda other: reached(other) == reached(quantile), quantile, away)
    return (quantile + same) / 2


def _edge(holds: Callable[[float], bool], inside: float, outside: float) -> tuple[float, float]:
    """Where something ceases to hold on the way out: the last quantile where it holds, and the first where not."""
    for _ in range(STEPS):
        middle = (inside + outside) / 2
        if holds(middle):
            inside = middle
        else:
            outside = middle
    return inside, outside


def mean_depth(exit_layers: Tensor, traces: Traces) -> float:
    """Compute the mean executed share of the cost of all layers, 0 to 1, of (B,) exit layers."""
    return float((traces.costs[exit_layers - 1].double() / traces.costs[-1]).mean())


def fit_window(threshold: float, histogram: Sequence[float], kind: str = "avg", share: float = 0.1) -> policies.Window:
    """Choose the layers to look at as DAISY's published code does, from a histogram of exits at this threshold.

    Args:
        threshold: of the batch's entropy, nats.
        histogram: exits at each layer 1 to L, counted when every layer was looked at.
        kind: "avg": the mean exit's floor to its ceiling; "min-max": all layers that were exits; "threshold": from the
            first to the last layer with at least ``share`` of the exits.
        share: see there.

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
        among = numpy.flatnonzero(counts > 0 if kind == "min-max" else counts >= share * counts.sum())
        if not len(among):
            raise PolicyError(f"policy daisy_window: no layer has {share:.0%} of the exits")
        first, last = int(among[0]) + 1, int(among[-1]) + 1
    else:
        raise PolicyError(f"policy daisy_window: kind must be avg, min-max or threshold, found {kind!r}")
    return policies.Window(threshold=threshold, first=first, last=last)


def readable_scores(traces: Traces) -> dict[str, Tensor]:
    """Return the scores to decide from; a policy that reads none needs their shape."""
    return traces.scores or {"none": torch.zeros(len(traces), traces.num_layers)}


def _scores(traces: Traces, name: str, policy: str) -> Tensor:
    if name in traces.scores:
        return traces.scores[name]
    if name in traces.losses:
        return traces.losses[name]
    raise PolicyError(f"policy {policy} needs {name}; the traces have {', '.join((*traces.scores, *traces.losses))}")


def _of_threshold(name: str, traces: Traces, settings: dict[str, Any]) -> Callable[[float], Policy]:
    knob = {"patience": "tolerance", "oracle": "degree"}.get(name, "threshold")
    score = {"patience": "change", "oracle": "final_agreement"}.get(name, name)
    sign = EXIT_DIRECTION[name]
    values = sign * _scores(traces, score, name)[:, :-1].double()
    values = values[values.isfinite()].sort().values
    never = 0.0 if name == "entropy" else -sign * NEVER_EXIT

    def at(quantile: float) -> Policy:
        value = never if quantile <= 0 else sign * _quantile(values, quantile)
        return policies.make_policy(name, {**settings, knob: value})

    return at


def _of_column(column: str, traces: Traces, loss: str) -> Callable[[float], Policy]:
    """A threshold on any score; whether low or high values let leave is learnt from what the loss does."""
    values, wanted = traces.scores[column][:, :-1].double(), _scores(traces, loss, column)[:, :-1].double()
    below = bool(((values - values.mean()) * (wanted - wanted.mean())).sum() >= 0)
    sign = 1 if below else -1
    ordered = (sign * values).flatten().sort().values

    def at(quantile: float) -> Policy:
        value = -sign * NEVER_EXIT if quantile <= 0 else sign * _quantile(ordered, quantile)
        return policies.Score(column=column, threshold=value, below=below)

    return at


def _of_gains(name: str, traces: Traces, loss: str, settings: dict[str, Any]) -> PolicyFamily:
    target, features = LOOK_AHEAD[name]
    wanted = _scores(traces, loss if target == "disagreement" else target, name)
    features = tuple(f for f in features if f in traces.scores)
    if not features:
        raise PolicyError(f"policy {name} needs scores to learn from; the traces have none of those it reads")
    learnt = forecast.fit_gains(traces.scores, wanted, features)

    def at(quantile: float) -> Policy:
        return policies.make_policy(name, {**learnt._asdict(), **settings, "price": _price(prices, quantile)})

    held_out = torch.zeros(len(traces), traces.num_layers - 1, dtype=torch.float64)
    for fold in forecast.split_folds(traces.groups):
        rest = torch.ones(len(traces), dtype=torch.bool)
        rest[fold] = False
        part = traces.select(rest.nonzero()[:, 0])
        fitted = forecast.fit_gains(part.scores, wanted[rest], features) if rest.any() else learnt
        rule = policies.make_policy(name, {**fitted._asdict(), "price": 0.0})
        assert isinstance(rule, LookAhead)
        held_out[fold] = critical_prices(rule, {f: traces.scores[f][fold] for f in features}).double()
    prices = held_out.flatten().sort().values

    def exit_layers(quantile: float) -> Tensor:
        stays = (held_out > _price(prices, quantile)).long()
        return 1 + stays.cumprod(1).sum(1)

    return PolicyFamily(at, exit_layers)


def critical_prices(rule: LookAhead, scores: dict[str, Tensor]) -> Tensor:
    """Compute the prices at and above which utterances leave, (B, L - 1), at each layer."""
    columns = []
    for layer in range(1, len(rule.weights) + 1):
        gains = rule.gains({name: values[:, :layer] for name, values in scores.items()}, layer)
        columns.append((gains / torch.arange(1, gains.shape[1] + 1)).amax(1))
    return torch.stack(columns, dim=1)


def _price(prices: Tensor, quantile: float) -> float:
    return -NEVER_EXIT if quantile <= 0 else _quantile(prices, quantile)


def _of_agreement(traces: Traces, loss: str) -> Callable[[float], Policy]:
    entropy, losses = _scores(traces, "entropy", "agreement"), _scores(traces, loss, "agreement")
    order = entropy[:, :-1].argsort(0)
    sorted_entropy = entropy[:, :-1].gather(0, order)
    beyond = 2 * sorted_entropy[-1:] - sorted_entropy[-2:][:1]  # as far again, where everybody may leave
    bounds = torch.cat([sorted_entropy, beyond])
    counts = torch.arange(1, len(entropy) + 1, dtype=torch.float64)[:, None]
    accepted_loss = losses[:, :-1].gather(0, order).double().cumsum(0) / counts  # of those up to each entropy
    rates = accepted_loss.flatten().sort().values

    def at(quantile: float) -> Policy:
        allowed = -1.0 if quantile <= 0 else _quantile(rates, quantile)
        accepted = (accepted_loss <= allowed).long() * torch.arange(1, len(entropy) + 1)[:, None]
        rows = accepted.amax(0)  # 0: nobody may leave there
        last, first = (bounds.gather(0, r[None])[0] for r in ((rows - 1).clamp(min=0), rows))
        thresholds = torch.where(rows > 0, (last + first) / 2, 0.0)  # halfway to who may not: as in `find_quantile`
        return policies.Agreement(threshold=(*thresholds.tolist(), 0.0))

    return at


def _quantile(values: Tensor, quantile: float) -> float:
    """Of sorted values, linear between them."""
    return float(numpy.interp(quantile * (len(values) - 1), numpy.arange(len(values)), values.numpy()))
