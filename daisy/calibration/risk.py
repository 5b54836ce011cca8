"""Choose settings with a guarantee from bounded losses on calibration data: arithmetic only.

Settings are ordered, the safest first and the cheapest last, and must not have been chosen by looking at the
calibration losses. ``losses`` is (n, S): each calibration example's loss, in [0, 1], under each of S settings.

Learn then Test (arXiv:2110.01052): with probability at least 1 - delta over the calibration set, the chosen setting's
risk is at most alpha. Its p-values are Hoeffding-Bentkus, or the betting of Waudby-Smith and Ramdas
(arXiv:2010.09686), whose supremum over the examples stays valid by Ville's inequality. Conformal risk control
(arXiv:2208.02814) bounds the chosen setting's expected risk, also over calibration sets, instead of its probability.

The examples must be drawn independently: if speakers have several recordings, an example is a speaker.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy
from numpy.typing import ArrayLike

from daisy.calibration._types import Floats


def hoeffding_bentkus(losses: ArrayLike, alpha: float) -> float:
    """Compute a p-value of "the mean is above alpha" for independent losses in [0, 1] (arXiv:2110.01052, equation 6).

    Args:
        losses: (n,) losses.
        alpha: risk in (0, 1).
    """
    from scipy.stats import binom

    values = numpy.asarray(losses, dtype=numpy.float64)
    count, mean = len(values), float(values.mean())
    hoeffding = math.exp(-count * _divergence(min(mean, alpha), alpha))
    bentkus = math.e * float(binom.cdf(math.ceil(count * mean - 1e-9), count, alpha))
    return min(hoeffding, bentkus, 1.0)


def betting(losses: ArrayLike, alpha: float, delta: float = 0.1) -> float:
    """Compute a p-value of "the mean is above alpha" by betting against it, loss by loss (arXiv:2010.09686, section 4).

    The stake is the predictable plug-in of that paper's equation 26, which is best for a single, final look at level
    ``delta``; the p-value is valid for any level.

    Args:
        losses: (n,) losses, in an order that does not depend on them.
        alpha: risk in (0, 1).
        delta: level that the stakes are chosen for.
    """
    values = numpy.asarray(losses, dtype=numpy.float64)
    count = len(values)
    seen = numpy.arange(1, count + 1)
    means = (0.5 + values.cumsum()) / (seen + 1)
    variances = (0.25 + numpy.square(values - means).cumsum()) / (seen + 1)
    before = numpy.concatenate([[0.25], variances[:-1]])
    stakes = numpy.minimum(numpy.sqrt(2 * math.log(1 / delta) / (count * before)), 0.75 / (1 - alpha))
    capital = numpy.cumsum(numpy.log1p(-stakes * (values - alpha)))
    return min(1.0, math.exp(-max(0.0, float(capital.max()))))


PValue = Callable[[ArrayLike, float], float]
P_VALUES: dict[str, PValue] = {"hoeffding-bentkus": hoeffding_bentkus, "betting": betting}


def choose_p_value(method: str, delta: float) -> PValue:
    """Return a function of `P_VALUES`; betting chooses its stakes for ``delta``."""
    return partial(betting, delta=delta) if method == "betting" else P_VALUES[method]


def learn_then_test(
    losses: Sequence[ArrayLike], alpha: float, delta: float, p_value: PValue = hoeffding_bentkus
) -> int | None:
    """Find the last setting up to which every one, from the safest on, is certified (fixed-sequence testing).

    Args:
        losses: (n_c, S) for each condition. A setting is certified only if it is in all conditions: its p-value is the
            largest of theirs. This needs no correction for their number, because "some condition's risk is too high" is
            rejected only if each condition's is.
        alpha: the risk allowed, in (0, 1).
        delta: probability with which the bound may be missed.
        p_value: function from `P_VALUES`.

    Returns:
        Index of a setting; None if not even the first is certified.
    """
    conditions = [numpy.asarray(of_one, dtype=numpy.float64) for of_one in losses]
    chosen = None
    for setting in range(conditions[0].shape[1]):
        if max(p_value(of_one[:, setting], alpha) for of_one in conditions) > delta:
            break
        chosen = setting
    return chosen


def conformal(losses: Sequence[ArrayLike], alpha: float) -> int | None:
    """Find the last setting whose corrected mean loss is at most alpha (conformal risk control, arXiv:2208.02814).

    Losses that fall where a setting is cheaper are raised to the largest so far (that paper's section 4.1), so that the
    bound holds for any losses.

    Args:
        losses: (n_c, S) for each condition; the chosen setting satisfies each.
        alpha: the expected risk allowed.

    Returns:
        Index of a setting; None if not even the first is safe enough.
    """
    last = []
    for of_one in losses:
        rising = numpy.maximum.accumulate(numpy.asarray(of_one, dtype=numpy.float64), axis=1)
        corrected = (rising.sum(0) + 1) / (len(rising) + 1)
        last.append(int((corrected <= alpha).sum()) - 1)
    return min(last) if min(last) >= 0 else None


def find_least_risk(num_examples: int, delta: float, method: str) -> float:
    """Find the least risk that can be guaranteed if no calibration example has any loss, to four decimals.

    Args:
        num_examples: number of calibration examples.
        delta: probability with which the bound may be missed; conformal risk control has none.
        method: a name of `P_VALUES`, or ``conformal``.
    """
    if method == "conformal":
        return 1 / (num_examples + 1)
    no_losses = numpy.zeros(num_examples)
    compute = choose_p_value(method, delta)
    low, high = 0.0, 1.0
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (low, middle) if compute(no_losses, middle) <= delta else (middle, high)
    return high


def average_by_group(losses: ArrayLike, groups: Sequence[str]) -> Floats:
    """Average (n, S) losses of recordings over each group, such as a speaker: (G, S), in order of first mention."""
    values = numpy.asarray(losses, dtype=numpy.float64)
    order = {name: index for index, name in enumerate(dict.fromkeys(groups))}
    places = numpy.array([order[name] for name in groups])
    sums = numpy.zeros((len(order), values.shape[1]))
    numpy.add.at(sums, places, values)
    return sums / numpy.bincount(places)[:, None]


def _divergence(a: float, b: float) -> float:
    """Compute the Kullback-Leibler divergence between Bernoulli distributions with means a and b, in nats."""
    terms = [x * math.log(x / y) for x, y in ((a, b), (1 - a, 1 - b)) if x > 0]
    return sum(terms)
