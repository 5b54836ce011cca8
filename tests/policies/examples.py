"""An example of every policy, and settings drawn by hypothesis: all that a new policy adds to the shared tests."""

import torch
from hypothesis import strategies as st

from daisy import policies
from daisy.policies.scores import COMPARING, SCORES, WITHOUT_HEADS

LAYERS = 12
SCORE_NAMES = [*(name for name in SCORES if name not in WITHOUT_HEADS), "final_agreement"]
"""All scores that policies read, except the number of frames and the random draw."""


def look_ahead(kind, price, features):
    """Make a look-ahead policy with random weights."""
    generator = torch.Generator().manual_seed(2)
    rand = lambda *shape: torch.randn(*shape, generator=generator).tolist()  # noqa: E731
    weights = [rand(LAYERS - layer, layer * len(features)) for layer in range(1, LAYERS)]
    for rows in weights:
        for row in rows:
            row[features.index("change") * (len(row) // len(features))] = 0.0  # at layer 1 it is unknown
    intercepts = [rand(LAYERS - layer) for layer in range(1, LAYERS)]
    return kind(price=price, features=features, weights=weights, intercepts=intercepts)


def hide_first(scores):
    """Set scores that compare an exit with the previous one to NaN at the first."""
    for name in COMPARING:
        scores[name][:, 0] = torch.nan


DEADLINE = {"budget": 500.0, "front_cost": (10.0, 1.0, 0.0), "layer_cost": (5.0, 0.2, 0.001)}
ALL = [
    policies.Entropy(threshold=0.5),
    policies.Entropy(threshold=tuple(0.3 + 0.02 * layer for layer in range(LAYERS))),
    policies.Regressed(threshold=0.4),
    policies.Confidence(threshold=0.6),
    policies.Margin(threshold=0.7),
    policies.SentenceConfidence(threshold=0.7),
    policies.Posterior(threshold=0.8),
    policies.TextPatience(tolerance=0.2),
    policies.Agreement(threshold=(0.0,) * 4 + (0.3,) * 8),
    policies.Score(column="regressed", threshold=0.2),
    policies.Score(column="confidence", threshold=0.7, below=False),
    policies.Patience(tolerance=0.5),
    policies.Patience(tolerance=(0.9,) * 6 + (0.6,) * 6, patience=3),
    look_ahead(policies.Forecast, 0.4, ("entropy", "change")),
    look_ahead(policies.Plateau, 0.2, ("change",)),
    look_ahead(policies.RegressedPlateau, 0.4, ("change", "regressed")),
    policies.Deadline(**DEADLINE),
    policies.Deadline(**DEADLINE, layers=tuple(range(2, 2 * LAYERS + 1, 2))),
    policies.Deadline(**DEADLINE, then=policies.Entropy(threshold=0.4)),
    policies.Random(histogram=(0, 0, 1, 2, 3, 4, 3, 2, 1, 0, 0, 1)),
    policies.Oracle(degree=0.6),
    policies.Window(threshold=0.5, first=4, last=7),
    policies.Fixed(layer=7),
    policies.Never(),
]
"""At least one of every policy."""

FEW_LAYERS = 6
units = st.floats(0, 1, width=32)
seeds = st.integers(0, 2**32)
per_layer = st.one_of(units, st.tuples(*[units] * FEW_LAYERS))


def look_ahead_drawn(kind, features):
    """Draw policies that predict from some of the scores; `change` is unknown at layer 1."""

    def make(price, seed):
        generator = torch.Generator().manual_seed(seed)
        weights, intercepts = [], []
        for layer in range(1, FEW_LAYERS):
            matrix = torch.randn(FEW_LAYERS - layer, len(features), layer, generator=generator)
            if "change" in features:
                matrix[:, features.index("change"), 0] = 0
            weights.append(matrix.flatten(1).tolist())
            intercepts.append(torch.randn(FEW_LAYERS - layer, generator=generator).tolist())
        return kind(price=price, features=features, weights=weights, intercepts=intercepts)

    return st.builds(make, st.floats(-1, 2), seeds)


costs = st.tuples(st.floats(0, 100), st.floats(0, 2), st.floats(0, 0.01))
entropies = st.builds(policies.Entropy, threshold=per_layer)
DRAWN = {
    "entropy": entropies,
    "regressed": st.builds(policies.Regressed, threshold=per_layer),
    "confidence": st.builds(policies.Confidence, threshold=per_layer),
    "margin": st.builds(policies.Margin, threshold=per_layer),
    "sentence_confidence": st.builds(policies.SentenceConfidence, threshold=per_layer),
    "posterior": st.builds(policies.Posterior, threshold=per_layer),
    "agreement": st.builds(policies.Agreement, threshold=per_layer),
    "score": st.builds(
        policies.Score, column=st.sampled_from(["margin", "regressed"]), threshold=per_layer, below=st.booleans()
    ),
    "patience": st.builds(policies.Patience, tolerance=per_layer, patience=st.integers(1, FEW_LAYERS + 1)),
    "text_patience": st.builds(policies.TextPatience, tolerance=per_layer, patience=st.integers(1, FEW_LAYERS + 1)),
    "forecast": look_ahead_drawn(policies.Forecast, ("entropy", "change", "margin")),
    "plateau": look_ahead_drawn(policies.Plateau, ("entropy",)),
    "regressed_plateau": look_ahead_drawn(policies.RegressedPlateau, ("regressed", "change")),
    "deadline": st.builds(
        policies.Deadline,
        budget=st.floats(1e-3, 1e4),
        front_cost=costs,
        layer_cost=costs,
        then=st.one_of(st.just(policies.Never()), entropies),
        layers=st.sampled_from([(), (2, 4, 6, 8, 10, 12)]),
    ),
    "random": st.builds(
        policies.Random, histogram=st.tuples(*[st.integers(0, 5)] * FEW_LAYERS).filter(lambda counts: sum(counts) > 0)
    ),
    "oracle": st.builds(policies.Oracle, degree=units),
    "daisy_window": st.builds(
        lambda threshold, first, more: policies.Window(threshold=threshold, first=first, last=first + more),
        units,
        st.integers(1, FEW_LAYERS),
        st.integers(0, FEW_LAYERS),
    ),
    "fixed": st.builds(policies.Fixed, layer=st.integers(1, FEW_LAYERS)),
    "never": st.just(policies.Never()),
}
"""Strategies for the settings of every policy."""
