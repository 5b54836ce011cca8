"""Calibrate a policy on unlabelled audio so that its risk is bounded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy
import torch
from torch import Tensor

from daisy import policies
from daisy.calibration import risk
from daisy.calibration._types import Floats
from daisy.calibration.families import critical_prices, fit_family, readable_scores
from daisy.calibration.intervals import bootstrap
from daisy.calibration.traces import Traces
from daisy.errors import PolicyError, unknown_name
from daisy.policies import Policy
from daisy.policies.rules import LookAhead

MIN_GROUPS = 4
LEARN_SHARE = 1 / 3
EXCESS = ("word_errors", "character_errors")
"""Losses that are not 0 at the last exit: the risk is how much higher they are at an earlier exit."""
LOSSES = ("disagreement", "kl_nats", "text_disagreement", *EXCESS)
METHODS = (*risk.P_VALUES, "conformal")
NUM_STEPS = 100


class Certificate(NamedTuple):
    """A policy whose risk is bounded, or `Never`, with the runs that certified it."""

    policy: Policy
    exit_layers: Tensor
    """(n,) exits of the certifying runs."""
    runs: Traces


def calibrate_risk(
    name: str,
    traces: Traces,
    alpha: float,
    delta: float,
    *,
    method: str = "betting",
    loss: str = "disagreement",
    ceiling: float = 1.0,
    seed: int = 0,
) -> Certificate:
    """Find the cheapest policy of a family whose risk is at most ``alpha``, with probability at least 1 - ``delta``.

    A third of the groups learn the family, the others certify it; a group is one example, its loss the mean of its
    runs'. With several conditions the risk is bounded in each. A run of all layers is the full model itself, without
    loss. Of a recogniser's errors only those above the last exit's count, utterance by utterance.

    Args:
        name: one of `daisy.calibration.families.FAMILIES`.
        traces: full runs on unlabelled audio.
        alpha: the risk allowed, from (0, 1).
        delta: probability with which the bound may be missed; ``conformal`` bounds the expected risk, and has no delta.
        method: hoeffding-bentkus, betting or conformal (`daisy.calibration.risk`).
        loss: one of `LOSSES`.
        ceiling: value that losses are clipped to, and divided by.
        seed: seed of the split into learning and certifying groups.

    Returns:
        The policy, or `Never` if none is certified, with the runs that certified it and their exits.

    Raises:
        PolicyError: on values out of range, an unknown method, or too few groups.
    """
    check_guarantee(alpha, delta, method, loss, ceiling, len(set(traces.groups)))
    learning, certifying = traces.split(LEARN_SHARE, seed)
    ladder_policies = make_ladder(name, learning, loss)
    exits = compute_exits(ladder_policies, certifying)
    chosen = certify(exits, certifying, alpha, delta, method=method, loss=loss, ceiling=ceiling, seed=seed)
    if not chosen:  # none, or the first, which runs everything
        return Certificate(policies.Never(), torch.full((len(certifying),), traces.num_layers), certifying)
    return Certificate(ladder_policies[chosen], exits[:, chosen], certifying)


def check_guarantee(alpha: float, delta: float, method: str, loss: str, ceiling: float, num_groups: int) -> None:
    """Refuse settings for which no guarantee can be given.

    Raises:
        PolicyError: on values out of range, an unknown method or loss, or too few groups.
    """
    for what, value in (("risk", alpha), ("delta", delta)):
        if not 0 < value < 1:
            raise PolicyError(f"{what} must be between 0 and 1, found {value}")
    if method not in METHODS:
        raise PolicyError(unknown_name("method", method, METHODS))
    if loss not in LOSSES:
        raise PolicyError(f"a guarantee is about {', '.join(LOSSES)}, of which running everything has none: not {loss}")
    if not 0 < ceiling < math.inf:
        raise PolicyError(f"ceiling must be above 0, found {ceiling}")
    if num_groups < MIN_GROUPS:
        raise PolicyError(
            f"a guarantee needs recordings of at least {MIN_GROUPS} speakers, found {num_groups}: "
            "some learn, the others certify"
        )


def make_ladder(name: str, learn: Traces, loss: str = "disagreement") -> list[Policy]:
    """List a family's policies from the safest to the cheapest, learnt from runs that take no part in certifying."""
    family = fit_family(name, learn, loss)
    return [family.at(quantile) for quantile in numpy.linspace(0, 1, NUM_STEPS + 1)]


