"""Learning and judging in `benchmarks.policies.ideas`, on runs whose best exits are known."""

import numpy
import pytest
import torch

from benchmarks.policies import idea_learners, ideas, tables
from benchmarks.policies.idea_runs import CONDITIONS, Runs, run_layers
from benchmarks.shared.recordings import Utterance
from daisy.audio.conditions import CLEAN, Condition
from daisy.calibration import tracing
from daisy.calibration.traces import Traces

LAYERS, COUNT = 12, 130
HARD = numpy.arange(COUNT) % 2 == 0


def make_runs(losses, scores, states=None):
    size = (COUNT, LAYERS)
    return Runs(
        Traces(
            utterances=tuple(map(str, range(COUNT))),
            groups=tuple(f"speaker {i % 26}" for i in range(COUNT)),
            conditions=tuple(CONDITIONS[i % 13].name for i in range(COUNT)),
            scores={name: torch.from_numpy(numpy.broadcast_to(of, size).copy()) for name, of in scores.items()},
            losses={name: torch.from_numpy(numpy.broadcast_to(of, size).copy()) for name, of in losses.items()},
            weights=torch.ones(COUNT),
            costs=torch.arange(1, LAYERS + 1).float(),
            layers=tuple(range(1, LAYERS + 1)),
        ),
        numpy.zeros((COUNT, LAYERS + 1, 4), numpy.float16) if states is None else states,
    )


@pytest.fixture
def runs():
    """Half of the runs gain 0.9 at layer 9, and nothing else; every score, and the states, tell which half it is."""
    layers = numpy.arange(1, LAYERS + 1)
    loss = 1 - 0.9 * (HARD[:, None] & (layers >= 9))
    rng = numpy.random.default_rng(0)
    names = (*idea_learners.ALL_SCORES, "regressed")
    scores = {name: HARD[:, None] + 0.1 * rng.random((COUNT, LAYERS)) for name in names}
    for name in ("confidence", "margin"):
        scores[name] = 2 - scores[name]
    states = numpy.repeat((HARD[:, None] + 0.1 * rng.random((COUNT, LAYERS + 1)))[:, :, None], 4, axis=2)
    return make_runs({"disagreement": loss, "clean_disagreement": 0.5 * loss}, scores, states.astype(numpy.float16))


UNLIKE = ("entropy to loss, by layer", "states and scores, network")
"""The first does not look at gains, the second needs more runs than these."""
LEARNING = [name for name, (_, learns) in idea_learners.IDEAS.items() if learns and name not in UNLIKE]


@pytest.mark.parametrize("idea", LEARNING)
def test_ideas_that_learn_find_who_gains_and_where(runs, idea):
    learner, _ = idea_learners.IDEAS[idea]
    decisions = ideas.cross_fit(learner, runs, ideas.get_target(runs, "both"))
    exits = decisions.exits(0.03)  # of a layer; the half that gains, gains 0.084 for each
    right = exits == numpy.where(HARD, 9, 3 if "layer 3" in idea else 1)
    assert right.mean() >= 0.95  # a score beyond all that were learnt from may stay for a layer


def test_a_network_finds_them_too(runs):
    many = runs.select(numpy.tile(numpy.arange(COUNT), 15))
    learner, _ = idea_learners.IDEAS["states and scores, network"]
    decisions = learner(many, runs, ideas.get_target(many, "same input"))
    assert (abs(decisions.exits(0.05) - numpy.where(HARD, 9, 1)) <= 1).mean() > 0.9


def test_a_price_is_found_for_a_depth(runs):
    prices = numpy.repeat(numpy.where(HARD, 0.8, 0.2)[:, None], LAYERS - 1, axis=1)
    decisions = idea_learners.decide_by_prices(prices)
    assert 0.2 <= ideas.find_price(decisions, 0.6, LAYERS) < 0.8
    assert set(decisions.exits(ideas.find_price(decisions, 0.6, LAYERS))[HARD]) == {LAYERS}


def test_nobody_leaves_where_there_is_no_score():
    values = numpy.where(numpy.arange(LAYERS) < 6, 0.9, numpy.full((COUNT, LAYERS), 0.5))
    values[:, 0] = numpy.nan
    runs = make_runs({"disagreement": numpy.ones(LAYERS), "clean_disagreement": numpy.ones(LAYERS)}, {"change": values})
    decisions = idea_learners.read_threshold(runs, runs, numpy.ones((COUNT, LAYERS)), "change")
    assert set(decisions.exits(0.4)) == {LAYERS}
    assert set(decisions.exits(0.6)) == {7}
    assert set(decisions.exits(decisions.high)) == {1}


