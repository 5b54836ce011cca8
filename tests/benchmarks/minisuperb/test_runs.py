"""Runs are finished one by one, not repeated, and not overwritten unless requested."""

import json
import re
import signal
import threading
import time

import pytest

from benchmarks.minisuperb import runs
from benchmarks.minisuperb.runs import Run, finish_runs
from benchmarks.minisuperb.upstreams import Upstream
from benchmarks.minisuperb.worker import hold_run
from daisy.errors import OutputError


def test_a_finished_run_is_not_repeated_and_another_not_overwritten(tmp_path):
    upstream = Upstream(name="fbank", arguments=("-u", "fbank"))
    spec = {"seed": 0, "config": {"a": [1]}, "cache": "somewhere"}
    make = lambda **changes: Run(  # noqa: E731
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


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_begins_no_other_run(tmp_path, monkeypatch):
    begun = []

    def execute(run):
        begun.append(run.seed)
        if run.seed == 1:
            time.sleep(0.1)  # until the main thread waits: a signal just before that is seen only afterwards
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)  # as a terminal does: not this thread
            time.sleep(0.3)
        return ""

    monkeypatch.setattr(runs, "execute", execute)
    upstream = Upstream(name="fbank", arguments=("-u", "fbank"))
    five = [
        Run(task="ks", upstream=upstream, seed=seed, folder=tmp_path / str(seed), spec={"seed": seed})
        for seed in range(5)
    ]
    with pytest.raises(KeyboardInterrupt):
        finish_runs(five, jobs=1, overwrite=False)
    assert begun == [0, 1]


def test_runs_are_overwritten_one_by_one_and_not_while_another_process_is_at_them(tmp_path, monkeypatch):
    there = {}

    def execute(run):
        there[run.seed] = [(tmp_path / str(seed) / "result.json").is_file() for seed in range(3)]
        return ""

    monkeypatch.setattr(runs, "execute", execute)
    upstream = Upstream(name="fbank", arguments=("-u", "fbank"))
    for rate in (1, 2):
        three = [
            Run(task="ks", upstream=upstream, seed=seed, folder=tmp_path / str(seed), spec={"seed": seed, "rate": rate})
            for seed in range(3)
        ]
        if rate == 1:
            assert finish_runs(three, jobs=1, overwrite=False) == []
            for run in three:
                (run.folder / "result.json").write_text("{}")
                (run.folder / "train").mkdir()
    with hold_run(three[1].folder):
        (failure,) = finish_runs(three, jobs=1, overwrite=True)
    assert re.fullmatch(r"ks fbank seed 1: .*: process \d+ on .* is at this run", failure)
    assert there == {0: [False, True, True], 1: [False] * 3, 2: [False, True, False]}
    assert [sorted(path.name for path in run.folder.iterdir()) for run in three] == [
        ["run.json"],
        ["result.json", "run.json", "train"],
        ["run.json"],
    ]
    assert [json.loads((run.folder / "run.json").read_text())["rate"] for run in three] == [2, 1, 2]
