"""Policies against the static cut at the same depth, and in the same time."""

import dataclasses

import pytest
import torch

from benchmarks.policies.policies import measure_frontier
from benchmarks.shared.frontier import average_exits, average_time, cut_at_time
from daisy.evaluation import comparison

TIMES = torch.linspace(0.3, 1.0, 12)


def test_a_static_cut_in_some_time():
    static = torch.tensor([0.8, 0.4, 0.0])
    times = torch.tensor([0.5, 0.75, 1.0])
    assert [cut_at_time(static, times, time) for time in (0.5, 0.625, 1.1)] == pytest.approx([0.8, 0.6, 0.0])


def test_recordings_count_in_the_time_as_they_do_in_the_loss(traces):
    runs = traces.select([0, 1])
    runs = dataclasses.replace(runs, weights_by_loss={"word_errors": torch.tensor([1.0, 3.0])})
    exits = torch.tensor([1, 12])
    assert average_time(TIMES, exits, runs, "disagreement") == pytest.approx((0.3 + 1.0) / 2)
    assert average_time(TIMES, exits, runs, "word_errors") == pytest.approx((0.3 + 3 * 1.0) / 4)


def test_a_policy_that_reads_scores_is_held_against_a_later_cut(traces):
    """Scores take a tenth of the time here: in a policy's time a static cut goes deeper than at its depth."""
    wrong = traces.losses["disagreement"]
    losses = {**traces.losses, "clean_disagreement": wrong, "kl_nats": wrong}
    tune, test = dataclasses.replace(traces, losses=losses).halves(0)
    names = [*comparison.list_families(tune, "disagreement"), "hindsight"]
    times = {name: TIMES if name in ("fixed", "hindsight") else 1.1 * TIMES for name in names}
    rows = measure_frontier(tune, test, times)
    by_name = {(row["policy"], row["target_depth"]): row for row in rows}
    fixed, entropy = by_name["fixed", 0.5], by_name["entropy", 0.5]
    static = average_exits(test, "disagreement")
    assert fixed["time"] == pytest.approx(float(TIMES[5]))
    assert fixed["unit_agreement"] == pytest.approx(1 - float(static[5]))
    assert fixed["fixed_at_time_unit_agreement"] == pytest.approx(fixed["unit_agreement"])
    assert entropy["fixed_at_time_unit_agreement"] > entropy["fixed_unit_agreement"] + 0.01
    assert entropy["mixture_unit_agreement"] >= entropy["fixed_unit_agreement"] - 1e-6
    assert {row["policy"] for row in rows} > {"forecast", "plateau, naive", "hindsight"}
