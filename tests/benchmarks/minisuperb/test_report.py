"""Runs that exist or not, and the table of those that do."""

import argparse
import json
from pathlib import Path

import pytest
import soundfile
import torch
import yaml

from benchmarks.minisuperb import run, settings, tables, tasks
from benchmarks.minisuperb.runs import Run, read_rows
from benchmarks.minisuperb.upstreams import Upstream, check_names, list_names, make_upstreams
from benchmarks.shared import results
from daisy.errors import OutputError, UsageError

FACTORS = {
    ("sid", "never", "clean", "0123456789abcdef", "cpu"): 0.1,
    ("sid", "never", "clean", "0123456789abcdef", "cuda"): 0.2,
    ("sid", "fixed-40", "clean", "of another model", "cpu"): 0.3,
    ("sid", "fbank", "clean", None, "cpu"): 0.01,
}
pandas = pytest.importorskip("pandas", reason="the table is pandas'")
ranking = pytest.importorskip("benchmarks.minisuperb.ranking")
report = pytest.importorskip("benchmarks.minisuperb.report")


def finished(root, task, upstream, values, depth, seed=0):
    folder = root / "runs" / task / upstream / "dynamic" / f"seed{seed}"
    folder.mkdir(parents=True)
    spec = {"task": task, "name": upstream, "policy": "", "target_depth": depth, "featurizer": "dynamic", "seed": seed}
    more = {
        "device": "cpu",
        "config": {"runner": {"total_steps": 9}},
        "corpus": "/c",
        "checkpoint": None if upstream == "fbank" else "0123456789abcdef",
    }
    (folder / "run.json").write_text(json.dumps(spec | more))
    exits = depth and {"depth": depth, "mean_exit_layer": 12 * depth, "macs_share": depth}
    tests = [
        {
            "condition": condition,
            "metrics": {"accuracy": value},
            "exits": exits,
            "evaluate_sec": 1,
            "checkpoint": "states-9.ckpt",
        }
        for condition, value in values.items()
    ]
    (folder / "result.json").write_text(json.dumps({"train_sec": 5, "tests": tests}))


@pytest.fixture
def root(tmp_path):
    finished(tmp_path, "sid", "fbank", {"clean": 0.2}, None)
    finished(tmp_path, "sid", "fixed-40", {"clean": 0.4}, 0.4)
    finished(tmp_path, "sid", "never", {"clean": 0.8}, 1.0)
    finished(tmp_path, "sid", "never", {"clean": 0.6}, 1.0, seed=1)
    finished(tmp_path, "sid", "plateau-60", {"clean": 0.65}, 0.7)
    return tmp_path


def test_rows_are_flat(root):
    rows = read_rows(root / "runs", FACTORS)
    assert len(rows) == 5
    factors = {row["upstream"]: row["upstream_real_time_factor"] for row in rows}
    assert factors == {"never": 0.1, "fbank": 0.01, "fixed-40": None, "plateau-60": None}
    row = next(row for row in rows if row["upstream"] == "plateau-60")
    assert (row["task"], row["condition"], row["metric"], row["value"]) == ("sid", "clean", "accuracy", 0.65)
    assert (row["depth"], row["mean_exit_layer"], row["seed"], row["steps"]) == (0.7, pytest.approx(8.4), 0, 9)
    assert (row["scored"], row["model"]) == ("states-9.ckpt", "0123456789ab")
    of_fbank = read_rows(root / "runs", {}, lambda spec: spec["checkpoint"] is None)
    assert [row["upstream"] for row in of_fbank] == ["fbank"]


def test_policies_stand_beside_the_static_cut_at_their_own_depth(root):
    rows = read_rows(root / "runs", FACTORS)
    lines = report.add_static_cut(report.average_seeds(rows)).set_index("upstream")
    assert lines.static_cut["plateau-60"] == pytest.approx(0.55)  # half way between 0.4 and the mean of 0.8 and 0.6
    assert lines.static_cut["never"] == lines.value["never"] == pytest.approx(0.7)
    assert report.interpolate_static_cut([(0.4, 1.0), (1.0, 2.0)], 0.3) is None


