"""Validity by Monte Carlo against closed forms; no test here needs audio or a model."""

import math

import numpy
import pytest

from daisy.calibration import risk

ALPHA, DELTA = 0.1, 0.1


@pytest.fixture
def binom():
    """scipy's binomial distribution, which takes two seconds to import."""
    from scipy.stats import binom

    return binom


def two_point(rng, mean, count):
    """Losses of 0 and 1."""
    return (rng.random(count) < mean).astype(float)


def small(rng, mean, count):
    """Losses of low variance about their mean."""
    return numpy.clip(rng.normal(mean, 0.02, count), 0, 1)


def skewed(rng, mean, count):
    """Mostly nothing, now and then a large loss."""
    return rng.beta(0.2, 0.2 * (1 - mean) / mean, count)


@pytest.mark.parametrize("p_value", risk.P_VALUES.values(), ids=risk.P_VALUES)
@pytest.mark.parametrize("draw", [two_point, small, skewed])
def test_p_values_are_valid_where_the_risk_is_just_too_high(p_value, draw):
    rng = numpy.random.default_rng(0)
    p = numpy.array([p_value(draw(rng, ALPHA, 200), ALPHA) for _ in range(2000)])
    for level in (0.02, 0.1, 0.3):
        share = (p <= level).mean()
        assert share <= level + 3 * math.sqrt(level * (1 - level) / len(p)), (level, share)


@pytest.mark.parametrize(
    ("draw", "method", "power"),
    [
        (two_point, "hoeffding-bentkus", 0.80),
        (two_point, "betting", 0.80),
        (small, "hoeffding-bentkus", 0.99),
        (small, "betting", 0.99),
    ],
)
def test_p_values_have_power(draw, method, power):
    rng = numpy.random.default_rng(1)
    p = numpy.array([risk.P_VALUES[method](draw(rng, 0.04, 200), ALPHA) for _ in range(500)])
    assert (p <= DELTA).mean() > power


def test_betting_gains_where_losses_vary_little():
    """Hoeffding-Bentkus sees only the mean, betting the small variance too."""
    rng = numpy.random.default_rng(2)
    p = {name: [f(small(rng, 0.06, 100), ALPHA) for _ in range(200)] for name, f in risk.P_VALUES.items()}
    assert numpy.median(p["betting"]) < 0.2 * numpy.median(p["hoeffding-bentkus"])


def test_hoeffding_bentkus_of_known_losses(binom):
    losses = numpy.array([1.0] * 3 + [0.0] * 97)
    bentkus = math.e * binom.cdf(3, 100, 0.1)
    hoeffding = math.exp(-100 * (0.03 * math.log(0.3) + 0.97 * math.log(0.97 / 0.9)))
    assert risk.hoeffding_bentkus(losses, 0.1) == pytest.approx(min(bentkus, hoeffding))
    assert risk.hoeffding_bentkus(numpy.ones(10), 0.1) == 1.0
    assert risk.hoeffding_bentkus(numpy.zeros(50), 0.1) == pytest.approx(0.9**50)  # Hoeffding's, (1 - alpha)^n


def graded(rng, risks, count):
    """Losses of 0 and 1 under settings of known, rising risks, from the same draw for each example."""
    return (rng.random((count, 1)) < numpy.asarray(risks)).astype(float)


@pytest.mark.parametrize("p_value", risk.P_VALUES.values(), ids=risk.P_VALUES)
def test_learn_then_test_holds_its_promise(p_value):
    """Violations are rarer than delta. Returning the first setting that fails, as a public implementation does, would
    break it already on so coarse a grid."""
    rng = numpy.random.default_rng(3)
    risks = [0.005, 0.01, 0.02, 0.03, 0.045, 0.055, 0.08]
    chosen = [risk.learn_then_test([graded(rng, risks, 500)], 0.05, 0.1, p_value) for _ in range(1000)]
    violations = sum(index is not None and risks[index] > 0.05 for index in chosen) / len(chosen)
    assert violations <= DELTA
    assert sum(index is not None and index >= 2 for index in chosen) > 900  # and it is not idle
    first_failing = [min((-1 if index is None else index) + 1, 6) for index in chosen]
    assert sum(risks[index] > 0.05 for index in first_failing) / len(chosen) > DELTA


