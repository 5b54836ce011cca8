import dataclasses

import pytest
import torch

from daisy import PolicyError, policies
from daisy.calibration.depth import calibrate_depth, fit_window, mean_depth
from daisy.calibration.families import FAMILIES, TEXT_FAMILIES, fit_family
from daisy.calibration.traces import Traces
from daisy.policies.rules import LookAhead
from tests.conftest import TRACED_LAYERS as LAYERS

EVERY = (*FAMILIES, *TEXT_FAMILIES)


@pytest.mark.parametrize("name", [name for name in EVERY if name != "fixed"])
@pytest.mark.parametrize("target", [0.4, 0.6, 0.8])
def test_depth_on_the_given_audio_is_the_target(traces, name, target):
    policy = calibrate_depth(name, traces, target).policy
    assert policy.name == name
    policy.check(LAYERS)
    tolerance = 0.05 if isinstance(policy, LookAhead) else 0.015  # look-ahead is cross-fitted
    assert abs(mean_depth(policy.exit_layers(traces.scores), traces) - target) < tolerance
    assert policies.from_config(policy.to_config()) == policy


@pytest.mark.parametrize("name", [name for name in EVERY if name != "fixed"])
@pytest.mark.parametrize("target", [0.3, 0.5, 0.7])
def test_the_last_bits_of_scores_decide_nothing(traces, name, target):
    """As they differ between batches and machines: no threshold is one of the scores that it was set on."""
    policy = calibrate_depth(name, traces, target).policy
    generator = torch.Generator().manual_seed(0)
    nearly = {
        score: values * (1 + 1e-6 * (torch.rand(values.shape, generator=generator) - 0.5))
        for score, values in traces.scores.items()
    }
    assert policy.exit_layers(nearly).tolist() == policy.exit_layers(traces.scores).tolist()


@pytest.mark.parametrize("name", EVERY)
def test_families_go_from_all_layers_to_few(traces, name):
    family = fit_family(name, traces)
    depths = [mean_depth(family.exit_layers(place), traces) for place in (0.0, 0.2, 0.5, 0.8, 1.0)]
    assert depths[0] == 1.0
    assert depths == sorted(depths, reverse=True)
    assert depths[-1] < 0.35


def test_depth_counts_costs(traces):
    dear = dataclasses.replace(traces, costs=torch.arange(1, LAYERS + 1).float() ** 2)
    assert mean_depth(torch.tensor([6, 12]), dear) == pytest.approx((36 / 144 + 1) / 2)
    policy = calibrate_depth("entropy", dear, 0.5).policy
    assert mean_depth(policy.exit_layers(dear.scores), dear) == pytest.approx(0.5, abs=0.01)


def test_looking_ahead_learns_what_there_is_to_gain(traces):
    """Two kinds of audio: on one the loss falls at layer 6 and never again, on the other at layer 10."""
    early = torch.arange(200) % 2 == 0
    layers = torch.arange(1, LAYERS + 1)
    loss = torch.where(early[:, None], (layers < 6).float(), (layers < 10).float())
    generator = torch.Generator().manual_seed(0)
    hint = torch.where(early, 0.2, 0.8)[:, None] + 0.05 * torch.rand(200, LAYERS, generator=generator)
    table = Traces(
        utterances=tuple(map(str, range(200))),
        groups=tuple(map(str, range(200))),
        conditions=("clean",) * 200,
        scores={"entropy": hint},
        losses={"disagreement": loss},
        weights=torch.ones(200),
        costs=layers.float(),
        layers=tuple(range(1, LAYERS + 1)),
    )
    policy = calibrate_depth("forecast", table, 8 / 12).policy
    assert torch.equal(policy.exit_layers(table.scores), torch.where(early, 6, 10))


@pytest.mark.parametrize(("loss", "stays"), [("disagreement", 0), ("clean_disagreement", 1), ("mean_disagreement", 2)])
def test_forecast_keeps_the_units_it_is_asked_for(loss, stays):
    """Three kinds of audio, of which one loss falls most, the other, or both by a little less: all at layer 10."""
    kind = torch.arange(240) % 3
    layers = torch.arange(1, LAYERS + 1)
    falls = {"disagreement": torch.tensor([1.0, 0.0, 0.8]), "clean_disagreement": torch.tensor([0.0, 1.0, 0.8])}
    generator = torch.Generator().manual_seed(0)
    hints = {
        name: (kind == of)[:, None] + 0.05 * torch.rand(240, LAYERS, generator=generator)
        for name, of in (("entropy", 0), ("confidence", 1))
    }
    table = Traces(
        utterances=tuple(map(str, range(240))),
        groups=tuple(map(str, range(240))),
        conditions=("all",) * 240,
        scores=hints,
        losses={name: 1 - fall[kind][:, None] * (layers >= 10) for name, fall in falls.items()},
        weights=torch.ones(240),
        costs=layers.float(),
        layers=tuple(range(1, LAYERS + 1)),
    )
    policy = calibrate_depth("forecast", table, (10 + 1 + 1) / 3 / LAYERS, loss).policy
    assert torch.equal(policy.exit_layers(table.scores), torch.where(kind == stays, 10, 1))