def test_exits_are_judged_beside_the_cut_chance_and_the_best_mixture(runs):
    row = ideas.judge(numpy.where(HARD, 9, 1), runs.traces)
    assert row["agreement"] == pytest.approx(0.45)  # 0.9 for half of them
    assert row["static"] == pytest.approx(0.0)  # a cut at layer 5
    assert row["random"] == pytest.approx(0.225)  # a half run to 9, whoever they are
    assert row["mixture"] == pytest.approx(0.225)  # of cuts at 1 and 9
    assert row["over_static"] == pytest.approx(0.45)
    between = ideas.judge(numpy.where(HARD, 12, 5), runs.traces)
    assert between["static"] == pytest.approx(0.225)  # halfway between layer 8, which has nothing, and layer 9
    assert between["mixture"] == pytest.approx(0.45 * 7.5 / 8)  # layer 1 for few, else layer 9
    assert row["over_random_low"] <= row["over_random"] == pytest.approx(0.225)
    assert row["clean_agreement"] == pytest.approx(0.5 + 0.5 * 0.45)


def test_what_is_learnt_is_one_loss_or_the_mean(runs):
    loss = runs.traces.losses["disagreement"].numpy()
    for name, share in (("same input", 1), ("clean recording", 0.5), ("both", 0.75)):
        numpy.testing.assert_allclose(ideas.get_target(runs, name), share * loss)


def test_clean_runs_count_as_much_as_those_of_one_ratio(runs):
    balanced = ideas.balance(runs)
    names = [condition if condition == "clean" else condition.split()[-2] for condition in balanced.traces.conditions]
    assert {name: names.count(name) for name in names} == {"clean": 40, "20": 40, "10": 40, "0": 40}


def test_exits_that_deepen_with_noise_have_a_rank_correlation_of_minus_one(runs):
    depth = {"clean": 2, "20": 4, "10": 5, "0": 9}
    exits = numpy.array([depth[c if c == "clean" else c.split()[-2]] for c in runs.traces.conditions])
    row = ideas.follow_noise(exits, runs)
    assert {name: value for name, value in row.items() if name.startswith("layers")} == {
        "layers_clean": 2, "layers_20_db": 4, "layers_10_db": 5, "layers_0_db": 9,
    }  # fmt: skip
    assert [row[f"spearman_{kind}"] for kind in ("recorded", "white", "pink", "babble")] == [-1.0] * 4
    assert ideas.follow_noise(numpy.full(COUNT, 6), runs)["spearman_pink"] is None


def test_full_runs_are_those_of_the_library(model, waveforms):
    """Scores and losses as `daisy.calibration.trace` has them, and units of the clean recordings as reference."""
    utterances = [Utterance(waveform, f"s{i}", "made") for i, waveform in enumerate(waveforms)]
    clean, units = run_layers(model, waveforms, utterances, CLEAN)
    noisy = [torch.sin(torch.arange(len(waveform)) ** 1.1 / 9) for waveform in waveforms]  # says something else
    runs, _ = run_layers(model, noisy, utterances, Condition("white", 10.0), units)
    names = [str(i) for i in range(len(waveforms))]
    expected, _ = tracing.trace(model, noisy, names, reference=units)
    for name, values in {**expected.losses, **expected.scores}.items():
        if name in runs.traces.losses or name in runs.traces.scores:
            found = runs.traces.losses.get(name, runs.traces.scores.get(name))
            torch.testing.assert_close(found, values, rtol=1e-5, atol=1e-5, equal_nan=True)
    torch.testing.assert_close(clean.traces.losses["disagreement"], clean.traces.losses["clean_disagreement"])
    worst, mean = (runs.traces.scores[name] for name in ("entropy_worst_window", "entropy"))
    assert (worst >= mean - 1e-4).all()
    assert runs.states.shape == (7, model.backbone.config.num_layers + 1, 2 * model.backbone.config.width)


def test_tables_show_hindsight_and_each_idea_at_one_depth(runs, monkeypatch):
    rows = [
        ideas.make_row("hindsight", learnt, 0.6, numpy.where(HARD, 9, 1), runs) for learnt in list(ideas.TARGETS)[:2]
    ]
    rows.append(ideas.make_row("forecast", "both", 0.6, numpy.full(COUNT, 7), runs))
    machine = {"processor": "any", "threads": 1}
    result = {"command": "python -m x", "date": "2026-01-01", "machine": machine, "rows": rows}
    monkeypatch.setattr(tables, "read_result", lambda name: result)
    assert "| 60% | 0.000 | 0.450 | +0.450 | +0.225 | " in tables.render_headroom()
    (line,) = (line for line in tables.TABLES["ideas"]().splitlines() if line.startswith("| forecast"))
    assert line.startswith("| forecast | both | 58% | 0.000 | +0.000 (+0.000 to +0.000)")
    assert line.endswith("| 7.0, 7.0, 7.0, 7.0 |  |")
