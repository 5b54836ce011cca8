import pytest
import torch

from daisy import PolicyError, policies

ALL = [
    policies.Entropy(threshold=0.5),
    policies.Plateau(min_improvement=0.05),
    policies.Plateau(min_improvement=0.2, patience=1, min_layer=1),
    policies.Plateau(min_improvement=0.1, patience=4, min_layer=2),
    policies.Fixed(layer=7),
    policies.Never(),
]


@pytest.mark.parametrize("policy", ALL, ids=repr)
def test_the_loop_and_a_full_run_agree(policy):
    """`decide` on prefixes, utterances leaving as they go, against `exit_layers` on the whole."""
    num_layers = 12
    scores = torch.rand(200, num_layers, generator=torch.Generator().manual_seed(1)).cummin(1).values
    exits = torch.full((200,), num_layers)
    active = torch.arange(200)
    for layer in range(1, num_layers):
        leave = policy.decide(dict.fromkeys(policy.reads, scores[active, :layer]), layer).expand(len(active))
        exits[active[leave]] = layer
        active = active[~leave]
    assert torch.equal(policy.exit_layers({"entropy": scores}), exits)


def test_entropy_leaves_at_the_first_low_enough_layer():
    scores = torch.tensor([[3.0, 2.0, 1.0, 0.5], [3.0, 1.0, 2.0, 0.1], [0.2, 0.1, 0.1, 0.1], [9.0, 9.0, 9.0, 9.0]])
    assert policies.Entropy(threshold=1.0).exit_layers({"entropy": scores}).tolist() == [3, 2, 1, 4]


def test_plateau_measures_relative_improvement_over_patience_layers():
    falling = [4.0, 3.0, 2.0, 1.9, 1.85, 1.84, 1.0, 0.9]
    scores = {"entropy": torch.tensor([falling])}
    # over two layers: 3: 0.5, 4: 0.367, 5: 0.075, 6: 0.032
    assert policies.Plateau(min_improvement=0.1).exit_layers(scores).tolist() == [5]
    assert policies.Plateau(min_improvement=0.05).exit_layers(scores).tolist() == [6]
    assert policies.Plateau(min_improvement=0.1, min_layer=6).exit_layers(scores).tolist() == [6]
    assert policies.Plateau(min_improvement=0.1, patience=1).exit_layers(scores).tolist() == [4]


def test_a_nan_score_never_lets_leave_before_the_end():
    scores = {"entropy": torch.full((2, 5), torch.nan)}
    assert policies.Entropy(threshold=1.0).exit_layers(scores).tolist() == [5, 5]


def test_every_policy_is_held_to_these_tests():
    assert {policy.name for policy in ALL} == set(policies.POLICIES)


@pytest.mark.parametrize("policy", ALL, ids=repr)
def test_configuration_round_trip(policy):
    assert policies.from_config(policy.to_config()) == policy


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("entropi", {}, "unknown policy 'entropi': did you mean entropy?"),
        ("entropy", {}, "policy entropy needs threshold"),
        ("entropy", {"treshold": 1}, "unknown setting 'treshold': did you mean threshold?"),
        ("entropy", {"threshold": -1}, "threshold must be at least 0 nats, found -1"),
        ("fixed", {"layer": 0}, "layer must be at least 1, found 0"),
        ("plateau", {"min_improvement": 0.1, "patience": 0}, "patience must be at least 1 layer, found 0"),
        ("plateau", {"min_improvement": 0.1, "patience": 1.5}, "patience must be a whole number, found 1.5"),
        ("plateau", {"min_improvement": float("nan")}, "min_improvement must be a finite number, found nan"),
        ("entropy", {"threshold": "low"}, "threshold must be a finite number, found 'low'"),
        ("fixed", {"layer": 2.0}, "layer must be a whole number, found 2.0"),
    ],
)
def test_wrong_settings_are_refused_in_one_line(name, settings, message):
    with pytest.raises(PolicyError) as error:
        policies.make(name, settings)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