def test_on_the_boundary_it_is_near_delta(binom):
    """A setting of exactly too much risk, after one of none: the share of violations is the test's own level."""
    rng = numpy.random.default_rng(4)
    violated = [risk.learn_then_test([graded(rng, [0.0, 0.1], 300)], 0.1, 0.1) == 1 for _ in range(2000)]
    critical = next(k for k in range(300) if risk.hoeffding_bentkus([1.0] * (k + 1) + [0.0] * (299 - k), 0.1) > 0.1)
    level = binom.cdf(critical, 300, 0.1)
    assert numpy.mean(violated) == pytest.approx(level, abs=4 * math.sqrt(level * (1 - level) / 2000))
    assert level <= 0.1


def test_conditions_must_all_hold():
    rng = numpy.random.default_rng(5)
    easy, hard = [0.001, 0.002, 0.003, 0.004], [0.001, 0.004, 0.3, 0.4]
    assert risk.learn_then_test([graded(rng, easy, 400)], 0.05, 0.1) == 3
    assert risk.learn_then_test([graded(rng, easy, 400), graded(rng, hard, 400)], 0.05, 0.1) == 1
    assert risk.learn_then_test([graded(rng, [0.2, 0.3], 400)], 0.05, 0.1) is None
    assert risk.conformal([graded(rng, easy, 400), graded(rng, hard, 400)], 0.05) == 1
    assert risk.conformal([graded(rng, [0.2, 0.3], 400)], 0.05) is None


def test_many_conditions_need_no_correction():
    """Five conditions of which one's risk is too high: violations stay below delta without dividing it."""
    rng = numpy.random.default_rng(6)
    chosen = [
        risk.learn_then_test([graded(rng, [0.1 if index == 2 else 0.02], 200) for index in range(5)], 0.1, 0.1)
        for _ in range(1000)
    ]
    assert sum(index is not None for index in chosen) / 1000 <= 0.1 + 3 * math.sqrt(0.09 / 1000)


def test_conformal_risk_control_bounds_the_expected_risk():
    """Over calibration sets, with losses that are not monotone: the mean risk of the choice is below alpha."""
    rng = numpy.random.default_rng(7)
    risks = numpy.linspace(0.0, 0.3, 61)

    def losses(count):
        rising = graded(rng, risks, count)
        return numpy.where(rng.random(rising.shape) < 0.02, 0.0, rising)  # now and then cheaper is better

    chosen = [risk.conformal([losses(100)], 0.1) for _ in range(1000)]
    mean = numpy.mean([0.98 * risks[index] for index in chosen if index is not None])
    assert 0.075 < mean <= 0.1


@pytest.mark.parametrize("method", ["betting", "hoeffding-bentkus"])
@pytest.mark.parametrize("count", [5, 9, 40])
def test_the_least_risk_is_certified_and_a_lower_one_is_not(method, count):
    least = risk.find_least_risk(count, 0.1, method)
    p_value = risk.choose_p_value(method, 0.1)
    no_losses = [numpy.zeros((count, 1))]
    assert risk.learn_then_test(no_losses, least, 0.1, p_value) == 0
    assert risk.learn_then_test(no_losses, least - 0.001, 0.1, p_value) is None
    assert least >= 1 - 0.1 ** (1 / count) - 1e-4


def test_the_least_expected_risk_is_that_of_one_more_example():
    assert risk.find_least_risk(9, 0.1, "conformal") == 0.1
    assert risk.conformal([numpy.zeros((9, 1))], 0.1) == 0
    assert risk.conformal([numpy.zeros((9, 1))], 0.0999) is None


def test_groups_are_averaged():
    losses = [[0.0, 1.0], [1.0, 1.0], [0.5, 0.0]]
    numpy.testing.assert_allclose(risk.average_by_group(losses, ["a", "a", "b"]), [[0.5, 1.0], [0.5, 0.0]])


def test_dependent_recordings_break_the_guarantee_and_groups_mend_it():
    """Ten recordings each of 30 speakers, a speaker's being all alike, and a risk that is too high."""
    rng = numpy.random.default_rng(8)
    names = [str(index // 10) for index in range(300)]
    alone, grouped = [], []
    for _ in range(500):
        losses = numpy.repeat(two_point(rng, 0.25, 30), 10)[:, None]
        alone.append(risk.learn_then_test([losses], 0.25, 0.1) is not None)
        grouped.append(risk.learn_then_test([risk.average_by_group(losses, names)], 0.25, 0.1) is not None)
    assert numpy.mean(alone) > 0.25
    assert numpy.mean(grouped) <= 0.1 + 3 * math.sqrt(0.09 / 500)
