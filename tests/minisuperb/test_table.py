"""Runs that are there or not, and the table of those that are."""

import json
from pathlib import Path

import pytest

from daisy.errors import OutputError, UsageError

pandas = pytest.importorskip("pandas", reason="the table is pandas'")


def finished(root, task, upstream, values, depth, seed=0):
    folder = root / "runs" / task / upstream / "dynamic" / f"seed{seed}"
    folder.mkdir(parents=True)
    spec = {"task": task, "name": upstream, "policy": "", "target_depth": depth, "featurizer": "dynamic", "seed": seed}
    (folder / "run.json").write_text(json.dumps(spec | {"config": {"runner": {"total_steps": 9}}}))
    exits = depth and {"depth": depth, "mean_exit_layer": 12 * depth, "macs_share": depth}
    tests = [
        {"condition": condition, "metrics": {"accuracy": value}, "exits": exits, "evaluate_sec": 1}
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


def test_rows_are_flat(script, root):
    rows = script("table").rows(root / "runs", {"sid never clean": 0.1})
    assert len(rows) == 5
    row = next(row for row in rows if row["upstream"] == "plateau-60")
    assert (row["task"], row["condition"], row["metric"], row["value"]) == ("sid", "clean", "accuracy", 0.65)
    assert (row["depth"], row["mean_exit_layer"], row["seed"], row["steps"]) == (0.7, pytest.approx(8.4), 0, 9)


def test_policies_stand_beside_the_static_cut_at_their_own_depth(script, root):
    table = script("table")
    lines = table.with_static_cut(table.means(table.rows(root / "runs", {"sid never clean": 0.1}))).set_index(
        "upstream"
    )
    assert lines.static_cut["plateau-60"] == pytest.approx(0.55)  # half way between 0.4 and the mean of 0.8 and 0.6
    assert lines.static_cut["never"] == lines.value["never"] == pytest.approx(0.7)
    assert table.static_cut([(0.4, 1.0), (1.0, 2.0)], 0.3) is None


def test_the_page_and_the_score(script, root):
    table = script("table")
    rows = table.rows(root / "runs", {"sid never clean": 0.1})
    found = {row["upstream"]: row["score"] for row in table.scores(table.with_static_cut(table.means(rows)))}
    assert found["fbank"] == 0
    assert found["never"] == pytest.approx(1000)
    assert found["plateau-60"] == pytest.approx(900)
    pytest.importorskip("jinja2")
    paths = {path.suffix: path.read_text(encoding="utf-8") for path in table.write(rows, root)}
    assert "| plateau-60 | dynamic | 1 | 0.650 (+0.100) | 8.4 | 70% |" in paths[".md"]
    assert "do not compare with it" in paths[".html"]
    assert paths[".csv"].count("\n") == 6


def test_a_damaged_run_is_named(script, root):
    (root / "runs" / "sid" / "fbank" / "dynamic" / "seed0" / "run.json").write_text("{")
    with pytest.raises(OutputError, match=r"fbank.*result.json: not a finished run"):
        script("table").rows(root / "runs", {"sid never clean": 0.1})


def test_a_finished_run_is_not_repeated_and_another_not_overwritten(script, tmp_path):
    run = script("run")
    upstream = script("upstreams").Upstream(name="fbank", arguments=("-u", "fbank"))
    spec = {"seed": 0, "config": {"a": [1]}, "cache": "somewhere"}
    make = lambda **changes: run.Run(  # noqa: E731
        task="ks", upstream=upstream, seed=0, folder=tmp_path / "r", spec={**spec, **changes}
    )
    assert make().prepare(False)
    assert make().prepare(False)
    (tmp_path / "r" / "result.json").write_text("{}")
    assert not make(cache=None).prepare(False)
    with pytest.raises(OutputError, match="holds a run with another config, seed; give --overwrite"):
        make(seed=1, config={}).prepare(False)
    assert make(seed=1).prepare(True)
    assert not (tmp_path / "r" / "result.json").exists()


def test_unknown_names_are_refused(script, tmp_path):
    with pytest.raises(UsageError, match="unknown upstream 'nevr': did you mean never"):
        script("upstreams").find(["nevr"], "daisy-mini", "plateau", tmp_path, print)
    with pytest.raises(UsageError, match="unknown upstream 'nevr': did you mean never"):
        script("upstreams").find(["fixed-60@nevr"], "daisy-mini", "plateau", tmp_path, print)
    with pytest.raises(UsageError, match="never@fbank: only daisy's upstreams can stand for one another"):
        script("upstreams").find(["never@fbank"], "daisy-mini", "plateau", tmp_path, print)


def test_exits_of_one_upstream_on_a_task_that_was_trained_on_another(script, tmp_path):
    (found,) = script("upstreams").find(["fixed-60@never"], "daisy-mini", "plateau", tmp_path, print)
    assert found.name == "fixed-60@never"
    assert (found.policy, found.target_depth) == ("fixed", 0.6)
    assert (Path(found.arguments[-1]).name, Path(found.training[-1]).name) == ("fixed-60.json", "never-100.json")


def test_a_static_cut_on_a_task_that_knew_other_exits_is_not_what_others_are_held_against(script):
    rows = [
        {"upstream": name, "depth": depth, "value": value}
        for name, depth, value in (("fixed-60", 0.5, 1.0), ("fixed-60@never", 0.75, 9.0), ("never", 1.0, 3.0))
    ]
    keys = {"task": "ks", "featurizer": "dynamic", "condition": "clean", "metric": "accuracy"}
    found = script("table").with_static_cut(pandas.DataFrame([keys | row for row in rows]))
    assert list(found.static_cut) == [1.0, 2.0, 3.0]
