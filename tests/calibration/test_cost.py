import dataclasses
import functools
import time
from types import SimpleNamespace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from daisy import EarlyExitEncoder, policies
from daisy.calibration import cost
from daisy.policies import scores
from tests.conftest import KINDS, Products, tiny_model


@torch.no_grad()
def counted(backbone, heads, num_frames, layers):
    """Multiply-accumulates that torch counts for an utterance that leaves after ``layers``."""
    length = backbone.config.frame_span + (num_frames - 1) * backbone.config.frame_hop
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # the fused kernel is not counted
        features, lengths = backbone.front_end(0.1 * torch.randn(1, length), torch.tensor([length]))
        states = backbone.embed(features, lengths)
        for layer in range(1, layers + 1):
            states = backbone.layer(layer, states, lengths)
            heads.unit_logits(layer, states)
    return counter.get_total_flops() / 2


def value(coefficients, num_frames):
    return sum(c * num_frames**power for power, c in enumerate(coefficients))


@pytest.mark.parametrize("kind", KINDS)
def test_counts_are_torchs_own(kind):
    model = tiny_model(KINDS[kind])
    config = model.backbone.config
    for num_frames in (50, 400):
        layer = value(cost.count_layer_macs(config, model.heads.config), num_frames)
        two, one = (counted(model.backbone, model.heads, num_frames, layers) for layers in (2, 1))
        assert two - one == pytest.approx(layer, rel=1e-6)
        front = value(cost.count_front_end_macs(config), num_frames)
        assert one - layer == pytest.approx(front, rel=0.08)  # the ends of a recording of one second


@pytest.mark.parametrize("kind", KINDS)
def test_the_exit_loop_does_what_is_counted(kind):
    model = tiny_model(KINDS[kind])
    config = model.backbone.config
    # numbers of frames, also in sum, to which `daisy.runtime.linear.round_up_rows` adds none
    waveforms = [0.1 * torch.randn(config.frame_span + (count - 1) * config.frame_hop) for count in (64, 32)]

    def counted_until(layer):
        encoder = EarlyExitEncoder(model.backbone, model.heads, policies.Fixed(layer=layer), scores=["entropy"])
        with Products() as products:
            out = encoder(waveforms)
        return sum(rows * width * inputs for rows, _, width, inputs in products.calls), out.num_frames.tolist()

    done, num_frames = counted_until(config.num_layers)
    _, per_frame, _ = cost.count_layer_macs(config, model.heads.config)  # attention's products are no linear maps
    _, front, _ = cost.count_front_end_macs(config)
    positional = config.pos_kernel * config.width**2 / config.pos_groups
    assert counted_until(2)[0] - counted_until(1)[0] == pytest.approx(sum(num_frames) * per_frame, rel=1e-6)
    expected = sum(num_frames) * (config.num_layers * per_frame + front - positional)
    assert done == pytest.approx(expected, rel=0.05)  # the ends of recordings


def test_a_budget_of_operations_is_kept():
    model = tiny_model()
    layer = cost.count_layer_macs(model.backbone.config)
    front = cost.count_front_end_macs(model.backbone.config)
    waveforms = [0.1 * torch.randn(400 + 320 * (num_frames - 1)) for num_frames in (20, 100, 300)]
    budget = value(front, 100) + 2.5 * value(layer, 100)
    policy = cost.make_macs_deadline(model.backbone, model.heads, budget)
    out = EarlyExitEncoder(model.backbone, model.heads, policy)(waveforms)
    assert out.exit_layer.tolist() == [4, 2, 1]
    half = cost.make_macs_deadline(model.backbone, model.heads, budget, policies.Fixed(layer=3))
    assert EarlyExitEncoder(model.backbone, model.heads, half)(waveforms).exit_layer.tolist() == [3, 2, 1]


def test_heads_that_nobody_reads_cost_nothing():
    model = tiny_model()
    make = functools.partial(cost.make_macs_deadline, model.backbone, model.heads, 1e9)
    assert make().layer_cost == make(policies.Fixed(layer=3)).layer_cost
    assert make().layer_cost == pytest.approx(cost.count_layer_macs(model.backbone.config))
    assert make(policies.Entropy(threshold=1.0)).layer_cost[1] > make().layer_cost[1]


def test_measured_costs_rise_with_length_and_decide():
    model = tiny_model()
    short, long = (torch.randn(400 + 320 * (num_frames - 1)) for num_frames in (50, 800))
    rule = policies.Entropy(threshold=0.0)
    policy = cost.make_measured_deadline(model.backbone, model.heads, 1.0, rule, repeats=15)
    assert (policy.budget, policy.then) == (1.0, rule)
    layers = [value(policy.layer_cost, num_frames) for num_frames in (50, 800)]
    fronts = [value(policy.front_cost, num_frames) for num_frames in (50, 800)]
    assert layers[1] > layers[0] > 0
    assert fronts[1] > fronts[0] > 0

    def exits(budget):
        rule = dataclasses.replace(policy, budget=budget)
        return EarlyExitEncoder(model.backbone, model.heads, rule)([short, long]).exit_layer.tolist()

    assert exits(fronts[1] + 4.01 * layers[1]) == [4, 4]
    assert exits(fronts[1] + 2.5 * layers[1])[1] == 2
    assert exits(fronts[0] + 3.5 * layers[0])[0] == 3
    assert exits(fronts[0]) == [1, 1]


def test_seconds_are_of_all_layers_so_far_and_their_scores(monkeypatch):
    """On a clock that only scores advance: by 0.25 s for each of two utterances at each layer."""
    model, now = tiny_model(), [100.0]

    def slow_entropy(outputs):
        now[0] += 0.25
        return torch.zeros(1)

    monkeypatch.setitem(scores.SCORES, "entropy", slow_entropy)
    monkeypatch.setattr(cost, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    seconds = cost.measure_layer_seconds(model.backbone, model.heads, [0.1 * torch.randn(16000)] * 2, ["entropy"])
    assert seconds.tolist() == [0.5, 1.0, 1.5, 2.0]


def test_seconds_of_this_machines_clock():
    """What a layer takes is counted to it and to those that follow, and no more than the whole took."""
    model = tiny_model()
    begin = time.perf_counter()
    seconds = cost.measure_layer_seconds(model.backbone, model.heads, [0.1 * torch.randn(16000)] * 2, [], repeats=1)
    whole = time.perf_counter() - begin
    assert seconds.shape == (4,)
    assert seconds[0] > 0
    assert (seconds.diff() > 0).all()
    assert seconds[-1] < whole
