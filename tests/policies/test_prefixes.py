"""Every policy, with settings drawn by hypothesis, on scores of the layers so far and of full runs."""

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from daisy import policies
from daisy.policies.rules import LookAhead
from tests.policies.examples import DRAWN, FEW_LAYERS, SCORE_NAMES, hide_first, seeds, units

UTTERANCES = 20


def draw_scores(seed):
    """(B, L) of every score that a policy reads, from 0 to 1; some of the utterances tie."""
    generator = torch.Generator().manual_seed(seed)
    scores = {name: torch.rand(UTTERANCES, FEW_LAYERS, generator=generator).mul(8).round() / 8 for name in SCORE_NAMES}
    hide_first(scores)
    num_frames = torch.randint(1, 500, (UTTERANCES, 1), generator=generator).float()
    return scores | {
        "num_frames": num_frames.expand(-1, FEW_LAYERS),
        "draw": torch.rand(UTTERANCES, 1, generator=generator).expand(-1, FEW_LAYERS),
    }


def leave_layer_by_layer(policy, scores):
    """Exit layers as the encoder finds them: who left is not there any more, later layers are not known."""
    exits, active = torch.full((UTTERANCES,), FEW_LAYERS), torch.arange(UTTERANCES)
    for layer in range(1, FEW_LAYERS):
        prefixes = {name: scores[name][active, :layer] for name in policy.reads}
        leave = policy.decide(prefixes, layer).expand(len(active))
        exits[active[leave]] = layer
        active = active[~leave]
        if not len(active):
            break
    return exits


def test_every_policy_is_drawn():
    assert set(DRAWN) == set(policies.POLICIES)


@pytest.mark.parametrize("name", DRAWN)
@given(st.data(), seeds)
def test_prefixes_decide_as_a_full_run_does(name, data, seed):
    policy, scores = data.draw(DRAWN[name]), draw_scores(seed)
    policy.check(FEW_LAYERS)
    assert policy.name == name
    assert policy.exit_layers(scores).tolist() == leave_layer_by_layer(policy, scores).tolist()


@pytest.mark.parametrize("name", sorted(set(DRAWN) - {"daisy_window"}))  # whose batch leaves together
@given(st.data(), seeds)
def test_utterances_decide_for_themselves(name, data, seed):
    policy, scores = data.draw(DRAWN[name]), draw_scores(seed)
    together = policy.exit_layers(scores)
    alone = [
        int(policy.exit_layers({score: values[row : row + 1] for score, values in scores.items()}))
        for row in range(0, UTTERANCES, 4)
    ]
    assert together[::4].tolist() == alone


EARLIER = {
    "entropy": ("threshold", True),
    "regressed": ("threshold", True),
    "agreement": ("threshold", True),
    "confidence": ("threshold", False),
    "margin": ("threshold", False),
    "sentence_confidence": ("threshold", False),
    "posterior": ("threshold", False),
    "patience": ("tolerance", True),
    "text_patience": ("tolerance", True),
    "forecast": ("price", True),
    "plateau": ("price", True),
    "regressed_plateau": ("price", True),
    "deadline": ("budget", False),
    "oracle": ("degree", False),
    "fixed": ("layer", False),
}
"""A setting of each, and whether utterances leave earlier where it is higher."""


@pytest.mark.parametrize("name", EARLIER)
@given(st.data(), seeds)
def test_exits_follow_the_setting(name, data, seed):
    setting, higher_is_earlier = EARLIER[name]
    value = st.integers(1, FEW_LAYERS) if setting == "layer" else units.map(lambda unit: unit + 1e-6)
    low, high = sorted([data.draw(value), data.draw(value)])
    policy, scores = data.draw(DRAWN[name]), draw_scores(seed)
    if name == "deadline":  # units of about what a layer takes
        low, high = 1000 * low, 1000 * high
    exits_low, exits_high = (
        dataclasses.replace(policy, **{setting: value}).exit_layers(scores) for value in (low, high)
    )
    earlier, later = (exits_high, exits_low) if higher_is_earlier else (exits_low, exits_high)
    assert (earlier <= later).all()


@given(st.data(), st.integers(1, FEW_LAYERS), seeds)
def test_longer_patience_leaves_later(data, patience, seed):
    policy, scores = data.draw(DRAWN["patience"]), draw_scores(seed)
    exits = [dataclasses.replace(policy, patience=layers).exit_layers(scores) for layers in (patience, patience + 1)]
    assert (exits[0] <= exits[1]).all()


@pytest.mark.parametrize(
    "name",
    [
        "entropy",
        "regressed",
        "agreement",
        "confidence",
        "margin",
        "sentence_confidence",
        "posterior",
        "oracle",
        "score",
    ],
)
@given(st.data())
def test_what_is_no_number_lets_nobody_leave(name, data):
    policy = data.draw(DRAWN[name])
    scores = {score: torch.full((3, FEW_LAYERS), torch.nan) for score in policy.reads}
    assert policy.exit_layers(scores).tolist() == [FEW_LAYERS] * 3


@pytest.mark.parametrize("name", ["forecast", "plateau", "regressed_plateau"])
@given(st.data(), seeds)
def test_looking_ahead_stops_where_no_gain_pays(name, data, seed):
    """Against its definition, in a loop over utterances, layers and later layers."""
    policy, scores = data.draw(DRAWN[name]), draw_scores(seed)
    assert isinstance(policy, LookAhead)
    expected = []
    for row in range(UTTERANCES):
        for layer in range(1, FEW_LAYERS):
            past = [scores[score][row, :layer].nan_to_num(0.0) for score in policy.features]
            weights, offsets = torch.tensor(policy.weights[layer - 1]), torch.tensor(policy.intercepts[layer - 1])
            gains = weights.double() @ torch.cat(past).double() + offsets.double()
            if all(gain <= policy.price * more for more, gain in enumerate(gains.tolist(), 1)):
                break
        else:
            layer = FEW_LAYERS
        expected.append(layer)
    assert policy.exit_layers(scores).tolist() == expected