def test_the_page_and_the_score(root):
    rows = read_rows(root / "runs", FACTORS)
    scores = {row["upstream"]: row["score"] for row in ranking.score_upstreams(report.average_seeds(rows))}
    assert scores["fbank"] == 0
    assert scores["never"] == pytest.approx(1000)
    assert scores["plateau-60"] == pytest.approx(900)
    pytest.importorskip("jinja2")
    paths = {path.suffix: path.read_text(encoding="utf-8") for path in report.write_report(rows, root)}
    assert "| plateau-60 | dynamic | 1 | 0.650 (+0.100) | 8.4 | 70% |" in paths[".md"]
    assert "do not compare with it" in paths[".html"]
    assert paths[".csv"].count("\n") == 6


def test_a_metric_in_which_the_full_model_is_hardly_ahead_has_no_part_in_the_score():
    values = {
        ("se", "pesq"): {"fbank": 1.329, "never": 1.331, "plateau-60": 1.4},
        ("se", "stoi"): {"fbank": 0.767, "never": 0.759, "plateau-60": 0.8},
        ("asr", "wer"): {"fbank": 1.0, "never": 1.0, "plateau-60": 0.9},
        ("asr", "cer"): {"fbank": 0.9, "never": 0.5, "plateau-60": 0.6},
        ("sid", "accuracy"): {"fbank": 0.1, "never": 0.9, "plateau-60": 0.8, "random-60": 0.9},
    }
    rows = [
        {"task": task, "metric": metric, "upstream": upstream, "featurizer": "dynamic", "condition": "0 dB", "value": v}
        for (task, metric), by_upstream in values.items()
        for upstream, v in by_upstream.items()
    ]
    scores = {row["upstream"]: row for row in ranking.score_upstreams(pandas.DataFrame(rows))}
    assert scores["plateau-60"]["score"] == pytest.approx(1000 * (0.3 / 0.4 + 0.7 / 0.8) / 2)
    assert scores["never"]["of"] == "asr cer, sid accuracy"
    assert "random-60" not in scores  # it has no figure of a task that counts


def test_a_damaged_run_is_named(root):
    (root / "runs" / "sid" / "fbank" / "dynamic" / "seed0" / "run.json").write_text("{")
    with pytest.raises(OutputError, match=r"fbank.*result.json: not a finished run"):
        read_rows(root / "runs", FACTORS)


def test_unknown_names_are_refused(tmp_path):
    with pytest.raises(UsageError, match="unknown upstream 'nevr': did you mean never"):
        make_upstreams(["nevr"], "daisy-mini", "plateau", tmp_path, print)
    with pytest.raises(UsageError, match="unknown upstream 'nevr': did you mean never"):
        make_upstreams(["fixed-60@nevr"], "daisy-mini", "plateau", tmp_path, print)
    with pytest.raises(UsageError, match="never@fbank: A@B takes two of daisy's upstreams"):
        make_upstreams(["never@fbank"], "daisy-mini", "plateau", tmp_path, print)
    with pytest.raises(UsageError, match="A@B takes two"):
        make_upstreams(["never@never@never"], "daisy-mini", "plateau", tmp_path, print)


def test_any_depth_may_be_asked_for(tmp_path):
    upstreams = make_upstreams(["fixed-25", "fixed-3"], "daisy-mini", "plateau", tmp_path, print)
    files = [Path(upstream.arguments[-1]) for upstream in upstreams]
    assert [json.loads(file.read_text())["layer"] for file in files] == [3, 1]
    assert [upstream.target_depth for upstream in upstreams] == [0.25, 0.03]
    for name in ("fixed-0", "fixed-100", "forecast-60", "never-60"):
        with pytest.raises(UsageError, match=f"unknown upstream '{name}'"):
            check_names([name], "plateau")
    with pytest.raises(UsageError, match="unknown policy 'plateua': did you mean plateau"):
        check_names(["never"], "plateua")


def test_exits_of_one_upstream_on_a_task_that_was_trained_on_another(tmp_path):
    (upstream,) = make_upstreams(["fixed-60@never"], "daisy-mini", "plateau", tmp_path, print)
    assert upstream.name == "fixed-60@never"
    assert (upstream.policy, upstream.target_depth) == ("fixed", 0.6)
    assert (Path(upstream.arguments[-1]).name, Path(upstream.training[-1]).name) == ("fixed-60.json", "never-100.json")


