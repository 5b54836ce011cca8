"""Old and new ways to decide the exits, each learnt from full runs: `benchmarks.policies.ideas` compares them.

Each learns from some runs and decides the exits of others at any price per layer. Most assign to each run and layer the
price at and above which the run exits there (*critical price*); `stop_optimally` and `cut_by_layer` solve the problem
again for each price.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy
from numpy.typing import NDArray
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import Ridge
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.policies.idea_runs import MORE_SCORES, Runs

Floats = NDArray[numpy.float64]
PRESENT_SCORES = ("entropy", "confidence", "margin", "change")
SCALAR_PENALTY = 0.01
"""Penalty on squared weights of standardised scores, times the number of runs, as in `daisy.calibration.forecast`."""
STATES_PENALTY = 1.0
"""The same for the hundreds of pooled states."""
NETWORK = {"hidden_layer_sizes": (64,), "alpha": 1.0, "early_stopping": True, "max_iter": 300, "random_state": 0}


@dataclass(frozen=True)
class Decisions:
    """Exits of some runs at any price."""

    exits: Callable[[float], NDArray[numpy.int64]]
    """Maps a price to exit layers (B,), 1 to L; the higher the price, the earlier the exits."""
    low: float
    high: float
    """Prices at which almost no run and almost every run exits at once."""


Learner = Callable[[Runs, Runs, Floats], Decisions]
"""Takes runs to learn from, runs to decide for, and the loss (B, L) of the first."""


def decide_by_prices(prices: Floats) -> Decisions:
    """Make decisions from critical prices (B, L - 1): exit at the first whose critical price is at most the price."""

    def exits(price: float) -> NDArray[numpy.int64]:
        left: NDArray[numpy.int64] = 1 + (prices > price).cumprod(1).sum(1)
        return left

    return Decisions(exits, float(prices.min()) - 1e-6, float(prices.max()))


def decide_by_curves(curves: Sequence[Floats]) -> Decisions:
    """Make decisions from predicted gains of later layers, (B, L - l) for l = 1 to L - 1: the best gain per layer."""
    return decide_by_prices(
        numpy.stack([(gains / numpy.arange(1, gains.shape[1] + 1)).max(1) for gains in curves], axis=1)
    )


def get_scores(runs: Runs, names: Sequence[str]) -> Floats:
    """Return scores (B, L, names); 0 at layer 1 for scores that it lacks."""
    columns = [runs.traces.scores[name].double().numpy() for name in names]
    size = (len(runs), runs.traces.num_layers)
    return numpy.nan_to_num(numpy.stack(columns, axis=2)) if columns else numpy.zeros((*size, 0))


def read_threshold(learning: Runs, others: Runs, loss: Floats, name: str, sign: int = 1) -> Decisions:
    """Exit when one score is low enough, or high enough (``sign`` -1), like the policy of that name."""
    prices = sign * others.traces.scores[name][:, :-1].double().numpy()
    return decide_by_prices(numpy.nan_to_num(prices, nan=float(numpy.nanmax(prices))))  # no exit where it is absent


def calibrate_layers(learning: Runs, others: Runs, loss: Floats, gain: bool) -> Decisions:
    """Map each layer's entropy to the expected loss there, by isotonic regression; exit when that is low enough.

    Args:
        learning: see `Learner`.
        others: see `Learner`.
        loss: see `Learner`.
        gain: map to the gain of each later layer over this one instead, and exit when none is worth its price.
    """
    seen, new = (get_scores(runs, ["entropy"])[:, :, 0] for runs in (learning, others))
    if not gain:
        expected = [
            _fit_isotonic(seen[:, layer], loss[:, layer]).predict(new[:, layer]) for layer in range(loss.shape[1] - 1)
        ]
        return decide_by_prices(numpy.stack(expected, axis=1) + 1e-6 * new[:, :-1])  # breaks ties within the steps
    curves = []
    for layer in range(loss.shape[1] - 1):
        wanted = loss[:, layer, None] - loss[:, layer + 1 :]
        curves.append(
            numpy.stack([_fit_isotonic(seen[:, layer], of).predict(new[:, layer]) for of in wanted.T], axis=1)
        )
    return decide_by_curves(curves)


def _fit_isotonic(inputs: Floats, targets: Floats) -> IsotonicRegression:
    rises = float(((inputs - inputs.mean()) * targets).sum()) >= 0
    return IsotonicRegression(increasing=rises, out_of_bounds="clip").fit(inputs, targets)


def look_ahead(learning: Runs, others: Runs, loss: Floats, names: Sequence[str]) -> Decisions:
    """Predict the gain of each later layer from all scores so far, like `forecast`."""
    seen, new = (get_scores(runs, names) for runs in (learning, others))
    curves = []
    for layer in range(1, loss.shape[1]):
        inputs, others_inputs = (scores[:, :layer].reshape(len(scores), -1) for scores in (seen, new))
        curves.append(
            _fit_ridge(inputs, _gains(loss, layer), SCALAR_PENALTY).predict(others_inputs).reshape(len(new), -1)
        )
    return decide_by_curves(curves)


def predict_course(learning: Runs, others: Runs, loss: Floats, name: str) -> Decisions:
    """Predict how much lower a score will be at each later layer, from the same score so far, like `plateau`."""
    return look_ahead(learning, others, get_scores(learning, [name])[:, :, 0], [name])


def choose_before(learning: Runs, others: Runs, loss: Floats, layer: int) -> Decisions:
    """Choose the exit from one layer's pooled states, without looking at later layers (as in arXiv:2507.07954).

    Args:
        learning: see `Learner`.
        others: see `Learner`.
        loss: see `Learner`.
        layer: layer of the states, from 0 (before any layer runs). No run exits before it.
    """
    fitted = _fit_ridge(_pool(learning, layer), loss, STATES_PENALTY)
    expected = fitted.predict(_pool(others, layer))
    return decide_by_curves(
        [
            expected[:, at - 1, None] - expected[:, at:] + (100.0 if at < layer else 0.0)
            for at in range(1, loss.shape[1])
        ]
    )


def read_states(learning: Runs, others: Runs, loss: Floats, names: Sequence[str], network: bool = False) -> Decisions:
    """Predict the gains from the current layer's pooled states and some of the scores so far.

    Args:
        learning: see `Learner`.
        others: see `Learner`.
        loss: see `Learner`.
        names: names of the scores.
        network: use a small network instead of ridge regression.
    """
    seen, new = (get_scores(runs, names) for runs in (learning, others))
    curves = []
    for layer in range(1, loss.shape[1]):
        inputs, others_inputs = (
            numpy.hstack([scores[:, :layer].reshape(len(scores), -1), _pool(runs, layer)])
            for scores, runs in ((seen, learning), (new, others))
        )
        wanted = _gains(loss, layer)
        if network:
            scale = wanted.std() or 1.0
            fitted = make_pipeline(StandardScaler(), MLPRegressor(**NETWORK)).fit(inputs, numpy.squeeze(wanted / scale))
            curves.append(scale * fitted.predict(others_inputs).reshape(len(new), -1))
        else:
            curves.append(_fit_ridge(inputs, wanted, STATES_PENALTY).predict(others_inputs).reshape(len(new), -1))
    return decide_by_curves(curves)


def stop_optimally(learning: Runs, others: Runs, loss: Floats, names: Sequence[str]) -> Decisions:
    """Solve the stopping problem backwards: is exiting now better than continuing and deciding again later?

    For each layer, from the last to the first, ridge regression on all scores so far predicts how much less continuing
    costs, including all later decisions and their prices (Longstaff and Schwartz's regression for American options).
    """
    seen, new = (get_scores(runs, names) for runs in (learning, others))
    num_layers = loss.shape[1]
    solvers = [_LeastSquares(seen[:, :layer].reshape(len(seen), -1)) for layer in range(1, num_layers)]
    inputs = [new[:, :layer].reshape(len(new), -1) for layer in range(1, num_layers)]

    def exits(price: float) -> NDArray[numpy.int64]:
        value, left = loss[:, -1].copy(), numpy.full(len(new), num_layers)
        for layer in range(num_layers - 1, 0, -1):
            solver, going_on = solvers[layer - 1], value + price
            fitted = solver.fit(loss[:, layer - 1] - going_on)
            value = numpy.where(solver.predict(fitted) <= 0, loss[:, layer - 1], going_on)
            left = numpy.where(solver.predict(fitted, inputs[layer - 1]) <= 0, layer, left)
        return left

    return Decisions(exits, -1.0, 1.0)


def cut_by_layer(learning: Runs, others: Runs, loss: Floats, name: str = "entropy") -> Decisions:
    """Learn each layer's cheapest threshold of a score, from the last layer to the first: `entropy` with a list."""
    seen, new = (get_scores(runs, [name])[:, :, 0] for runs in (learning, others))
    num_layers = loss.shape[1]
    orders = [seen[:, layer].argsort() for layer in range(num_layers)]

    def exits(price: float) -> NDArray[numpy.int64]:
        value, left = loss[:, -1].copy(), numpy.full(len(new), num_layers)
        for layer in range(num_layers - 1, 0, -1):
            scores, order = seen[:, layer - 1], orders[layer - 1]
            excess = (loss[:, layer - 1] - value - price)[order].cumsum()
            best = int(excess.argmin())
            # If all of them exit, so do runs with a higher score than any that was learnt from.
            threshold = numpy.inf if best == len(order) - 1 else scores[order[best]]
            threshold = threshold if excess[best] < 0 else -numpy.inf
            value = numpy.where(scores <= threshold, loss[:, layer - 1], value + price)
            left = numpy.where(new[:, layer - 1] <= threshold, layer, left)
        return left

    return Decisions(exits, -1.0, 1.0)


class _LeastSquares:
    """Ridge regression on the same inputs for many targets."""

    def __init__(self, inputs: Floats):
        self.mean, self.deviation = inputs.mean(0), inputs.std(0)
        self.deviation[self.deviation < 1e-9] = numpy.inf
        self.inputs = (inputs - self.mean) / self.deviation
        gram = self.inputs.T @ self.inputs + SCALAR_PENALTY * len(inputs) * numpy.eye(inputs.shape[1])
        self.solution = numpy.linalg.solve(gram, self.inputs.T)

    def fit(self, targets: Floats) -> Floats:
        """Return the weights, with the intercept last."""
        return numpy.append(self.solution @ (targets - targets.mean()), targets.mean())

    def predict(self, fitted: Floats, inputs: Floats | None = None) -> Floats:
        """Predict for the inputs it was fitted on, or for others."""
        standardised = self.inputs if inputs is None else (inputs - self.mean) / self.deviation
        predicted: Floats = standardised @ fitted[:-1] + fitted[-1]
        return predicted


def _gains(loss: Floats, layer: int) -> Floats:
    """Compute how much lower the loss is at each later layer than at ``layer`` (1 to L - 1): (B, L - layer)."""
    return loss[:, layer - 1, None] - loss[:, layer:]


def _pool(runs: Runs, layer: int) -> Floats:
    return runs.states[:, layer].astype(numpy.float64)


def _fit_ridge(inputs: Floats, targets: Floats, penalty: float) -> Any:
    return make_pipeline(StandardScaler(), Ridge(alpha=penalty * len(inputs))).fit(inputs, targets)


ALL_SCORES = (*PRESENT_SCORES, *MORE_SCORES)
IDEAS: dict[str, tuple[Learner, bool]] = {
    "entropy": (partial(read_threshold, name="entropy"), False),
    "confidence": (partial(read_threshold, name="confidence", sign=-1), False),
    "margin": (partial(read_threshold, name="margin", sign=-1), False),
    "change": (partial(read_threshold, name="change"), False),
    "regressed": (partial(read_threshold, name="regressed"), False),
    "plateau": (partial(predict_course, name="entropy"), False),
    "regressed_plateau": (partial(predict_course, name="regressed"), False),
    "forecast": (partial(look_ahead, names=PRESENT_SCORES), True),
    "worst half second": (partial(read_threshold, name="entropy_worst_window"), False),
    "upper tenth": (partial(read_threshold, name="entropy_upper_tenth"), False),
    "entropy to loss, by layer": (partial(calibrate_layers, gain=False), True),
    "entropy to gains, by layer": (partial(calibrate_layers, gain=True), True),
    "entropy, learnt thresholds": (cut_by_layer, True),
    "forecast, time scales": (partial(look_ahead, names=ALL_SCORES), True),
    "forecast, regressors alone": (partial(look_ahead, names=("regressed",)), True),
    "stopping": (partial(stop_optimally, names=PRESENT_SCORES), True),
    "stopping, time scales": (partial(stop_optimally, names=ALL_SCORES), True),
    "layer 0's states": (partial(choose_before, layer=0), True),
    "layer 1's states": (partial(choose_before, layer=1), True),
    "layer 3's states": (partial(choose_before, layer=3), True),
    "states": (partial(read_states, names=()), True),
    "states and scores": (partial(read_states, names=PRESENT_SCORES), True),
    "states and scores, network": (partial(read_states, names=PRESENT_SCORES, network=True), True),
}
"""Ideas, starting with the existing policies, and whether they learn a loss."""


def list_ideas(runs: Runs, quick: bool = False) -> dict[str, tuple[Learner, bool]]:
    """List the ideas possible with a network's scores (some have no loss regressors); ``quick``: only the fast ones."""
    left_out: tuple[str, ...] = ("network",) if quick else ()
    if "regressed" not in runs.traces.scores:
        left_out += ("regress",)
    return {name: idea for name, idea in IDEAS.items() if not any(word in name for word in left_out)}
