"""Learn families of policies from full runs, each with one knob from running everything to leaving at once."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy
import torch
from torch import Tensor

from daisy import policies
from daisy.calibration import forecast
from daisy.calibration.traces import Traces
from daisy.errors import CheckpointError, PolicyError
from daisy.models.kinds import AnyHeads
from daisy.policies import POLICIES, Policy
from daisy.policies.rules import LookAhead
from daisy.policies.scores import OF_TEXT, available_scores

NEVER_EXIT = 1e6
"""Beyond any score or price: with such a setting no utterance leaves early."""
THRESHOLDS = tuple(name for name, policy in POLICIES.items() if policy.knob)
"""Policies with a threshold on one score."""
LOOK_AHEAD = {
    "forecast": ("disagreement", ("entropy", "confidence", "margin", "change", "sentence_confidence", "text_change")),
    "plateau": ("entropy", ("entropy",)),
    "regressed_plateau": ("regressed", ("regressed",)),
}
"""Look-ahead policies: the score or loss that is predicted, and the scores it is predicted from."""
TEXT_FAMILIES = tuple(name for name in THRESHOLDS if OF_TEXT.intersection(POLICIES[name].scores))
"""Families that read scores which only CTC exits give."""
FAMILIES = (*(name for name in THRESHOLDS if name not in TEXT_FAMILIES), *LOOK_AHEAD, "agreement", "fixed")
"""Families for any exits."""
CALIBRATED_FAMILIES = (*(name for name in FAMILIES if name != "oracle"), *TEXT_FAMILIES)
"""Families that can decide for new recordings; the oracle is told what only a full run knows."""
FULL_MODEL_FAMILIES = ("forecast", "agreement")
"""Families that learn from the full model's units."""
MEAN_LOSSES = {
    "mean_disagreement": ("disagreement", "clean_disagreement"),
    "mean_text_disagreement": ("text_disagreement", "clean_text_disagreement"),
}
"""Losses that may be learnt besides the traces' own: means of these."""


class PolicyFamily(NamedTuple):
    """All policies of one kind, from the safest (0, runs everything) to the cheapest (1).

    Both functions are defined at module level, with the learnt values bound to them, so that a family can be pickled.
    """

    at: Callable[[float], Policy]
    """The policy at a quantile from 0 to 1."""
    exit_layers: Callable[[float], Tensor]
    """(B,) exits of the utterances that the family was learnt from.

    Policies that look ahead decide as if they had not seen these utterances (cross-fitting); thresholds, and those of
    ``agreement``, have seen them.
    """


def check_family(name: str, heads: AnyHeads) -> None:
    """Refuse a family whose scores these heads do not give, before anything runs.

    Args:
        name: one of `FAMILIES` or `TEXT_FAMILIES`.
        heads: heads whose scores the family would read.

    Raises:
        CheckpointError: where scores are missing; names them.
    """
    wanted = set(LOOK_AHEAD[name][1] if name in LOOK_AHEAD else POLICIES[name].scores) - {"final_agreement"}
    lacking = wanted - available_scores(heads)
    if lacking and (name not in LOOK_AHEAD or lacking == wanted):  # to look ahead some of them are enough
        raise CheckpointError(f"policy {name} reads {', '.join(sorted(lacking))}, which these heads do not give")