def test_a_static_cut_on_a_task_that_knew_other_exits_is_not_what_others_are_held_against():
    rows = [
        {"upstream": name, "depth": depth, "value": value}
        for name, depth, value in (("fixed-60", 0.5, 1.0), ("fixed-60@never", 0.75, 9.0), ("never", 1.0, 3.0))
    ]
    keys = {"task": "ks", "featurizer": "dynamic", "condition": "clean", "metric": "accuracy"}
    table = report.add_static_cut(pandas.DataFrame([keys | row for row in rows]))
    assert list(table.static_cut) == [1.0, 2.0, 3.0]


def test_random_exits_are_drawn_from_the_policy_that_they_are_held_against():
    assert {"forecast-60", "random-60"} < set(list_names("forecast"))
    assert {"plateau-60", "random_plateau-60"} < set(list_names("plateau"))
    assert "random-60" not in list_names("plateau")


def test_policies_are_set_on_recordings_of_ones_own(tmp_path):
    draws = torch.Generator().manual_seed(0)
    for index in range(3):
        samples = 0.1 * torch.randn(16000, generator=draws)
        soundfile.write(tmp_path / f"{index}.wav", samples.numpy(), 16000)
    names = ["entropy-60", "random_entropy-60"]

    def make(names, *recordings):
        return make_upstreams(names, "daisy-mini", "entropy", tmp_path / "policies", print, recordings=recordings)

    upstreams = make(names, str(tmp_path))
    first, second = (json.loads(Path(upstream.arguments[-1]).read_text()) for upstream in upstreams)
    assert first["data"] == {"recordings": [str(tmp_path)], "num_recordings": 3}
    assert [attained["condition"] for attained in first["attained"]["conditions"]] == [
        "all", "clean", "babble 20 dB", "babble 10 dB", "babble 0 dB",
    ]  # fmt: skip
    assert (second["name"], sum(second["histogram"])) == ("random", 12)
    soundfile.write(tmp_path / "0.wav", samples.numpy()[:8000], 16000)
    (other,) = make(names[:1], str(tmp_path))
    assert other.arguments[-1] != upstreams[0].arguments[-1]
    with pytest.raises(UsageError, match="nowhere"):
        make(names, "nowhere")


@pytest.fixture
def results_file(tmp_path, monkeypatch):
    """Write results/x.json."""
    for module in (run, results):
        monkeypatch.setattr(module, "RESULTS", tmp_path)
    return lambda *rows: results.write_result("x", [*rows])


def test_runs_of_another_machine_stay_in_the_results(results_file, monkeypatch):
    row = {"task": "ks", "upstream": "never", "featurizer": "dynamic", "seed": 0, "model": "a" * 12, "value": 0.5}
    row |= {"task_digest": settings.digest_today("ks", False), "upstream_digest": "u"}
    log_mel = {**row, "upstream": "fbank", "model": None}
    results_file(row, {**row, "seed": 1}, {**row, "task": "ic", "model": "b" * 12}, log_mel)
    read = lambda name: run.read_rows_of_other_folders(name, [row], [row], "a" * 64)  # noqa: E731
    assert read("x") == [{**row, "seed": 1}, log_mel]
    monkeypatch.setattr(run, "list_versions", lambda: {"python": "4"})
    assert read("x") == [{**row, "seed": 1}]
    assert read("y") == []


def test_rows_of_other_settings_do_not_come_back_from_the_results(results_file):
    today = settings.digest_today("ks", False)
    row = {"task": "ks", "upstream": "never", "featurizer": "dynamic", "seed": 0, "model": "a" * 12}
    row |= {"task_digest": today, "upstream_digest": "u"}
    undigested = {name: row[name] for name in row if "digest" not in name}
    elsewhere = {**row, "seed": 1}
    of_before = {**row, "seed": 3}  # of this folder, whose configuration was changed since
    results_file(
        elsewhere,
        {**row, "seed": 2, "task_digest": "of another rate"},
        of_before,
        {**row, "seed": 4, "upstream_digest": "set on other audio"},
        {**undigested, "seed": 5},
        {**undigested, "upstream": "fixed-60"},
    )
    read = run.read_rows_of_other_folders("x", [row], [row, {**of_before, "task_digest": "old"}], "a" * 64)
    assert read == [elsewhere, {**undigested, "upstream": "fixed-60"}]