def test_a_mean_of_losses_needs_both(traces):
    with pytest.raises(PolicyError, match="forecast needs clean_disagreement; the traces have"):
        fit_family("forecast", traces, "mean_disagreement")


def test_gains_are_foretold_from_what_was_executed_only(traces):
    policy = calibrate_depth("forecast", traces, 0.5).policy
    executed = {name: values[:5, :4] for name, values in traces.scores.items()}
    assert policy.gains(executed, 4).shape == (5, 8)
    true = traces.losses["disagreement"][:, 3:4] - traces.losses["disagreement"][:, 4:]
    predicted = policy.gains({name: values[:, :4] for name, values in traces.scores.items()}, 4)
    assert torch.corrcoef(torch.stack([true[:, -1], predicted[:, -1]]))[0, 1] > 0.9


def test_cross_fitting_does_not_see_what_it_judges():
    """With losses that are pure chance, forecasts of held-out utterances must find nothing."""
    generator = torch.Generator().manual_seed(1)
    loss = torch.rand(400, LAYERS, generator=generator)
    table = Traces(
        utterances=tuple(map(str, range(400))),
        groups=tuple(map(str, range(400))),
        conditions=("clean",) * 400,
        scores={name: torch.rand(400, LAYERS, generator=generator) for name in ("entropy", "confidence", "margin")},
        losses={"disagreement": loss},
        weights=torch.ones(400),
        costs=torch.arange(1, LAYERS + 1).float(),
        layers=tuple(range(1, LAYERS + 1)),
    )
    family = fit_family("forecast", table)
    for place in (0.3, 0.6):
        held_out = family.exit_layers(place)
        in_sample = family.at(place).exit_layers(table.scores)
        at_exit = [loss.gather(1, exits[:, None] - 1).mean() for exits in (held_out, in_sample)]
        assert abs(at_exit[0] - 0.5) < 0.06
        assert at_exit[1] < at_exit[0]  # what fitting and judging on the same utterances would have claimed


def test_agreement_holds_its_rate_at_every_layer(traces):
    policy = fit_family("agreement", traces).at(0.4)
    entropy, loss = traces.scores["entropy"], traces.losses["disagreement"]
    rates = []
    for layer, threshold in enumerate(policy.threshold[:-1]):
        accepted = entropy[:, layer] <= threshold
        if accepted.any():
            rates.append(float(loss[accepted, layer].mean()))
    assert len(rates) >= 8
    assert max(rates) - min(rates) < 0.02


def test_agreement_lets_nobody_leave_where_there_is_no_entropy(traces):
    entropy = traces.scores["entropy"].clone()
    entropy[:, 0] = torch.nan
    policy = fit_family("agreement", traces.with_scores({"entropy": entropy})).at(1.0)
    assert policy.threshold[0] == 0
    assert policy.exit_layers({"entropy": entropy}).min() == 2


def test_other_settings_are_kept(traces):
    policy = calibrate_depth("patience", traces, 0.6, patience=3).policy
    assert policy.patience == 3
    assert policy.exit_layers(traces.scores).min() >= 4


def test_fixed_goes_to_the_nearest_layer(traces):
    assert calibrate_depth("fixed", traces, 0.6).policy == policies.Fixed(layer=7)
    assert calibrate_depth("fixed", traces, 0.01).policy == policies.Fixed(layer=1)


def test_the_published_windows():
    histogram = [0, 1, 0, 5, 10, 4, 0, 0]  # mean exit 4.8
    assert fit_window(0.5, histogram) == policies.Window(threshold=0.5, first=4, last=5)
    assert fit_window(0.5, histogram, "min-max") == policies.Window(threshold=0.5, first=2, last=6)
    assert fit_window(0.5, histogram, "threshold") == policies.Window(threshold=0.5, first=4, last=6)
    with pytest.raises(PolicyError, match="histogram of exits is empty"):
        fit_window(0.5, [0.0, 0.0])


def test_refusals(traces):
    with pytest.raises(PolicyError, match=r"depth must be above 0 and at most 1, found 1\.2"):
        calibrate_depth("entropy", traces, 1.2)
    with pytest.raises(PolicyError, match="policy never has nothing to calibrate"):
        calibrate_depth("never", traces, 0.5)
    bare = dataclasses.replace(traces, scores={"entropy": traces.scores["entropy"]}, losses={})
    with pytest.raises(PolicyError, match="policy margin needs margin; the traces have entropy"):
        calibrate_depth("margin", bare, 0.5)
    with pytest.raises(PolicyError, match="policy forecast needs disagreement"):
        calibrate_depth("forecast", bare, 0.5)
