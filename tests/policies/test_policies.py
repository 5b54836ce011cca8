import dataclasses
import json

import pytest
import torch

from daisy import PolicyError, policies
from tests.policies.examples import ALL, LAYERS, SCORE_NAMES, hide_first


def drawn(count=200):
    """(B, L) of every score that a policy reads."""
    generator = torch.Generator().manual_seed(1)
    scores = {name: torch.rand(count, LAYERS, generator=generator) for name in SCORE_NAMES}
    scores["entropy"] = scores["entropy"].cummin(1).values
    hide_first(scores)
    for name, values in (("num_frames", torch.randint(10, 400, (count, 1))), ("draw", torch.rand(count, 1))):
        scores[name] = values.float().expand(count, LAYERS)
    return scores


@pytest.mark.parametrize("policy", ALL, ids=repr)
def test_the_loop_and_a_full_run_agree(policy):
    """`decide` on prefixes, utterances leaving as they go, against `exit_layers` on the whole."""
    scores = drawn()
    policy.check(LAYERS)
    exits = torch.full((200,), LAYERS)
    active = torch.arange(200)
    for layer in range(1, LAYERS):
        prefixes = {name: scores[name][active, :layer] for name in policy.reads}
        leave = policy.decide(prefixes, layer).expand(len(active))
        exits[active[leave]] = layer
        active = active[~leave]
        if not len(active):
            break
    assert torch.equal(policy.exit_layers(scores), exits)
    assert isinstance(policy, policies.Never | policies.Fixed | policies.Window) or len(exits.unique()) > 1


def test_entropy_leaves_at_the_first_low_enough_layer():
    scores = torch.tensor([[3.0, 2.0, 1.0, 0.5], [3.0, 1.0, 2.0, 0.1], [0.2, 0.1, 0.1, 0.1], [9.0, 9.0, 9.0, 9.0]])
    assert policies.Entropy(threshold=1.0).exit_layers({"entropy": scores}).tolist() == [3, 2, 1, 4]


def test_one_threshold_for_each_layer():
    scores = torch.tensor([[3.0, 2.0, 1.0, 0.5], [3.0, 1.0, 2.0, 0.1]])
    assert policies.Entropy(threshold=(0.0, 1.5, 0.0, 0.0)).exit_layers({"entropy": scores}).tolist() == [4, 2]
    with pytest.raises(PolicyError, match="threshold is for 4 layers, not for 12"):
        policies.Entropy(threshold=(0.0, 1.5, 0.0, 0.0)).check(12)


def test_policies_without_scores_take_the_number_of_exits_from_any():
    assert policies.Fixed(layer=3).exit_layers({"entropy": torch.zeros(2, 4)}).tolist() == [3, 3]
    with pytest.raises(PolicyError, match="of how many runs is unknown"):
        policies.Never().exit_layers({})
    with pytest.raises(PolicyError, match="fixed"):
        policies.Fixed(layer=30).exit_layers({"entropy": torch.zeros(2, 4)})


def test_a_forecast_has_numbers_to_go_by():
    known = {"price": 0.1, "features": ("entropy",), "weights": (((0.5,),),), "intercepts": ((0.0,),)}
    assert policies.Forecast(**known).exit_layers({"entropy": torch.tensor([[1.0, 0.0], [0.0, 0.0]])}).tolist() == [
        2,
        1,
    ]
    with pytest.raises(PolicyError, match="features must be names"):
        policies.Forecast(**{**known, "features": (), "weights": (((),),)})
    for name, bad in (("weights", (((float("nan"),),),)), ("intercepts", ((float("inf"),),))):
        with pytest.raises(PolicyError, match="the weights of layer 1 are not all finite"):
            policies.Forecast(**{**known, name: bad})


def test_confidence_leaves_where_it_is_high():
    scores = torch.tensor([[0.2, 0.6, 0.9, 0.9], [0.1, 0.1, 0.1, 0.1]])
    assert policies.Confidence(threshold=0.6).exit_layers({"confidence": scores}).tolist() == [2, 4]


