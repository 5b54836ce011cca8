"""Sentences with figures, on results that are made up."""

import pytest

from benchmarks.policies import tables as policies
from benchmarks.shared import results
from benchmarks.speed import tables as speed


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "RESULTS", tmp_path)


def test_exits_go_from_clean_to_the_loudest_noise():
    rows = [
        {"policy": policy, "set": name, "noise": noise, "snr_db": snr, "mean_exit_layer": layer}
        for policy, shift in (("forecast", 0), ("entropy", 1))
        for name, layers in (("all", (5.04, 6, 7)), ("keywords", (4, 5, 8.1)))
        for (noise, snr), layer in zip(
            (("none", None), ("recorded", 0), ("recorded", -5)), (layer + shift for layer in layers), strict=True
        )
    ]
    results.write_result("noise_curve", [*rows, {**rows[0], "noise": "white", "snr_db": -10, "mean_exit_layer": 12}])
    assert policies.render_exits_sentence() == (
        "From clean audio to recorded noise at -5 dB, the mean exit layer of `forecast` goes from 5.0 to 7.0 over all "
        "sets: from 4.0 to 8.1 on keywords.\n"
    )


def test_units_that_noise_leaves():
    row = {
        "condition": "recorded 0 dB",
        "clean_unit_agreement_best": 0.5,
        "clean_unit_agreement_after_layer_6": 0.04,
    }
    results.write_result("regimes", [{**row, "condition": "clean", "clean_unit_agreement_best": 0.9}, row])
    assert "layer 6 keeps 46% of the clean audio's units, and the best layer 50%" in policies.render_regimes_sentence()


def test_share_of_what_hindsight_gains():
    rows = [
        {"idea": idea, "learnt": learnt, "target_depth": depth, "over_static": gain}
        for idea, learnt, depth, gain in (
            ("hindsight", "same input", 0.6, 0.05),
            ("forecast", "same input", 0.6, 0.02),
            ("forecast", "both", 0.6, 0.03),
            ("forecast", "same input", 0.3, 0.04),
        )
    ]
    results.write_result("ideas", rows)
    assert policies.render_headroom_sentence() == "`forecast` gets 40% of what hindsight is above the static cut by.\n"


def test_risks_that_were_missed():
    row = {"method": "betting", "splits": 300, "delta": 0.1, "risk": 0.2, "mean_test_risk": 0.1, "violations": 0.02}
    conformal = {**row, "method": "conformal", "violations": 0.3}
    missed = {**conformal, "mean_test_risk": 0.3}
    results.write_result("guarantee", [row, {**row, "violations": 0.01}, conformal, missed])
    assert policies.render_guarantee_sentence() == (
        "In 300 random halves each, Learn then Test missed its target in at most 2.0% of them, over 2 settings with a "
        "delta of 10%. Conformal risk control bounds the mean risk: it was below the target in 1 of 2 settings.\n"
    )


def test_who_is_faster_where():
    setting = {"size": "mini", "precision": "float32", "batch": 16, "lengths": "fixed", "threads": 1}
    ours, theirs = {**setting, "system": "daisy", "ratio": 1.0}, {**setting, "system": "torchaudio", "ratio": 1.2}
    results.write_result("latency", [ours, theirs])
    results.write_result("latency_cuda", [ours, theirs])
    assert speed.render_latency_sentence() == (
        "These are 2 settings on two cores and on a GPU. We are fastest in all.\n"
    )
    results.write_result("latency_cuda", [ours, {**theirs, "ratio": 0.9}])
    assert speed.render_latency_sentence().endswith(
        "In 1 of them somebody else is faster: torchaudio (mini in float32, a batch of 16 of fixed lengths, a GPU).\n"
    )
