"""What the look-ahead policies could be learnt with, and on which noise: compared on dev audio alone, cross-fitted.

    python benchmarks/forecasts.py daisy-mini

Learners: the ridge regression that ships (`daisy.calibration.forecast`), with other penalties, fewer scores, or a
target between forecast's and plateau's (disagreement and entropy, each by its spread); and gradient boosted trees. Noise:
recorded alone, or white, pink and babble too. A price for each depth is set on the kinds that were learnt from; the
agreement with the full model is judged on all of them beside a static cut, and whether the exit follows the noise, each
utterance by models that did not see its speaker.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable

import numpy
import torch
from common import guarded, write
from full_runs import KINDS, SNRS_DB, calibration_runs
from sklearn.ensemble import HistGradientBoostingRegressor
from torch import Tensor

from daisy import policies
from daisy.calibration import forecast
from daisy.calibration.depth import LOOK_AHEAD, STEPS, critical_prices, mean_depth
from daisy.calibration.traces import Traces
from daisy.evaluation import comparison, study

DEPTHS = (0.4, 0.6, 0.8)
PENALTIES = (0.001, forecast.RIDGE_PENALTY, 0.1, 1.0)
SHARES = (0.25, 0.5, 0.75)
FEWER = (("entropy", "change"), ("entropy",))
TREES = {"max_iter": 60, "max_depth": 3, "learning_rate": 0.1, "min_samples_leaf": 20}
Learner = Callable[[str, Traces, Traces], Tensor]
"""Policy, runs to learn from, runs to foretell: critical prices (B, L - 1)."""


def ridge(penalty: float = forecast.RIDGE_PENALTY, scores: tuple[str, ...] = (), entropy_share: float = 0.0) -> Learner:
    def prices(name: str, learn: Traces, apply: Traces) -> Tensor:
        target, features = LOOK_AHEAD[name]
        loss, entropy = wanted(learn, target), learn.scores["entropy"]
        if entropy_share:
            loss = (1 - entropy_share) * loss + entropy_share * entropy * (loss.std() / entropy.std())
        found = forecast.fit_gains(learn.scores, loss, scores or features, penalty=penalty)
        rule = policies.make_policy(name, {**found._asdict(), "price": 0.0})
        return critical_prices(rule, apply.scores)

    return prices


def boosted(name: str, learn: Traces, apply: Traces) -> Tensor:
    """One small ensemble for each layer and later layer."""
    target, features = LOOK_AHEAD[name]
    loss = wanted(learn, target).numpy()
    columns = []
    for layer in range(1, learn.num_layers):
        seen, new = (numpy.hstack([runs.scores[f][:, :layer].numpy() for f in features]) for runs in (learn, apply))
        gains = numpy.stack(
            [
                HistGradientBoostingRegressor(**TREES).fit(seen, loss[:, layer - 1] - loss[:, later]).predict(new)
                for later in range(layer, learn.num_layers)
            ],
            axis=1,
        )
        columns.append((gains / numpy.arange(1, gains.shape[1] + 1)).max(1))
    return torch.tensor(numpy.stack(columns, axis=1))


def wanted(runs: Traces, target: str) -> Tensor:
    return runs.losses[target] if target in runs.losses else runs.scores[target]


def cross_fitted(learner: Learner, name: str, runs: Traces, learnable: list[bool]) -> Tensor:
    """(B, L - 1) critical prices; models learn from the rows that are ``learnable``, of other speakers."""
    found = torch.zeros(len(runs), runs.num_layers - 1, dtype=torch.float64)
    for fold in forecast.split_folds(runs.groups):
        out = set(fold.tolist())
        rest = [i for i, allowed in enumerate(learnable) if allowed and i not in out]
        found[fold] = learner(name, runs.select(rest), runs.select(fold)).double()
    return found


def measure(prices: Tensor, name: str, target: float, runs: Traces, learnable: list[bool]) -> dict:
    """Set on the rows that were learnt from, judged on all."""
    set_on = torch.tensor(learnable)
    exits_at = lambda price, rows: 1 + (rows > price).long().cumprod(1).sum(1)  # noqa: E731
    low, high = float(prices.min()), float(prices.max())
    for _ in range(STEPS):
        middle = (low + high) / 2
        deeper = mean_depth(exits_at(middle, prices[set_on]), runs.select(set_on.nonzero()[:, 0])) > target
        low, high = (middle, high) if deeper else (low, middle)
    exits = exits_at(high, prices)
    verdicts = comparison.evaluate_by_condition(name, exits, runs)
    overall = verdicts[0]
    gain = overall.gain["disagreement"]
    ratios = [snr for snr in SNRS_DB if snr is not None]
    line = {"target_depth": target, "depth": overall.depth}
    line |= {"gain": gain.mean, "gain_low": gain.low, "gain_high": gain.high}
    line["over_chance"] = overall.random["disagreement"] - overall.losses["disagreement"].mean
    for kind in KINDS:
        line[f"spearman_{kind}"] = study.correlate_with_snr(verdicts, name, kind, ratios)
    return line


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--quick", action="store_true", help="a few utterances, no trees; nothing is written")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", category=UserWarning)
    runs = calibration_runs(arguments.model, 6 if arguments.quick else None)
    recorded = [condition.split()[0] in ("clean", "recorded") for condition in runs.conditions]
    learners: dict[str, Learner] = {f"ridge, {penalty:g}": ridge(penalty) for penalty in PENALTIES}
    if not arguments.quick:
        learners["boosted trees"] = boosted
    rows = []
    between: dict[str, Learner] = {f"ridge, {share:.0%} entropy": ridge(entropy_share=share) for share in SHARES}
    fewer: dict[str, Learner] = {f"ridge, {' and '.join(scores)}": ridge(scores=scores) for scores in FEWER}
    for name in ("forecast", "plateau"):
        for heard, learnable in (("recorded", recorded), ("all kinds", [True] * len(runs))):
            more = {**between, **fewer} if (name, heard) == ("forecast", "all kinds") else {}
            for label, learner in {**learners, **more}.items():
                prices = cross_fitted(learner, name, runs, learnable)
                for target in DEPTHS:
                    made = {"policy": name, "learner": label, "learnt_on": heard}
                    rows.append(made | measure(prices, name, target, runs, learnable))
                    print(*(f"{v:+.3f}" if isinstance(v, float) else f"{v:14}" for v in rows[-1].values()), flush=True)
    if not arguments.quick:
        write("forecasts", rows)


if __name__ == "__main__":
    guarded(main)
