"""Sentences with figures, from made-up results."""

import numpy
import pytest

from benchmarks import summary
from benchmarks.policies import tables as policies
from benchmarks.shared import results
from benchmarks.shared.cuts import mix_best
from benchmarks.speed import tables as speed
from daisy import checkpoints


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


def test_what_exits_save_keep_and_cost():
    times = {
        "measure": "end-to-end",
        "recordings": "clean and noisy",
        "batches": "30 s",
        "num_utterances": 9,
        "depth": 0.6,
    }
    times |= {"ratio_low": 1.1, "ratio_high": 1.3}
    rows = [
        {**times, "system": name, "ratio": ratio} for name, ratio in (("forecast", 1), ("never", 1.2), ("s3prl", 2))
    ]
    results.write_result("speed", [*rows, {**rows[0], "batches": "one by one", "depth": 0.1}])
    row = {"policy": "forecast", "target_depth": 0.6, "depth": 0.65, "unit_agreement": 0.8, "gain": 0.05}
    row |= {"fixed_unit_agreement": 0.75, "mixture_unit_agreement": 0.76, "random_unit_agreement": 0.7}
    others = [{**row, "target_depth": depth, "gain": gain} for depth, gain in ((0.3, -0.004), (0.5, 0.016))]
    results.write_result("policies", [*others, row, {**row, "policy": "entropy"}])
    network = {"task": "agreement", "policy": "forecast", "network": "old", "depth": 0.57, "exit": 0.595, "full": 0.731}
    trained = {**network, "network": "daisy-mini", "depth": 0.62, "exit": 0.828, "full": 0.903}
    results.write_result("exits", [network, {**network, "depth": 0.8}, trained, {"task": "agreement", "layer": 1}])
    results.write_result("minisuperb_noisy", [])
    time, fidelity, of_network = summary.render_summary().splitlines()
    assert "On 9 test recordings" in time
    assert "runs 60% of the layers" in time
    assert "1.20 (1.10-1.30) times as long, and s3prl, which runs all too, 2.00" in time
    assert "runs 65% of the layers, and 80.0% of the frames" in fidelity
    assert "it is 75.0%; with the best mixture of two cuts 76.0%, with exits drawn at random 70.0%" in fidelity
    assert "Set for other depths, the policy is -0.4 to +1.6 points above the cut." in fidelity
    assert "`daisy-mini`, whose" in of_network
    assert "it keeps 82.8% of the units at 62% of the layers, and 90.3% at the last head" in of_network
    assert "keep 59.5% at 57%, and 73.1% at the last." in of_network


def make_task(task, condition, upstream, depth, *values):
    row = {"task": task, "metric": summary.METRICS.get(task, "accuracy"), "featurizer": "dynamic"}
    row["model"] = checkpoints.digest("daisy-mini")[:12]
    return [{**row, "condition": condition, "upstream": upstream, "depth": depth, "value": value} for value in values]


def test_tasks_stand_beside_static_cuts_at_the_depth_of_their_exits():
    rows = [
        *make_task("ks", "clean", "never", 1.0, 0.9, 1.0),
        *make_task("ks", "clean", "forecast-60", 0.5, 0.93, 0.95),  # less deep than any cut
        *make_task("ks", "clean", "fixed-60", 0.6, 0.92, 0.94),
        *make_task("ks", "0 dB", "never", 1.0, 0.8, 0.8),
        *make_task("ks", "0 dB", "forecast-60", 0.8, 0.7, 0.72),
        *make_task("ks", "0 dB", "fixed-60", 0.6, 0.6, 0.6),
        *make_task("ic", "clean", "never", 1.0, 0.4),
        *make_task("ic", "clean", "forecast-60", 0.5, 0.38),
        *make_task("ic", "clean", "fixed-60", 0.6, 0.38),
        *make_task("sid", "clean", "never", 1.0, 0.9),
        *make_task("sid", "clean", "forecast-60", 0.9, 0.8),
        *make_task("sid", "clean", "fixed-60", 0.6, 0.81),
    ]
    another = [{**row, "model": "another", "value": 0.0} for row in rows]
    results.write_result("minisuperb_noisy", [*rows[:-1], *another])
    keywords, slots = summary.compare_tasks()  # a cut of speakers is missing
    assert (keywords.title, slots.depth, slots.is_beaten) == ("keywords", 0.5, False)
    results.write_result("minisuperb_noisy", [*rows, *another])
    tasks = summary.compare_tasks()
    assert "On speakers, a static cut that runs fewer layers does as well or better." in summary.say_downstream(tasks)
    _, _, keywords, speakers, slots = summary.render_tasks(tasks).splitlines()
    assert keywords == "| keywords | 0.875 | 0.825 (65%) | 0.815 | 0.765 (60%) |"  # (0.93 + 0.7) / 2
    assert speakers == "| speakers | 0.900 | 0.800 (90%) | 0.878 | 0.810 (60%) |"
    assert slots.endswith("| 0.400 | 0.380 (50%) |  | 0.380 (60%) |")  # no cut is so shallow


