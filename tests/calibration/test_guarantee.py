import dataclasses

import pytest
import torch

from daisy import PolicyError, policies
from daisy.calibration import guarantee
from daisy.calibration.families import FAMILIES
from daisy.calibration.traces import Traces, join_traces


@pytest.mark.parametrize("name", ["entropy", "forecast", "plateau", "confidence", "patience", "agreement"])
def test_a_ladder_goes_from_everything_to_little(traces, name):
    learn, judge = traces.split(1 / 3, 0)
    ladder_policies = guarantee.make_ladder(name, learn)
    exits = guarantee.compute_exits(ladder_policies, judge)
    assert (exits[:, 0] == 12).all()
    means = exits.double().mean(0)
    assert (means[1:] <= means[:-1] + 1e-9).all()
    for rung in (0, 30, 77, 100):
        assert torch.equal(exits[:, rung], ladder_policies[rung].exit_layers(judge.scores))


@pytest.mark.parametrize("method", guarantee.METHODS)
def test_the_certified_policy_is_cheaper_than_never_and_safe(traces, method):
    certified = guarantee.calibrate_risk("forecast", traces, 0.3, 0.1, method=method)
    assert certified.policy.name == "forecast"
    losses = guarantee.bound_losses(certified.runs.losses["disagreement"], 1.0)
    risk = float(losses.gather(1, certified.exit_layers[:, None] - 1).mean())
    assert 0.1 < risk <= 0.3
    assert torch.equal(certified.policy.exit_layers(certified.runs.scores), certified.exit_layers)
    tighter = guarantee.calibrate_risk("forecast", traces, 0.25, 0.1, method=method)
    assert tighter.exit_layers.double().mean() > certified.exit_layers.double().mean()


def test_a_hard_condition_holds_all_back(traces):
    """The same utterances, and a condition in which every layer but the last is wrong half of the time."""
    hard = dataclasses.replace(
        traces,
        conditions=("noise 0 dB",) * len(traces),
        losses={"disagreement": (traces.losses["disagreement"] + 0.3).clamp(0, 1)},
    )
    easy_alone = guarantee.calibrate_risk("entropy", traces, 0.3, 0.1)
    both = guarantee.calibrate_risk("entropy", join_traces([traces, hard]), 0.3, 0.1)
    on_easy = both.exit_layers[: len(both.exit_layers) // 2]
    assert on_easy.double().mean() > easy_alone.exit_layers.double().mean() + 0.5


def test_a_certificate_for_running_everything_says_never(traces):
    """40 speakers without any loss are enough to certify 0.06, but nothing cheaper is where leaving is always wrong."""
    wrong = dataclasses.replace(traces, losses={"disagreement": torch.ones_like(traces.losses["disagreement"])})
    certified = guarantee.calibrate_risk("entropy", wrong, 0.06, 0.1, method="hoeffding-bentkus")
    assert certified.policy == policies.Never()
    assert guarantee.certify(torch.full((len(wrong), 1), 12), wrong, 0.06, 0.1, method="hoeffding-bentkus") == 0


def test_nothing_certified_means_never(traces):
    certified = guarantee.calibrate_risk("entropy", traces, 0.001, 0.1)
    assert certified.policy == policies.Never()
    assert (certified.exit_layers == 12).all()


def test_running_everything_has_no_risk(traces):
    assert (guarantee.bound_losses(traces.losses["disagreement"], 1.0)[:, -1] == 0).all()
    assert (traces.losses["disagreement"][:, -1] > 0).any()  # and the traces are left as they were


def test_no_speaker_learns_and_certifies(traces):
    certified = guarantee.calibrate_risk("entropy", traces, 0.3, 0.1, seed=3)
    learn, judge = traces.split(guarantee.LEARN_SHARE, 3)
    assert set(certified.runs.groups) == set(judge.groups)
    assert not set(learn.groups) & set(judge.groups)


@pytest.mark.parametrize(
    ("alpha", "delta", "method", "message"),
    [
        (0.0, 0.1, "betting", "risk must be between 0 and 1, found 0"),
        (0.1, 1.5, "betting", "delta must be between 0 and 1, found 1.5"),
        (0.1, 0.1, "beting", "unknown method 'beting': did you mean betting?"),
    ],
)
def test_refusals(traces, alpha, delta, method, message):
    with pytest.raises(PolicyError) as error:
        guarantee.calibrate_risk("entropy", traces, alpha, delta, method=method)
    assert message in str(error.value)


def test_few_speakers_are_too_few(traces):
    with pytest.raises(PolicyError, match="recordings of at least 4 speakers, found 3"):
        guarantee.calibrate_risk("entropy", traces.of_groups(["0", "1", "2"]), 0.3, 0.1)


def test_families_are_what_is_calibrated():
    assert set(FAMILIES) < set(policies.POLICIES)


@pytest.mark.parametrize("method", ["betting", "hoeffding-bentkus"])
def test_speakers_of_unequal_size_do_not_break_it(method):
    """Half of 60 speakers have twenty recordings and little risk, half one recording and much: the mean is too high.

    Met in order of their recordings, the large ones would come first, and betting on them would win.
    """
    violations = 0
    for trial in range(100):
        generator = torch.Generator().manual_seed(trial)
        large = torch.rand(60, generator=generator) < 0.5
        groups = [str(speaker) for speaker in range(60) for _ in range(20 if large[speaker] else 1)]
        of = torch.tensor([0.15 if large[int(speaker)] else 0.5 for speaker in groups])
        runs = Traces(
            utterances=tuple(map(str, range(len(groups)))),
            groups=tuple(groups),
            conditions=("clean",) * len(groups),
            scores={},
            losses={"disagreement": of[:, None].expand(-1, 2)},
            weights=torch.ones(len(groups)),
            costs=torch.tensor([1.0, 2.0]),
            layers=(1, 2),
        )
        exits = torch.ones(len(groups), 1, dtype=torch.int64)
        violations += guarantee.certify(exits, runs, 0.3, 0.1, method=method, seed=trial) is not None
    assert violations <= 10 + 3 * 3


def test_what_is_attained_is_what_was_certified(traces):
    certified = guarantee.calibrate_risk("entropy", traces, 0.3, 0.1)
    shown = guarantee.measure_attained(certified.runs, certified.exit_layers, "disagreement", 1.0)
    assert shown["by_condition"][0]["risk"] <= 0.3
    bounded = guarantee.bound_losses(certified.runs.losses["disagreement"], 1.0)
    losses = bounded.gather(1, certified.exit_layers[:, None] - 1)
    total = sum(row["risk"] * row["num_runs"] for row in shown["by_exit_layer"])
    assert total == pytest.approx(float(losses.sum()), rel=1e-4)


@pytest.mark.parametrize(("loss", "ceiling"), [("clean_disagreement", 1.0), ("disagreement", 0.0), ("kl_nats", -4.0)])
def test_losses_that_running_everything_does_not_end_are_refused(traces, loss, ceiling):
    with pytest.raises(PolicyError, match="a guarantee is about|ceiling must be above 0"):
        guarantee.calibrate_risk("entropy", traces, 0.3, 0.1, loss=loss, ceiling=ceiling)