def fit_family(name: str, traces: Traces, loss: str = "disagreement", **settings: object) -> PolicyFamily:
    """Learn a family of policies from full runs.

    Quantiles are shares: at quantile q, about a share q of the utterances and layers allow an exit.

    Args:
        name: one of `FAMILIES` or `TEXT_FAMILIES`, or one of the traces' scores, for a threshold on it.
        traces: full runs on unlabelled audio.
        loss: loss that ``forecast`` predicts and ``agreement`` bounds: one of the traces' losses, or of `MEAN_LOSSES`.
        settings: the policy's other settings.

    Returns:
        The family, from running everything to leaving at once.

    Raises:
        PolicyError: on a policy that has no such family, traces of one exit, or without scores or losses that it reads.
    """
    if traces.num_layers < 2:
        raise PolicyError(f"policy {name} cannot be calibrated: there is one exit, at the last layer")
    if name in LOOK_AHEAD:
        return _of_gains(name, traces, loss, settings)
    at: Callable[[float], Policy]
    if name in THRESHOLDS:
        at = _of_threshold(name, traces, settings)
    elif name == "agreement":
        at = _of_agreement(traces, loss)
    elif name == "fixed":
        at = partial(_cut_at, num_layers=traces.num_layers)
    elif name in traces.scores:
        at = _of_column(name, traces, loss)
    else:
        known = ", ".join((*FAMILIES, *TEXT_FAMILIES))
        raise PolicyError(f"policy {name} has nothing to calibrate; what can be is {known}")
    return PolicyFamily(at, partial(_exit_at, at=at, scores=readable_scores(traces)))


def readable_scores(traces: Traces) -> dict[str, Tensor]:
    """Return the scores to decide from, or zeros of their shape if there are none, for policies that read no score."""
    return traces.scores or {"none": torch.zeros(len(traces), traces.num_layers)}


def _exit_at(quantile: float, at: Callable[[float], Policy], scores: dict[str, Tensor]) -> Tensor:
    return at(quantile).exit_layers(scores)


def _cut_at(quantile: float, num_layers: int) -> Policy:
    return policies.Fixed(layer=round(num_layers - quantile * (num_layers - 1)))


def _scores(traces: Traces, name: str, policy: str) -> Tensor:
    if name in traces.scores:
        return traces.scores[name]
    if name in traces.losses:
        return traces.losses[name]
    if name in MEAN_LOSSES:
        return torch.stack([_scores(traces, part, policy) for part in MEAN_LOSSES[name]]).mean(0)
    raise PolicyError(f"policy {policy} needs {name}; the traces have {', '.join((*traces.scores, *traces.losses))}")


def _of_threshold(name: str, traces: Traces, settings: dict[str, Any]) -> Callable[[float], Policy]:
    kind = POLICIES[name]
    sign = 1 if kind.leaves_below else -1
    values = sign * _scores(traces, kind.scores[0], name)[:, :-1].double()
    never = 0.0 if name == "entropy" else -sign * NEVER_EXIT
    values = values[values.isfinite()].sort().values
    if not len(values):  # with two exits, the first has none before it to compare with
        values = torch.tensor([sign * never], dtype=torch.float64)
    make = partial(_make_with, name=name, knob=kind.knob, settings=settings)
    return partial(_threshold_at, make=make, sign=sign, values=values, never=never)


def _make_with(value: float, name: str, knob: str, settings: dict[str, Any]) -> Policy:
    return policies.make_policy(name, {**settings, knob: value})


def _threshold_at(quantile: float, make: Callable[[float], Policy], sign: int, values: Tensor, never: float) -> Policy:
    return make(never if quantile <= 0 else sign * _quantile(values, quantile))


def _of_column(column: str, traces: Traces, loss: str) -> Callable[[float], Policy]:
    """Learn a threshold on any score; the loss tells whether low or high values allow an exit."""
    values, wanted = traces.scores[column][:, :-1].double(), _scores(traces, loss, column)[:, :-1].double()
    known = values.isfinite()  # some have no value at the first layer
    if not known.any():
        raise PolicyError(f"score {column} has no value at any layer before the last")
    values, wanted = values[known], wanted[known]
    below = bool(((values - values.mean()) * (wanted - wanted.mean())).sum() >= 0)
    sign = 1 if below else -1
    ordered = (sign * values).sort().values
    make = partial(_make_with, name="score", knob="threshold", settings={"column": column, "below": below})
    return partial(_threshold_at, make=make, sign=sign, values=ordered, never=-sign * NEVER_EXIT)