def test_speed_is_told_by_precision():
    row = {"system": "daisy", "lengths": "fixed", "precision": "float32", "ratio": 1.0}
    rows = [
        {**row, "lengths": lengths, "precision": precision, "system": system, "ratio": ratio}
        for lengths in ("fixed", "mixed")
        for precision, ratios in (("float32", (1.2, 1.6)), ("bfloat16", (1.5, 3.0)))
        for system, ratio in (("daisy", 1.0), *(("fairseq", ratio) for ratio in ratios))
    ]
    results.write_result("latency", rows)
    results.write_result("latency_cuda", rows)
    lines = summary.render_latency_summary().splitlines()
    assert lines[2:4] == ["| CPU, of 10 s, float32 | 1.20 to 1.60 |", "| CPU, of 10 s, bfloat16 | 1.50 to 3.00 |"]
    assert len(lines) == 10


def test_units_that_noise_leaves():
    row = {
        "condition": "recorded 0 dB",
        "clean_unit_agreement_best": 0.5,
        "clean_unit_agreement_after_layer_6": 0.04,
    }
    results.write_result("regimes", [{**row, "condition": "clean", "clean_unit_agreement_best": 0.9}, row])
    assert "layer 6 keeps 46% of the clean audio's units, and the best layer 50%" in policies.render_regimes_sentence()


def test_share_of_what_hindsight_gains_at_the_same_depth():
    """Hindsight is half way between its two depths where the policy is: 0.85 on 0.8 of the cut, 0.81 of the mixture."""
    rows = [
        {"idea": idea, "learnt": learnt, "target_depth": target, "depth": depth, "agreement": agreement}
        for idea, learnt, target, depth, agreement in (
            ("hindsight", "same input", 0.6, 0.6, 0.83),
            ("hindsight", "same input", 0.7, 0.7, 0.87),
            ("hindsight", "clean recording", 0.6, 0.6, 0.9),
            ("forecast", "same input", 0.6, 0.65, 0.82),
            ("forecast", "both", 0.6, 0.65, 0.83),
            ("forecast", "same input", 0.3, 0.3, 0.84),
        )
    ]
    results.write_result("ideas", [{**row, "static": 0.8, "mixture": 0.81} for row in rows])
    assert policies.render_headroom_sentence() == (
        "At the depth that it runs, 65%, `forecast` reaches 40% of hindsight's gain over the static cut, and 25% of "
        "its gain over the best mixture of two cuts.\n"
    )


def test_the_best_mixture_of_cuts_goes_around_steps():
    """Losses that fall in steps: a coin between the layers at whose ends they stand beats the cut between them."""
    losses = numpy.array([1.0, 0.9, 0.5, 0.5, 0.45, 0.1])
    assert mix_best(losses, 3.0) == 0.5
    assert mix_best(losses, 4.5) == pytest.approx(0.3)  # half at layer 3, half at 6
    assert mix_best(losses, 2.0) == pytest.approx(0.75)
    assert mix_best(losses, 6.0) == pytest.approx(0.1)
    assert mix_best(losses[[2, 3, 5]], 4.5, (3, 4, 6)) == pytest.approx(0.3)
    assert mix_best(losses, 6.000000000000001) == pytest.approx(0.1)


def test_risks_that_were_missed():
    row = {"method": "betting", "splits": 300, "delta": 0.1, "risk": 0.2, "mean_test_risk": 0.1, "violations": 0.02}
    row |= {"uncertified_violations": 0.4, "none_certified": 0.0}
    safe, idle = {**row, "uncertified_violations": 0.0}, {**row, "none_certified": 1.0}
    conformal = {**row, "method": "conformal", "violations": 0.3}
    missed = {**conformal, "mean_test_risk": 0.3}
    results.write_result("guarantee", [row, {**row, "violations": 0.01}, safe, idle, conformal, missed])
    assert policies.render_guarantee_sentence() == (
        "Of 4 settings of Learn then Test, with a delta of 10%, 2 could fail: in these, something was certified, and "
        "the cheapest setting that only looked safe missed the target at times. With the certificate, the target was "
        "missed in at most 2.0% of 300 random halves (of the same speakers, so not independent). Conformal risk "
        "control bounds the mean risk: it was below the target in 1 of 2 settings.\n"
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
