import dataclasses

import numpy
import pytest
import torch

from daisy.calibration.depth import mean_depth
from daisy.calibration.traces import Traces
from daisy.errors import UsageError
from daisy.evaluation import comparison, study

LAYERS = 6


@pytest.fixture(scope="module")
def traces():
    """Half of the utterances are done at layer 2, the others at layer 5; a score tells them apart."""
    generator = torch.Generator().manual_seed(0)
    easy = torch.arange(400) % 2 == 0
    layers = torch.arange(1, LAYERS + 1)
    done = torch.where(easy[:, None], layers >= 2, layers >= 5)
    loss = torch.where(done, 0.1, 0.6) + 0.02 * torch.rand(400, LAYERS, generator=generator)
    return Traces(
        utterances=tuple(map(str, range(400))),
        groups=tuple(str(index // 8) for index in range(400)),
        conditions=("clean", "noise 0 dB") * 200,
        scores={"entropy": loss + 0.01 * torch.rand(400, LAYERS, generator=generator)},
        losses={"disagreement": loss},
        weights=torch.ones(400),
        costs=layers.float(),
        layers=tuple(range(1, LAYERS + 1)),
    )


def test_runs_without_weight_leave_intervals_that_are_numbers(traces):
    """Of two speakers one counts; of four each resampling without the two who count is left out."""
    for groups, counts in ((("a", "b") * 200, (0.0, 1.0) * 200), (("a", "b", "c", "d") * 100, (1.0, 1.0, 0, 0) * 100)):
        weighted = dataclasses.replace(traces, groups=groups, weights=torch.tensor(counts))
        verdict = comparison.evaluate("x", torch.where(torch.tensor(counts) > 0, 4, 2), weighted)
        loss = traces.losses["disagreement"][torch.tensor(counts) > 0, 3]
        estimate = verdict.losses["disagreement"]
        assert estimate.mean == pytest.approx(float(loss.mean()))
        assert estimate.low <= estimate.mean <= estimate.high
        assert (estimate.low == estimate.high) == (counts[1] > counts[0])
        assert verdict.by_exit_layer["disagreement"][1] is None
        assert all(numpy.isfinite(gain) for gain in verdict.gain_over_random["disagreement"])


def test_a_condition_without_any_weight_is_refused(traces):
    weighted = dataclasses.replace(traces, weights=torch.tensor([1.0, 0.0] * 200))
    with pytest.raises(UsageError) as error:
        comparison.evaluate_by_condition("x", torch.full((400,), 3), weighted)
    assert str(error.value) == (
        "disagreement, noise 0 dB: all runs have weight 0, so that there is no mean; leave them out"
    )


def test_a_verdict_against_its_definition(traces):
    exits = torch.where(torch.arange(400) % 2 == 0, 2, 5)
    verdict = comparison.evaluate("x", exits, traces)
    loss = traces.losses["disagreement"]
    assert verdict.depth == pytest.approx(3.5 / 6)
    assert verdict.mean_exit_layer.mean == 3.5
    assert verdict.histogram == (0, 200, 0, 0, 200, 0)
    assert verdict.losses["disagreement"].mean == pytest.approx(float(loss.gather(1, exits[:, None] - 1).mean()))
    static = loss.mean(0)
    assert verdict.fixed["disagreement"] == pytest.approx(float(static[2] + static[3]) / 2)  # half way from 3 to 4
    assert verdict.random["disagreement"] == pytest.approx(float(static[1] + static[4]) / 2)
    left_at_2, left_at_5 = loss[::2, 1], loss[1::2, 4]
    by_layer = verdict.by_exit_layer["disagreement"]
    assert by_layer == (
        None,
        pytest.approx(float(left_at_2.mean())),
        None,
        None,
        pytest.approx(float(left_at_5.mean())),
        None,
    )
    gain = verdict.gain["disagreement"]
    assert gain.mean == pytest.approx(verdict.fixed["disagreement"] - verdict.losses["disagreement"].mean)
    assert gain.low < gain.mean < gain.high


def test_weights_count(traces):
    weights = torch.where(torch.arange(400) % 2 == 0, 3.0, 1.0)
    verdict = comparison.evaluate("x", torch.full((400,), 3), dataclasses.replace(traces, weights=weights))
    loss = traces.losses["disagreement"][:, 2]
    assert verdict.losses["disagreement"].mean == pytest.approx(float((loss * weights).sum() / weights.sum()))


def test_who_sends_long_runs_deeper_gains_nothing():
    """Long runs hold 95 % of the words, losses know of no length: at the words' own depth nothing is won."""
    generator = torch.Generator().manual_seed(0)
    is_long = torch.arange(400) % 2 == 0
    loss = torch.rand(400, 1, generator=generator) * torch.linspace(1, 0, LAYERS)
    table = Traces(
        utterances=tuple(map(str, range(400))),
        groups=tuple(str(index // 8) for index in range(400)),
        conditions=("clean",) * 400,
        scores={},
        losses={"word_errors": loss, "disagreement": loss},
        weights=torch.ones(400),
        costs=torch.arange(1, LAYERS + 1).float(),
        layers=tuple(range(1, LAYERS + 1)),
        weights_by_loss={"word_errors": torch.where(is_long, 190.0, 10.0)},
    )
    exits = torch.where(is_long, LAYERS, 3)
    verdict = comparison.evaluate("x", exits, table)
    assert verdict.depth == verdict.depths["disagreement"] == pytest.approx(0.75)
    assert verdict.depths["word_errors"] == pytest.approx(0.975)
    for loss_name in table.losses:
        for gain in (verdict.gain[loss_name], verdict.gain_over_random[loss_name]):
            assert gain.low < 0.003
            assert abs(gain.mean) < 0.03
    flat = dataclasses.replace(table, losses={"word_errors": loss[:, :1] * 0 + torch.linspace(1, 0, LAYERS)})
    verdict = comparison.evaluate("x", exits, flat)
    assert verdict.losses["word_errors"].mean == pytest.approx(0.05 * 0.6)
    for gain in (verdict.gain["word_errors"], verdict.gain_over_random["word_errors"]):
        assert (gain.mean, gain.low, gain.high) == pytest.approx((0, 0, 0), abs=1e-6)


def test_intervals_resample_groups():
    """Speakers that differ and whose utterances are all alike: the interval is that of 25 speakers, not of 500 runs."""
    generator = numpy.random.default_rng(0)
    level = generator.random(25).repeat(20)
    table = Traces(
        utterances=tuple(map(str, range(500))),
        groups=tuple(str(index // 20) for index in range(500)),
        conditions=("clean",) * 500,
        scores={},
        losses={"loss": torch.tensor(level)[:, None].expand(-1, 2).float()},
        weights=torch.ones(500),
        costs=torch.tensor([1.0, 2.0]),
        layers=(1, 2),
    )
    loss = comparison.evaluate("x", torch.ones(500, dtype=torch.int64), table).losses["loss"]
    expected = 2 * 1.96 * level.std() / 25**0.5
    assert loss.high - loss.low == pytest.approx(expected, rel=0.15)


def test_a_static_cut_gains_nothing_over_itself(traces):
    for layer in range(1, LAYERS + 1):
        gain = comparison.evaluate("fixed", torch.full((400,), layer), traces).gain["disagreement"]
        assert (gain.mean, gain.low, gain.high) == pytest.approx((0, 0, 0), abs=1e-9)


def test_hindsight_is_the_best_there_is(traces):
    exits = comparison.find_best_exits(traces, 3.5 / 6, "disagreement")
    assert mean_depth(exits, traces) <= 3.5 / 6 + 1e-9
    bound = comparison.evaluate("hindsight", exits, traces).losses["disagreement"].mean
    tune, test = traces.halves(0)
    names, targets = ["entropy", "forecast", "plateau"], [0.4, 3.5 / 6]
    frontier = list(comparison.trace_frontier(tune, test, names, targets, "disagreement"))
    assert len(frontier) == len(names) * len(targets)
    for target, verdict in frontier:
        loss = verdict.losses["disagreement"].mean
        cheap = comparison.find_best_exits(test, verdict.depth, "disagreement")
        assert loss >= comparison.evaluate("hindsight", cheap, test).losses["disagreement"].mean - 0.01
        if target > 0.5:
            assert loss < verdict.fixed["disagreement"] - 0.1
            assert loss >= bound - 0.01


def test_a_study_names_its_conditions(traces):
    tune, test = traces.halves(1)
    compared = study.compare_policies(tune, test, depth=0.6, depths=[0.6])
    assert set(compared.policies) == {"entropy", "forecast", "plateau", "agreement", "fixed"}
    assert [v.condition for v in compared.evaluations[:3]] == ["all", "clean", "noise 0 dB"]
    rows = study.to_rows(compared)
    assert {row["policy"] for row in rows} == {*compared.policies, "hindsight"}
    frontier = [row for row in rows if row["target_depth"] is not None]
    assert len(frontier) == 6
    assert compared.layers["clean"]["disagreement"] == pytest.approx(
        test.of_condition("clean").losses["disagreement"].mean(0).tolist()
    )


def test_the_loss_of_each_layer_is_weighted_as_all_others(traces):
    tune, test = traces.halves(1)
    weights = torch.where(test.losses["disagreement"][:, 0] > 0.615, 50.0, 1.0)
    weighted = dataclasses.replace(test, weights=weights)
    compared = study.compare_policies(tune, weighted, names=["fixed"], depth=0.5, depths=[])
    clean = weighted.of_condition("clean")
    expected = (clean.losses["disagreement"] * clean.weights[:, None]).sum(0) / clean.weights.sum()
    assert compared.layers["clean"]["disagreement"] == pytest.approx(expected.tolist())
    assert abs(expected - clean.losses["disagreement"].mean(0)).max() > 0.003


def test_spearman_over_conditions():
    def verdict(condition, layer):
        table = Traces(
            utterances=("a",),
            groups=("a",),
            conditions=(condition,),
            scores={},
            losses={"loss": torch.zeros(1, 6)},
            weights=torch.ones(1),
            costs=torch.arange(1, 7).float(),
            layers=(1, 2, 3, 4, 5, 6),
        )
        return comparison.evaluate("p", torch.tensor([layer]), table, condition)

    rising = [verdict("clean", 2), verdict("rain 10 dB", 3), verdict("rain 0 dB", 5)]
    assert study.correlate_with_snr(rising, "p", "rain", [10.0, 0.0]) == pytest.approx(-1)
    turned = [verdict("clean", 3), verdict("rain 10 dB", 2), verdict("rain 0 dB", 5)]
    assert study.correlate_with_snr(turned, "p", "rain", [10.0, 0.0]) == pytest.approx(-0.5)
    flat = [verdict("clean", 3), verdict("rain 10 dB", 3), verdict("rain 0 dB", 3)]
    assert numpy.isnan(study.correlate_with_snr(flat, "p", "rain", [10.0, 0.0]))


def test_spearman_gives_ties_their_mean_rank():
    """Three conditions at one layer: the order in which they are given must not count."""

    def verdicts(levels):
        table = Traces(
            utterances=("a",),
            groups=("a",),
            conditions=("x",),
            scores={},
            losses={"loss": torch.zeros(1, 6)},
            weights=torch.ones(1),
            costs=torch.arange(1, 7).float(),
            layers=(1, 2, 3, 4, 5, 6),
        )
        return [comparison.evaluate("p", torch.tensor([layer]), table, condition) for condition, layer in levels]

    evaluations = verdicts([("clean", 3), ("rain 20 dB", 4), *((f"rain {snr} dB", 6) for snr in (10, 5, 0))])
    snrs = [20.0, 10.0, 5.0, 0.0]
    down, up = (study.correlate_with_snr(evaluations, "p", "rain", levels) for levels in (snrs, snrs[::-1]))
    assert down == pytest.approx(up) == pytest.approx(-0.8944, abs=1e-4)


def test_tables_that_do_not_fit_are_refused(traces):
    with pytest.raises(UsageError, match="judged on speakers that they were tuned on"):
        study.compare_policies(traces, traces)
    tune, test = traces.halves(0)
    with pytest.raises(UsageError, match="other layers"):
        study.compare_policies(dataclasses.replace(tune, layers=(2, 4, 6, 8, 10, 12)), test)


def test_exits_are_counted_in_the_models_own_layers(traces):
    sparse = dataclasses.replace(traces, layers=(2, 4, 6, 8, 10, 12))
    assert comparison.evaluate("x", torch.full((400,), 3), sparse).mean_exit_layer.mean == 6.0


def test_any_score_is_compared(traces):
    """A column of a name nobody knows, that is high where the loss is low."""
    strange = dataclasses.replace(traces, scores={"trust": -5 * traces.losses["disagreement"]})
    tune, test = strange.halves(0)
    compared = study.compare_policies(tune, test, depths=[0.6])
    assert set(compared.policies) == {"trust", "fixed"}
    by_name = {verdict.policy: verdict for _, verdict in compared.frontier}
    assert by_name["trust"].gain["disagreement"].mean > 0.1
    assert not compared.policies["trust"].below


def test_a_score_that_the_first_layer_lacks_is_compared(traces):
    """Low where the loss is low, and NaN at layer 1, as the change to the layer before is."""
    change = traces.losses["disagreement"] + 0.1
    change[:, 0] = float("nan")
    tune, test = dataclasses.replace(traces, scores={"shift": change}).halves(0)
    compared = study.compare_policies(tune, test, names=["shift"], depths=[0.6])
    assert compared.policies["shift"].below
    by_name = {verdict.policy: verdict for _, verdict in compared.frontier}
    assert by_name["shift"].gain["disagreement"].mean > 0.1


def test_weights_count_in_hindsight(traces):
    weights = torch.where(torch.arange(400) % 2 == 0, 1.0, 10.0)
    weighted = dataclasses.replace(traces, weights=weights)
    exits = comparison.find_best_exits(weighted, 0.6, "disagreement")
    best = comparison.evaluate("hindsight", exits, weighted).losses["disagreement"].mean
    for others in ((2, 5), (5, 2), (1, 6), (3, 4)):
        tried = torch.where(torch.arange(400) % 2 == 0, *others)
        if comparison.evaluate("x", tried, weighted).depths["disagreement"] > 0.6:
            continue
        assert best <= comparison.evaluate("x", tried, weighted).losses["disagreement"].mean + 1e-6