def test_patience_wants_stable_units_in_a_row():
    nan = torch.nan
    change = {"change": torch.tensor([[nan, 0.1, 0.5, 0.1, 0.1, 0.1], [nan, 0.5, 0.1, 0.1, 0.5, 0.5]])}
    assert policies.Patience(tolerance=0.2).exit_layers(change).tolist() == [2, 3]
    assert policies.Patience(tolerance=0.2, patience=2).exit_layers(change).tolist() == [5, 4]
    assert policies.Patience(tolerance=0.2, patience=3).exit_layers(change).tolist() == [6, 6]


def test_looking_ahead_weighs_gains_against_layers():
    scores = {"entropy": torch.tensor([[2.0, 1.0, 0.5]]), "change": torch.tensor([[torch.nan, 0.5, 0.25]])}
    weights = (((1.0, 0.0), (2.0, 0.0)), ((0.5, 1.0, 0.0, 2.0),))
    policy = policies.Forecast(
        price=3.0, features=("entropy", "change"), weights=weights, intercepts=((0.1, 0.0), (-2.5,))
    )
    assert policy.gains(scores, 1).tolist() == [pytest.approx([2.1, 4.0])]  # at layers 2 and 3
    assert policy.gains(scores, 2).tolist() == [pytest.approx([0.5 * 2 + 1 * 1 + 2 * 0.5 - 2.5])]
    assert policy.exit_layers(scores).tolist() == [1]  # neither 2.1 for one layer nor 4.0 for two is worth 3 each
    assert dataclasses.replace(policy, price=2.05).exit_layers(scores).tolist() == [2]
    assert dataclasses.replace(policy, price=0.4).exit_layers(scores).tolist() == [3]
    with pytest.raises(PolicyError, match="learnt on a model of 3 layers, this one has 12"):
        policy.check(12)
    with pytest.raises(PolicyError, match="the weights of layer 1 are"):
        dataclasses.replace(policy, features=("entropy",))


def test_a_deadline_leaves_at_the_deepest_layer_that_fits():
    scores = {"num_frames": torch.tensor([[10.0] * 6, [100.0] * 6, [1000.0] * 6])}
    policy = policies.Deadline(budget=400.0, front_cost=(0.0, 1.0, 0.0), layer_cost=(0.0, 0.5, 0.001))
    # layers cost 5.1, 60 and 1500 beside fronts of 10, 100 and 1000
    assert policy.exit_layers(scores).tolist() == [6, 5, 1]
    assert dataclasses.replace(policy, budget=280.0).exit_layers(scores).tolist() == [6, 3, 1]
    scores["entropy"] = torch.tensor([[1.0, 0.1, 0.1, 0.1, 0.1, 0.1]] * 3)
    with_rule = dataclasses.replace(policy, then=policies.Entropy(threshold=0.5))
    assert with_rule.exit_layers(scores).tolist() == [2, 2, 1]


def test_a_deadline_counts_the_layers_between_exits():
    scores = {"num_frames": torch.tensor([[10.0] * 3, [100.0] * 3])}
    policy = policies.Deadline(budget=300.0, front_cost=(0.0, 1.0, 0.0), layer_cost=(0.0, 0.5, 0.0), layers=(1, 4, 6))
    # 100 frames: a front of 100 and layers of 50, so that 4 layers fit and 6 do not
    assert policy.exit_layers(scores).tolist() == [3, 2]
    assert dataclasses.replace(policy, budget=299.0).exit_layers(scores).tolist() == [3, 1]
    with pytest.raises(PolicyError, match="is for 3 exits, not for 12"):
        policy.check(12)
    with pytest.raises(PolicyError, match="layers must be rising whole numbers"):
        dataclasses.replace(policy, layers=(4, 1, 6))