def compute_exits(ladder_policies: Sequence[Policy], runs: Traces) -> Tensor:
    """Compute the exit layer of each run under each policy of a ladder, (n, S)."""
    first = ladder_policies[0]
    if isinstance(first, LookAhead):  # they differ only in the price: look ahead once
        prices = torch.tensor([policy.price for policy in ladder_policies if isinstance(policy, LookAhead)])
        critical = critical_prices(first, runs.scores)
        return 1 + (critical[:, :, None] > prices).long().cumprod(1).sum(1)
    return torch.stack([policy.exit_layers(readable_scores(runs)) for policy in ladder_policies], dim=1)


def certify(
    exits: Tensor,
    runs: Traces,
    alpha: float,
    delta: float,
    *,
    method: str = "betting",
    loss: str = "disagreement",
    ceiling: float = 1.0,
    seed: int = 0,
) -> int | None:
    """Find the cheapest of S settings, ordered from the safest on, whose risk is certified in every condition.

    Args:
        exits: (n, S) exit layers of the runs.
        runs: runs that certify.
        alpha: the risk allowed.
        delta: probability with which the bound may be missed.
        method: one of `METHODS`.
        loss: one of the runs' losses.
        ceiling: value that losses are clipped to, and divided by.
        seed: seed of the order in which betting sees the groups.

    Returns:
        The setting's index; None if not even the first is certified.
    """
    groups = list(dict.fromkeys(runs.groups))
    order = numpy.random.default_rng(seed).permutation(len(groups))  # betting must not meet large groups first
    examples = []
    for condition in dict.fromkeys(runs.conditions):
        rows = runs.rows_of(condition)
        by_group = compute_risks(runs.select(rows), exits[rows], loss, ceiling)
        examples.append(by_group[[index for index in order if index < len(by_group)]])
    if method == "conformal":
        return risk.conformal(examples, alpha)
    return risk.learn_then_test(examples, alpha, delta, risk.choose_p_value(method, delta))


def measure_attained(runs: Traces, exits: Tensor, loss: str, ceiling: float) -> dict[str, Any]:
    """Measure the certified risk on the certifying runs: by condition, with intervals, and by exit layer.

    Args:
        runs: runs that certified the policy.
        exits: (n,) exit layers of these runs.
        loss: one of `LOSSES`.
        ceiling: value that losses are clipped to, and divided by.
    """
    by_condition = []
    for condition in dict.fromkeys(runs.conditions):
        rows = runs.rows_of(condition)
        of_groups = compute_risks(runs.select(rows), exits[rows, None], loss, ceiling)[:, 0].tolist()
        estimate = bootstrap(of_groups, [str(group) for group in range(len(of_groups))])
        by_condition.append(
            {"condition": condition, "risk": estimate.mean, "risk_low": estimate.low, "risk_high": estimate.high}
        )
    values = bound_losses(runs.losses[loss], ceiling, loss).gather(1, exits[:, None] - 1)[:, 0]
    by_layer = [
        {
            "exit_layer": runs.layers[number - 1],
            "num_runs": int((exits == number).sum()),
            "risk": float(values[exits == number].mean()),
        }
        for number in sorted(set(exits.tolist()))
    ]
    return {"by_condition": by_condition, "by_exit_layer": by_layer}


def compute_risks(runs: Traces, exits: Tensor, loss: str, ceiling: float) -> Floats:
    """Compute each group's mean loss, in [0, 1], under each setting: (groups, S)."""
    at_exit = bound_losses(runs.losses[loss], ceiling, loss).gather(1, exits - 1)
    return risk.average_by_group(at_exit.numpy(), runs.groups)


def bound_losses(losses: Tensor, ceiling: float, loss: str = "") -> Tensor:
    """Clip and scale (B, L) losses to [0, 1]; at the last layer they are 0, because nothing was left out.

    Args:
        losses: loss at each layer.
        ceiling: value that they are clipped to, and divided by.
        loss: name of the loss; for `EXCESS` only the excess over the last layer's counts.
    """
    values = ((losses - losses[:, -1:] if loss in EXCESS else losses) / ceiling).clamp(0, 1)
    values[:, -1] = 0
    return values