def _of_gains(name: str, traces: Traces, loss: str, settings: dict[str, Any]) -> PolicyFamily:
    target, features = LOOK_AHEAD[name]
    wanted = _scores(traces, loss if target == "disagreement" else target, name)
    features = tuple(f for f in features if f in traces.scores)
    if not features:
        raise PolicyError(f"policy {name} needs scores to learn from; the traces have none of those it reads")
    shares = traces.weights_of(loss) if loss in traces.losses else torch.ones(len(traces))
    learnt = forecast.fit_gains(traces.scores, wanted, features, run_weights=shares)
    held_out = torch.zeros(len(traces), traces.num_layers - 1, dtype=torch.float64)
    for fold in forecast.split_folds(traces.groups):
        rest = torch.ones(len(traces), dtype=torch.bool)
        rest[fold] = False
        part = traces.select(rest.nonzero()[:, 0])
        fitted = learnt
        if rest.any():
            fitted = forecast.fit_gains(part.scores, wanted[rest], features, run_weights=shares[rest])
        rule = policies.make_policy(name, {**fitted._asdict(), "price": 0.0})
        assert isinstance(rule, LookAhead)
        held_out[fold] = critical_prices(rule, {f: traces.scores[f][fold] for f in features}).double()
    prices = held_out.flatten().sort().values
    make = partial(_make_with, name=name, knob="price", settings={**learnt._asdict(), **settings})
    at = partial(_threshold_at, make=make, sign=1, values=prices, never=-NEVER_EXIT)
    return PolicyFamily(at, partial(_exit_at_price, held_out=held_out, prices=prices))


def _exit_at_price(quantile: float, held_out: Tensor, prices: Tensor) -> Tensor:
    price = -NEVER_EXIT if quantile <= 0 else _quantile(prices, quantile)
    return 1 + (held_out > price).long().cumprod(1).sum(1)


def critical_prices(rule: LookAhead, scores: dict[str, Tensor]) -> Tensor:
    """Compute (B, L - 1) prices: the lowest at which each utterance leaves at each layer."""
    columns = []
    for layer in range(1, len(rule.weights) + 1):
        gains = rule.gains({name: values[:, :layer] for name, values in scores.items()}, layer)
        columns.append((gains / torch.arange(1, gains.shape[1] + 1)).amax(1))
    return torch.stack(columns, dim=1)


def _of_agreement(traces: Traces, loss: str) -> Callable[[float], Policy]:
    entropy, losses = _scores(traces, "entropy", "agreement"), _scores(traces, loss, "agreement")
    order = entropy[:, :-1].argsort(0)
    sorted_entropy = entropy[:, :-1].gather(0, order)
    beyond = 2 * sorted_entropy[-1:] - sorted_entropy[-2:][:1]  # as far again, where every utterance may leave
    bounds = torch.cat([sorted_entropy, beyond])
    counts = torch.arange(1, len(entropy) + 1, dtype=torch.float64)[:, None]
    accepted_loss = losses[:, :-1].gather(0, order).double().cumsum(0) / counts  # of the utterances up to each entropy
    return partial(_agreement_at, accepted_loss=accepted_loss, bounds=bounds)


def _agreement_at(quantile: float, accepted_loss: Tensor, bounds: Tensor) -> Policy:
    allowed = -1.0 if quantile <= 0 else _quantile(accepted_loss.flatten().sort().values, quantile)
    accepted = (accepted_loss <= allowed).long() * torch.arange(1, len(accepted_loss) + 1)[:, None]
    rows = accepted.amax(0)  # 0: no utterance may leave there
    last, first = (bounds.gather(0, r[None])[0] for r in ((rows - 1).clamp(min=0), rows))
    # Halfway to the next entropy, as in `daisy.calibration.depth.find_quantile`.
    thresholds = torch.where(rows > 0, (last + first) / 2, 0.0).nan_to_num(0.0)  # no entropy at the first layer
    return policies.Agreement(threshold=(*thresholds.tolist(), 0.0))


def _quantile(values: Tensor, quantile: float) -> float:
    """Return a quantile of sorted values, with linear interpolation."""
    return float(numpy.interp(quantile * (len(values) - 1), numpy.arange(len(values)), values.numpy()))