def test_digests_are_of_what_decides_a_run_but_for_seed_and_folders(root):
    rows = read_rows(root / "runs", {})
    assert len({(row["task_digest"], row["upstream_digest"]) for row in rows if row["upstream"] == "never"}) == 1
    config = {"runner": {"total_steps": 9}, "root": "/a/ks/train"}
    moved = {**config, "root": "/b/ks/train"}
    digest = settings.digest_task(config, Path("/a/ks"), 2)
    assert digest == settings.digest_task(moved, Path("/b/ks"), 2) != settings.digest_task(config, Path("/a/ks"), 3)
    assert digest != settings.digest_task({**config, "runner": {"total_steps": 8}}, Path("/a/ks"), 2)
    file = {"target": {"depth": 0.6}, "data": {"recordings": ["a"]}, "policy": {"name": "forecast", "weights": [0.1]}}
    spec = {"policy": "forecast", "target_depth": 0.6, "policy_file": file}
    learnt_elsewhere = {**spec, "policy_file": {**file, "policy": {"name": "forecast", "weights": [0.2]}}}
    on_other_audio = {**spec, "policy_file": {**file, "data": {"recordings": ["b"]}}}
    digests = [settings.digest_upstream(each) for each in (spec, learnt_elsewhere, on_other_audio)]
    assert digests[0] == digests[1] != digests[2]


def test_runs_on_a_corpus_of_another_recipe_are_not_finished(tmp_path, monkeypatch):
    upstream = Upstream(name="fbank", arguments=("-u", "fbank"))
    make = lambda **spec: Run(task="ks", upstream=upstream, seed=0, folder=tmp_path / "r", spec=spec)  # noqa: E731
    assert make(seed=0, data="small").prepare(False)  # as runs were before they said their recipe
    (tmp_path / "r" / "result.json").write_text("{}")
    assert not make(seed=0, data="small", recipe=2).prepare(False)
    with pytest.raises(OutputError, match="holds a run with another recipe; give --overwrite"):
        make(seed=0, data="small", recipe=3).prepare(False)
    assert make(seed=0, data="small", recipe=3).prepare(True)
    (tmp_path / "r" / "result.json").write_text("{}")
    assert not make(seed=0, data="small", recipe=3).prepare(True)

    arguments = argparse.Namespace(data="small", quick=False)
    config = yaml.safe_load(tasks.read_configuration(tasks.TASKS["ks"], Path("/c/ks"), False))
    spec = settings.add_recipe({"task": "ks", "checkpoint": None, "corpus": "/c/ks", "config": config})
    assert run.belongs_to_table(arguments, "a" * 64, spec)
    monkeypatch.setattr(settings, "RECIPE", 3)
    assert not run.belongs_to_table(arguments, "a" * 64, spec)
    assert run.belongs_to_table(arguments, "a" * 64, {**spec, "recipe": 3})


def test_the_default_policy_is_held_against_the_full_model_and_seeds(tmp_path, monkeypatch):
    """Accuracies, of which more is better, error rates, of which less is, and decibels, which are not in percent."""
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    values = {"forecast-60": [0.79, 0.81], "never": [0.84, 0.86], "fixed-60": [0.8, 0.8], "random-60": [0.64, 0.64]}
    layers = {"forecast-60": 9.0, "never": 12.0, "fixed-60": 6.0, "random-60": 6.0}
    rows = [
        {"task": task, "metric": metric, "condition": "clean", "featurizer": "dynamic", "upstream": name}
        | {"value": value, "seed": seed, "depth": layers[name] / 12, "mean_exit_layer": layers[name]}
        for task, metric in (("ks", "accuracy"), ("asr", "cer"), ("ss", "si_sdri_db"), ("ic", "accuracy"))
        for name, of_seeds in values.items()
        for seed, value in enumerate(of_seeds)
    ]
    results.write_result("minisuperb", rows)
    results.write_result("minisuperb_noisy", rows[:7])  # which lacks random-60
    lines = tables.render_differences().splitlines()[2:5]
    assert lines == [
        "| clean | ks accuracy | clean | -5.9% | 1.7% | no | 9.0 | -3.0% | +25.0% |",
        "| clean | asr cer | clean | +5.9% | 1.7% | yes | 9.0 | +3.0% | -25.0% |",
        "| clean | ss si_sdri_db | clean | -0.05 dB | 0.01 dB | no | 9.0 | -0.02 dB | +0.16 dB |",
    ]
