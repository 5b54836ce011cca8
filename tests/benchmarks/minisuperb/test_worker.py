"""One run with a replacement for s3prl: the steps done, the steps repeated, and the results."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from benchmarks.minisuperb.worker import work
from benchmarks.shared import rendering, results
from daisy.errors import OutputError


class FakeS3prl:
    """Prints and saves as run_downstream does; may die before a given call."""

    def __init__(self, dies_at=None):
        self.calls, self.dies_at = [], dies_at

    def __call__(self, arguments):
        if len(self.calls) == self.dies_at:
            raise KeyboardInterrupt
        options = dict(pairwise(arguments))
        self.calls.append((options["-m"], options.get("-t")))
        if options["-m"] == "train":
            out = Path(options["-p"])
            out.mkdir(parents=True, exist_ok=True)
            for step in (2, 4):
                print(f"dev acc: {step / 8}")
            torch.save({"Step": 4}, out / "states-4.ckpt")
        else:
            out = Path(options["-o"].split("'")[1])
            place = options["-o"].rsplit("test-")[-1].rstrip("'")
            print(f"test acc: {0.9 if place == 'clean' else 0.5}")
            totals = {"test": {"depth": 0.6, "mean_exit_layer": 7.2, "utterances": 3}}
            (out / "exits_summary.json").write_text(json.dumps({"runs": [{"splits": totals}]}))


@pytest.fixture
def folder(tmp_path):
    spec = {
        "task": "ks",
        "data": "small",
        "corpus": str(tmp_path / "corpus"),
        "config": {"runner": {"total_steps": 4, "eval_step": 2, "eval_dataloaders": ["dev"]}},
        "upstream": ["-u", "fbank"],
        "seed": 3,
        "device": "cpu",
        "options": [],
        "cache": str(tmp_path / "cache"),
        "conditions": ["clean", "0"],
    }
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text(json.dumps(spec))
    return tmp_path / "run"


def test_trains_once_and_scores_every_test_set(folder):
    fake = FakeS3prl()
    result = work(folder, lambda: fake)
    assert fake.calls == [("train", None), ("evaluate", "test"), ("evaluate", "test")]
    assert (result["dev"], result["resumed"]) == ([0.25, 0.5], False)
    assert result["train_sec"] < 60
    assert result["processor"] == rendering.describe_processor(results.describe_machine())
    assert [test["metrics"] for test in result["tests"]] == [{"accuracy": 0.9}, {"accuracy": 0.5}]
    assert result["tests"][1]["exits"]["mean_exit_layer"] == 7.2
    assert json.loads((folder / "result.json").read_text()) == result


def test_goes_on_where_it_was_killed(folder):
    killed, second = FakeS3prl(dies_at=2), FakeS3prl()
    with pytest.raises(KeyboardInterrupt):
        work(folder, lambda: killed)
    assert not (folder / "result.json").exists()
    result = work(folder, lambda: second)
    assert second.calls == [("evaluate", "test")]  # only the test set that was not scored
    assert result["dev"] == [0.25, 0.5]


def test_a_checkpoint_that_a_kill_cut_off_is_not_gone_on_from(folder):
    (folder / "train").mkdir()
    whole, cut = folder / "train" / "states-2.ckpt", folder / "train" / "states-4.ckpt"
    torch.save({"weights": torch.zeros(1000)}, whole)
    cut.write_bytes(whole.read_bytes()[:1500])
    fake = FakeS3prl()
    work(folder, lambda: fake)
    assert fake.calls[0] == ("train", None)
    assert whole.is_file()


def test_an_end_without_a_result_is_an_error(folder):
    fake = FakeS3prl()

    def silent(arguments):
        if "train" in arguments:
            fake(arguments)

    with pytest.raises(OutputError, match="no line with accuracy of test"):
        work(folder, lambda: silent)
    assert not (folder / "result.json").exists()


def test_trained_on_one_upstream_and_tested_on_another(folder):
    spec = json.loads((folder / "run.json").read_text())
    change = {
        "upstream": ["-u", "daisy_local", "-g", "a.json"],
        "training_upstream": ["-u", "daisy_local", "-g", "b.json"],
    }
    (folder / "run.json").write_text(json.dumps(spec | change))
    fake, given = FakeS3prl(), []

    def noting(arguments):
        given.append(dict(pairwise(arguments)))
        fake(arguments)

    work(folder, lambda: noting)
    assert [call.get("-g") for call in given] == ["b.json", None, None]
    assert all(call["-o"].endswith(",,args.upstream_model_config='a.json'") for call in given[1:])


def test_seconds_of_a_training_that_was_gone_on_with_are_unknown(folder):
    (folder / "train").mkdir()
    torch.save({"Step": 2}, folder / "train" / "states-2.ckpt")
    result = work(folder, FakeS3prl)
    assert (result["resumed"], result["train_sec"]) == (True, None)


def test_two_processes_are_not_at_one_run(folder):
    def meanwhile():
        with pytest.raises(OutputError, match="process .* is at this run"):
            work(folder, FakeS3prl)
        return FakeS3prl()

    assert work(folder, meanwhile)["dev"] == [0.25, 0.5]
