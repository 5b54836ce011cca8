"""The real system: actors on Ray, killed while they work."""

import os
import signal
import time

import pytest
import torch

from daisy import EarlyExitEncoder, policies
from daisy.distributed.pipeline.desk_actor import DeskActor
from daisy.distributed.pipeline.fidelity import compare_units
from daisy.distributed.pipeline.model_parts import cut_model
from daisy.distributed.pipeline.run_report import RunEndedError
from daisy.distributed.pipeline.stages import make_exit_settings
from daisy.distributed.pipeline.system import System
from daisy.distributed.pipeline.topology_file import parse_topology
from daisy.errors import UsageError
from tests.conftest import spread_policy, tiny_model

pytest.importorskip("ray", reason="the real system needs ray (extra ray)")

TOPOLOGY = {
    "source": "a",
    "workers": {"a": {"layers": "1-2"}, "b": {"layers": "3-4", "speed": 0.2}, "c": {"layers": "3-4", "speed": 0.2}},
    "links": [{"between": ["a", "b"], "delay_ms": 2}, {"between": ["a", "c"], "delay_ms": 2, "rate_mbit": 50}],
    "rules": {"dead_after_sec": 1.5, "respawn_sec": 0.1},
}


@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_workers_that_are_killed_and_every_task_answered_once(waveforms, cluster):
    model = tiny_model()
    policy = spread_policy(model, waveforms)
    encoder = EarlyExitEncoder(model.backbone, model.heads, policy, keep="last")
    settings = make_exit_settings(model, [policy])
    killed = []

    with System(parse_topology(TOPOLOGY, 4), model, settings, keep_states=True) as system:
        assert system.weight_bytes == {
            name: cut_model(model, *layers).num_bytes for name, layers in (("a", (1, 2)), ("b", (3, 4)), ("c", (3, 4)))
        }
        assert len(set(system.pids.values()) - {os.getpid()}) == 3

        def kill(num_answered):
            for victim, after in (("b", 10), ("a", 40)):
                if num_answered >= after and victim not in killed:
                    os.kill(system.pids[victim], signal.SIGKILL)
                    killed.append(victim)

        report = system.run(waveforms, num_tasks=140, rate=20.0, watch=kill)

    assert killed == ["b", "a"]
    assert report.num_admitted == 140
    assert sorted(record.answer.number for record in report.records) == list(range(140))
    assert [report.workers[name].num_deaths for name in "abc"] == [1, 1, 0]
    assert report.num_restarts > 0
    assert min(sum(w.num_exits for w in report.workers.values()), report.workers["a"].num_computed) >= 120  # of all
    for record in report.records[::10]:
        left = record.answer.payload
        out = encoder([waveforms[record.answer.number % len(waveforms)]])
        assert left.exit_layer == int(out.exit_layer)
        expected = out.states[0][-1]
        torch.testing.assert_close(torch.tensor(left.states), expected, rtol=0, atol=1e-4 * float(expected.std()))
    units = []
    for waveform in waveforms:
        heard = []
        encoder([waveform], observe=heard.append)
        units.append(heard[-1].units)  # at the exit
    assert compare_units(report, units) == [1.0] * 140
    for row in units:
        row[::4] += 1
    expected = [1 - len(row[::4]) / len(row) for row in units]
    of_each = [expected[record.answer.number % len(units)] for record in report.records]
    assert compare_units(report, units) == pytest.approx(of_each)


class ForgetfulDesk(DeskActor):
    def welcome(self, worker, incarnation, handle):
        raise KeyError("no such task")


@pytest.mark.filterwarnings("ignore")
def test_a_desk_that_breaks_down_is_no_death_of_the_worker_that_was_started(waveforms, cluster, monkeypatch):
    monkeypatch.setattr("daisy.distributed.pipeline.system.DeskActor", ForgetfulDesk)
    model, killed = tiny_model(), []
    pipe = {
        "source": "a",
        "workers": {"a": {"layers": "1-2"}, "b": {"layers": "3-4"}},
        "rules": {"dead_after_sec": 5, "respawn_sec": 0.1},
    }

    def kill(num_answered):
        if num_answered >= 5 and not killed:
            killed.append(system.pids["b"])
            os.kill(killed[0], signal.SIGKILL)

    with System(parse_topology(pipe, 4), model, make_exit_settings(model, [policies.Never()])) as system:
        message = r"worker b could not be started anew \(KeyError: 'no such task'\)"
        with pytest.raises(RunEndedError, match=message) as ended:
            system.run(waveforms, num_tasks=40, rate=20.0, watch=kill)
        assert 5 <= len(ended.value.report.records) < 40
        assert ended.value.report.workers["a"].num_computed >= 5
        started = system.pids["b"]
        deadline = time.monotonic() + 20
        while os.path.exists(f"/proc/{started}"):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert started != killed[0]


@pytest.mark.filterwarnings("ignore")
def test_seconds_of_admission_and_what_is_refused_before(waveforms, cluster):
    model = tiny_model()
    settings = make_exit_settings(model, [policies.Never()])
    with System(parse_topology({"workers": {"a": {}}}, 4), model, settings) as system:
        for wrong, message in (({"level": 3}, "level 3 does not"), ({"load": [(3.0, 0.0)]}, "a factor above 0")):
            with pytest.raises(UsageError, match=message):
                system.run(waveforms, **wrong)
        report = system.run(waveforms, seconds=2.05, rate=10.0, even=True)
    assert report.num_admitted == 20
    assert max(record.admitted for record in report.records) < 2.05


def test_a_model_that_does_not_fit_is_refused_before_a_cluster_is_looked_for():
    with pytest.raises(UsageError, match="the topology is for 6 layers, and the model has 4"):
        System(parse_topology({"workers": {"a": {}}}, 6), tiny_model(), None, address="ray://nowhere:1")


def test_a_place_that_no_node_has_is_refused(cluster):
    topology = parse_topology({"workers": {"a": {"place": "pi9"}}}, 4)
    with (
        pytest.raises(UsageError, match="worker a: no node of the Ray cluster has the resource 'pi9'"),
        System(topology, tiny_model(), None),
    ):
        pass
