"""Learners and training noise for the look-ahead policies: compared on dev audio alone, with cross-fitting.

    python -m benchmarks.policies.forecasts daisy-mini

Learners: the ridge regression that ships (`daisy.calibration.forecast`); the same with other penalties, fewer scores,
or a target between forecast's and plateau's (disagreement and entropy, each divided by its spread); and gradient
boosted trees. Noise: recorded alone, or also white, pink and babble. The price for each depth is set on the kinds used
for learning. The agreement with the full model, compared with a static cut, and how well exits follow the noise are
judged on all kinds, each utterance by models that did not see its speaker.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator

import numpy
import torch
from sklearn.ensemble import HistGradientBoostingRegressor
from torch import Tensor

from benchmarks.policies.rows import LOSS, make_gain_fields
from benchmarks.shared.full_runs import NOISE_KINDS, NOISY_SNRS_DB, load_calibration_runs
from benchmarks.shared.recordings import DEPTHS_COARSE
from benchmarks.shared.results import Row, write_result
from benchmarks.shared.script import make_parser, run_script
from daisy import policies
from daisy.calibration import forecast
from daisy.calibration.depth import STEPS, mean_depth
from daisy.calibration.families import LOOK_AHEAD, critical_prices
from daisy.calibration.traces import Traces
from daisy.evaluation import comparison, study
from daisy.policies.rules import LookAhead

PENALTIES = (0.001, forecast.RIDGE_PENALTY, 0.1, 1.0)
ENTROPY_SHARES = (0.25, 0.5, 0.75)
FEWER_SCORES = (("entropy", "change"), ("entropy",))
TREES = {"max_iter": 60, "max_depth": 3, "learning_rate": 0.1, "min_samples_leaf": 20}
Learner = Callable[[str, Traces, Traces], Tensor]
"""Takes a policy, runs to learn from and runs to predict for; returns critical prices (B, L - 1)."""


def make_ridge(
    penalty: float = forecast.RIDGE_PENALTY, scores: tuple[str, ...] = (), entropy_share: float = 0.0
) -> Learner:
    """Make a ridge regression.

    Args:
        penalty: penalty on the weights' squares.
        scores: input scores; the policy's own if empty.
        entropy_share: weight of the entropy in the target, next to the loss, 0 to 1.
    """

    def predict_prices(name: str, learning: Traces, others: Traces) -> Tensor:
        target, features = LOOK_AHEAD[name]
        loss, entropy = get_target(learning, target), learning.scores["entropy"]
        if entropy_share:
            loss = (1 - entropy_share) * loss + entropy_share * entropy * (loss.std() / entropy.std())
        fitted = forecast.fit_gains(learning.scores, loss, scores or features, penalty=penalty)
        rule = policies.make_policy(name, {**fitted._asdict(), "price": 0.0})
        assert isinstance(rule, LookAhead)
        return critical_prices(rule, others.scores)

    return predict_prices


def predict_by_trees(name: str, learning: Traces, others: Traces) -> Tensor:
    """Predict critical prices (B, L - 1) with one small ensemble for each pair of a layer and a later layer."""
    target, features = LOOK_AHEAD[name]
    loss = get_target(learning, target).numpy()
    columns = []
    for layer in range(1, learning.num_layers):
        seen, new = (
            numpy.hstack([runs.scores[score][:, :layer].numpy() for score in features]) for runs in (learning, others)
        )
        gains = numpy.stack(
            [
                HistGradientBoostingRegressor(**TREES).fit(seen, loss[:, layer - 1] - loss[:, later]).predict(new)
                for later in range(layer, learning.num_layers)
            ],
            axis=1,
        )
        columns.append((gains / numpy.arange(1, gains.shape[1] + 1)).max(1))
    return torch.tensor(numpy.stack(columns, axis=1))


def get_target(runs: Traces, target: str) -> Tensor:
    """Return the loss or score (B, L) to predict."""
    return runs.losses[target] if target in runs.losses else runs.scores[target]


def cross_fit(learner: Learner, name: str, runs: Traces, is_learnable: list[bool]) -> Tensor:
    """Predict critical prices (B, L - 1) with models that learn from the learnable rows of other speakers."""
    prices = torch.zeros(len(runs), runs.num_layers - 1, dtype=torch.float64)
    for fold in forecast.split_folds(runs.groups):
        held_out = set(fold.tolist())
        rest = [index for index, learnable in enumerate(is_learnable) if learnable and index not in held_out]
        prices[fold] = learner(name, runs.select(rest), runs.select(fold)).double()
    return prices


def exit_at(price: float, prices: Tensor) -> Tensor:
    """Return the (B,) exits at a price: the first layer whose critical price, in (B, L - 1), it reaches."""
    return 1 + (prices > price).long().cumprod(1).sum(1)


def find_price(prices: Tensor, target: float, runs: Traces) -> float:
    """Find, by bisection, the price at which runs have a given mean depth."""
    low, high = float(prices.min()), float(prices.max())
    for _ in range(STEPS):
        price = (low + high) / 2
        if mean_depth(exit_at(price, prices), runs) > target:
            low = price
        else:
            high = price
    return high


def measure(prices: Tensor, name: str, target: float, runs: Traces, is_learnable: list[bool]) -> Row:
    """Measure a policy on all rows; it is set on the rows used for learning."""
    rows = torch.tensor(is_learnable).nonzero()[:, 0]
    exits = exit_at(find_price(prices[rows], target, runs.select(rows)), prices)
    evaluations = comparison.evaluate_by_condition(name, exits, runs)
    overall = evaluations[0]
    return {
        "target_depth": target,
        "depth": overall.depth,
        **make_gain_fields(overall),
        "over_chance": overall.random[LOSS] - overall.losses[LOSS].mean,
        **{
            f"spearman_{kind}": study.correlate_with_snr(evaluations, name, kind, NOISY_SNRS_DB) for kind in NOISE_KINDS
        },
    }


def list_learners(quick: bool) -> Iterator[tuple[str, str, str, Learner]]:
    """Yield policies, kinds of noise to learn from, and learners with their names."""
    learners: dict[str, Learner] = {f"ridge, {penalty:g}": make_ridge(penalty) for penalty in PENALTIES}
    if not quick:
        learners["boosted trees"] = predict_by_trees
    more = {f"ridge, {share:.0%} entropy": make_ridge(entropy_share=share) for share in ENTROPY_SHARES}
    more |= {f"ridge, {' and '.join(scores)}": make_ridge(scores=scores) for scores in FEWER_SCORES}
    for policy in ("forecast", "plateau"):
        for kinds in ("recorded", "all kinds"):
            is_shipped = (policy, kinds) == ("forecast", "all kinds")
            for label, learner in {**learners, **(more if is_shipped else {})}.items():
                yield policy, kinds, label, learner


def main() -> None:
    parser = make_parser(__doc__, quick="a few utterances, no trees; nothing is written")
    parser.add_argument("model")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", category=UserWarning)
    runs = load_calibration_runs(arguments.model, 6 if arguments.quick else None)
    is_learnable = {
        "recorded": [condition.split()[0] in ("clean", "recorded") for condition in runs.conditions],
        "all kinds": [True] * len(runs),
    }
    rows = []
    for policy, kinds, label, learner in list_learners(arguments.quick):
        prices = cross_fit(learner, policy, runs, is_learnable[kinds])
        for target in DEPTHS_COARSE:
            row = measure(prices, policy, target, runs, is_learnable[kinds])
            rows.append({"policy": policy, "learner": label, "learnt_on": kinds, **row})
            values = rows[-1].values()
            print(*(f"{value:+.3f}" if isinstance(value, float) else f"{value:14}" for value in values), flush=True)
    if not arguments.quick:
        write_result("forecasts", rows)


if __name__ == "__main__":
    run_script(main)
