"""Learn from full runs, without labels, how much running on would still gain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy
import torch
from torch import Tensor

from daisy.calibration._types import Floats
from daisy.errors import PolicyError

RIDGE_PENALTY = 0.01
"""Penalty on the squared weights, added to the mean squared error; features are standardised."""
FOLDS = 5


class Gains(NamedTuple):
    """A linear forecast: the settings of `daisy.policies.rules.LookAhead` without the price."""

    features: tuple[str, ...]
    weights: tuple[tuple[tuple[float, ...], ...], ...]
    intercepts: tuple[tuple[float, ...], ...]


def fit_gains(
    scores: Mapping[str, Tensor],
    loss: Tensor,
    features: Sequence[str],
    *,
    run_weights: Tensor | None = None,
    penalty: float = RIDGE_PENALTY,
) -> Gains:
    """Fit by ridge regression, from all scores up to each layer, how much lower the loss is at each later layer.

    Args:
        scores: (B, L) each, from full runs.
        loss: (B, L), such as the share of frames whose unit differs from the full model's.
        features: names of the scores to read.
        run_weights: (B,) weight of each run, such as the length of its text for error rates; None: equal weights.
        penalty: penalty on the squared weights.

    Raises:
        PolicyError: where all runs have weight 0.
    """
    losses = loss.double().numpy()
    shares = numpy.ones(len(losses)) if run_weights is None else run_weights.double().numpy()
    if not shares.sum() > 0:
        raise PolicyError("nothing to learn from: all runs have weight 0, as may be those of one speaker")
    weights, intercepts = [], []
    for layer in range(1, losses.shape[1]):
        seen = torch.cat([scores[name][:, :layer] for name in features], dim=1).double().numpy()
        rows, offsets = _ridge(seen, losses[:, layer - 1 : layer] - losses[:, layer:], shares / shares.sum(), penalty)
        weights.append(tuple(map(tuple, rows.tolist())))
        intercepts.append(tuple(offsets.tolist()))
    return Gains(tuple(features), tuple(weights), tuple(intercepts))


def split_folds(groups: Sequence[str]) -> list[Tensor]:
    """Split runs into folds, with each group in one fold only, and return the indices of each fold."""
    names = sorted(set(groups))
    order = numpy.random.default_rng(0).permutation(len(names))
    fold_of = {name: int(place) % FOLDS for name, place in zip(names, order, strict=True)}
    parts = [[i for i, name in enumerate(groups) if fold_of[name] == fold] for fold in range(min(FOLDS, len(names)))]
    return [torch.tensor(part) for part in parts]


def _ridge(inputs: Floats, targets: Floats, shares: Floats, penalty: float) -> tuple[Floats, Floats]:
    """Fit weights (outputs, inputs) for unscaled inputs, and intercepts (outputs,); ``shares`` weight the rows.

    Inputs that never vary or are missing get weight 0.
    """
    inputs = numpy.nan_to_num(inputs)
    mean = shares @ inputs
    deviation = numpy.sqrt(shares @ numpy.square(inputs - mean))
    deviation[deviation < 1e-9] = numpy.inf
    standardised = (inputs - mean) / deviation
    centre = shares @ targets
    weighted = (standardised * shares[:, None]).T
    gram = weighted @ standardised + penalty * numpy.eye(inputs.shape[1])
    weights = (numpy.linalg.solve(gram, weighted @ (targets - centre)) / deviation[:, None]).T
    return weights, centre - weights @ mean