def test_random_exits_follow_the_histogram():
    scores = {"draw": torch.linspace(0, 0.9999, 1000)[:, None].expand(-1, 4)}
    exits = policies.Random(histogram=(1, 0, 2, 1)).exit_layers(scores)
    assert torch.bincount(exits, minlength=5).tolist() == [0, 250, 0, 500, 250]


def test_the_published_window_lets_a_batch_leave_together():
    scores = {"entropy": torch.tensor([[1.0, 0.2, 0.2, 0.2, 0.2], [4.0, 4.0, 1.0, 1.0, 1.0]])}
    scores["num_frames"] = torch.tensor([[30.0] * 5, [10.0] * 5])
    # means over all frames: 1.75, 1.15, 0.4, ...
    window = lambda threshold: policies.Window(threshold=threshold, first=2, last=4).exit_layers(scores).tolist()  # noqa: E731
    assert window(2.0) == [2, 2]
    assert window(0.5) == [3, 3]
    assert window(0.1) == [4, 4]


def test_a_nan_score_never_lets_leave_before_the_end():
    scores = {"entropy": torch.full((2, 5), torch.nan)}
    assert policies.Entropy(threshold=1.0).exit_layers(scores).tolist() == [5, 5]


def test_every_policy_is_held_to_these_tests():
    assert {policy.name for policy in ALL} == set(policies.POLICIES)


@pytest.mark.parametrize("policy", ALL, ids=repr)
def test_configuration_round_trip(policy):
    assert policies.from_config(policy.to_config()) == policy
    assert policies.from_config(json.loads(json.dumps(policy.to_config()))) == policy


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("entropi", {}, "unknown policy 'entropi': did you mean entropy?"),
        ("entropy", {}, "policy entropy needs threshold"),
        ("entropy", {"treshold": 1}, "unknown setting 'treshold': did you mean threshold?"),
        ("entropy", {"threshold": -1}, "threshold must be at least 0 nats, found -1"),
        ("fixed", {"layer": 0}, "layer must be at least 1, found 0"),
        ("patience", {"tolerance": 0.1, "patience": 0}, "patience must be at least 1, found 0"),
        ("patience", {"tolerance": 0.1, "patience": 1.5}, "patience must be a whole number, found 1.5"),
        ("patience", {"tolerance": float("nan")}, "tolerance must be a finite number, found nan"),
        ("random", {"histogram": 1.0}, "histogram must be a list of numbers, found 1.0"),
        (
            "deadline",
            {"budget": 1.0, "front_cost": 1.0, "layer_cost": [1, 1, 1]},
            "front_cost must be a list of numbers",
        ),
        (
            "deadline",
            {"budget": 1.0, "front_cost": [1, 1, 1], "layer_cost": [1, 1, 1], "then": "fixed"},
            "must be a policy",
        ),
        ("forecast", {"price": 1.0, "features": ["entropy"], "weights": 1, "intercepts": [[0.0]]}, "must be numbers"),
        (
            "forecast",
            {"price": 1.0, "features": 3, "weights": [[[1.0]]], "intercepts": [[0.0]]},
            "features must be names",
        ),
        ("score", {"column": 3, "threshold": 1.0}, "column must be a score's name, found 3"),
        ("score", {"column": "trust", "threshold": 1.0, "below": "no"}, "below must be true or false, found 'no'"),
        (
            "deadline",
            {"budget": 1.0, "front_cost": [1, 1, 1], "layer_cost": [1, 1, 1], "layers": 3},
            "layers must be a list of numbers, found 3",
        ),
        ("random", {"histogram": [0.0, 0.0]}, "histogram must be frequencies, some above 0"),
        ("entropy", {"threshold": "low"}, "threshold must be a finite number, found 'low'"),
        ("fixed", {"layer": 2.0}, "layer must be a whole number, found 2.0"),
    ],
)
def test_wrong_settings_are_refused_in_one_line(name, settings, message):
    with pytest.raises(PolicyError) as error:
        policies.make_policy(name, settings)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
