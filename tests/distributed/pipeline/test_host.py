"""Hosts without Ray: threads of one process that pass tasks to one another, with a real model, while some die."""

import threading
import time
from random import Random

import pytest
import torch

from daisy import EarlyExitEncoder
from daisy.distributed.pipeline.desk import Desk
from daisy.distributed.pipeline.host import Host
from daisy.distributed.pipeline.model_parts import cut_model
from daisy.distributed.pipeline.run_report import RunReport
from daisy.distributed.pipeline.stages import Package, StageModel, make_exit_settings
from daisy.distributed.pipeline.tasks import Task
from daisy.distributed.pipeline.timeline import break_down
from daisy.distributed.pipeline.topology_file import parse_topology
from daisy.distributed.pipeline.worker import Worker
from daisy.policies import Never
from tests.conftest import spread_policy, tiny_model

WORKERS = {"a": {"layers": "1-2"}, "b": {"layers": "3-4"}, "c": {"layers": "3-4"}}
RULES = {"status_sec": 0.01, "dead_after_sec": 0.3, "respawn_sec": None}


class Nobody:
    """The peers of a host that has died: nothing that it still does reaches anybody."""

    def send(self, sending, sender):
        raise ConnectionError(sending.neighbour)

    def tell(self, *what):
        pass

    report_moved = report_answer = report_failure = tell


class ThreadSystem:
    """What the actors do, in one process: `daisy.distributed.pipeline.host.Peers` of all workers."""

    def __init__(self, content, model, policy, rate=200.0):
        self.topology = parse_topology({"source": "a", "rules": RULES, **content}, model.backbone.config.num_layers)
        self.lock, self.hosts, self.incarnations = threading.RLock(), {}, {}
        self.failures, self.told = [], {}
        self.model, self.settings = model, make_exit_settings(model, [policy])
        self.desk = Desk(self.topology, Random(0), rate=rate)
        self.began = time.monotonic()
        for place in self.topology.workers:
            self.start(place.name, 1)

    def start(self, name, incarnation):
        place, neighbours = self.topology.worker(name), self.topology.neighbours_of(name)
        machine = Worker(
            name,
            self.topology.stages_of(name),
            neighbours,
            self.topology.rules,
            Random(0),
            incarnation=incarnation,
        )
        links = {n.name: self.topology.link(name, n.name) for n in neighbours}
        part = StageModel(cut_model(self.model, place.first, place.last), self.settings, keep_states=True)
        stages = self.topology.stages
        host = Host(machine, part, stages, links, self, speed=place.speed, random=Random(1))
        self.hosts[name], self.incarnations[name] = host, incarnation
        host.start()

    def kill(self, name):
        host = self.hosts.pop(name)
        host.peers = Nobody()
        host.stop()

    def now(self):
        return time.monotonic() - self.began

    def send(self, sending, sender):
        host = self.hosts.get(sending.neighbour)
        if host is None or self.incarnations[sending.neighbour] != sending.incarnation:
            raise ConnectionError(sending.neighbour)
        return host.accept(sending.task, sender, self.incarnations[sender])

    def tell(self, status, report):
        with self.lock:
            self.told[status.worker] = report
            self.desk.hear(status, self.now())
        for host in list(self.hosts.values()):
            if host.machine.name != status.worker:
                host.hear(status)

    def report_moved(self, sending):
        with self.lock:
            begins = self.desk.moved(sending.task, sending.neighbour, sending.incarnation, self.now())
        self.begin(begins)

    def report_answer(self, answer):
        with self.lock:
            self.desk.answer(answer, self.now())

    def report_failure(self, reason):
        self.failures.append(reason)

    def begin(self, begins):
        for begin in begins:
            if begin.worker in self.hosts:
                self.hosts[begin.worker].accept(begin.task)

    def admit(self, waveform):
        package = Package(waveform=waveform.numpy())

        def make(number, level, priority):
            return Task(
                number=number, level=level, work=len(waveform) / 16000, num_bytes=package.num_bytes, payload=package
            )

        with self.lock:
            begins = self.desk.admit(0, make, self.now())
        self.begin(begins)

    def wait(self, until, limit_sec=30):
        """Do the desk's rounds until something is so."""
        end = time.monotonic() + limit_sec
        while not until():
            assert time.monotonic() < end, f"{self.desk.ledger.num_open} tasks are without an answer"
            with self.lock:
                deaths, begins = self.desk.check(self.now())
            for death in deaths:
                for host in self.hosts.values():
                    host.lose(death.worker, death.incarnation)
            self.begin(begins)
            time.sleep(0.01)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for host in self.hosts.values():
            host.stop()


@pytest.fixture
def system_model():
    return tiny_model()


def test_a_system_gives_what_the_encoder_gives(system_model, waveforms):
    policy = spread_policy(system_model, waveforms)
    expected = EarlyExitEncoder(system_model.backbone, system_model.heads, policy, keep="last")
    with ThreadSystem({"workers": WORKERS}, system_model, policy) as system:
        for waveform in waveforms:
            system.admit(waveform)
        system.wait(lambda: not system.desk.ledger.num_open)
        records = system.desk.ledger.records
        for number, waveform in enumerate(waveforms):
            left, out = records[number].answer.payload, expected([waveform])
            assert left.exit_layer == int(out.exit_layer)
            states = out.states[0][-1]
            torch.testing.assert_close(torch.tensor(left.states), states, rtol=0, atol=1e-4 * float(states.std()))
        reports = {name: host.get_report() for name, host in system.hosts.items()}
    assert sum(report.num_exits for report in reports.values()) == len(waveforms)
    assert reports["a"].num_computed == len(waveforms)
    assert reports["b"].num_computed + reports["c"].num_computed == reports["a"].num_sent > 0


def test_a_worker_that_dies_is_done_without(system_model, waveforms):
    """b dies with tasks in its queue; each admitted task is answered exactly once."""
    workers = {**WORKERS, "b": {"layers": "3-4", "speed": 0.02}}
    policy = spread_policy(system_model, waveforms)
    with ThreadSystem({"workers": workers}, system_model, policy) as system:
        for _ in range(4):
            for waveform in waveforms:
                system.admit(waveform)
        system.wait(lambda: system.hosts["b"].machine.status().queued > 0)
        system.kill("b")
        system.wait(lambda: not system.desk.ledger.num_open)
        ledger = system.desk.ledger
        assert sorted(ledger.records) == list(range(4 * len(waveforms)))
        assert ledger.num_restarts > 0
        assert {record.answer.worker for record in ledger.records.values()} <= {"a", "b", "c"}


def test_a_speed_is_kept_by_waiting(system_model, waveforms):
    workers = {"a": {"speed": 0.05}}
    with ThreadSystem({"workers": workers}, system_model, spread_policy(system_model, waveforms)) as system:
        host = system.hosts["a"]
        package = Package(waveform=waveforms[6].numpy())
        begun, processor = time.perf_counter(), time.thread_time()
        seconds, _ = host.run_paced(Task(number=0, payload=package))
        wall, used = time.perf_counter() - begun, time.thread_time() - processor
    assert seconds == pytest.approx(wall, abs=0.02)
    assert wall >= 0.9 * used / 0.05 * 0.9


def test_links_take_their_time(system_model, waveforms):
    """One task over a link of 0.2 s and 1 Mbit/s: 24,000 frames' worth of states take what they must."""
    link = {"between": ["a", "b"], "delay_ms": 200, "rate_mbit": 0.1}
    content = {"workers": {"a": {"layers": "1-2"}, "b": {"layers": "3-4"}}, "links": [link]}
    with ThreadSystem(content, system_model, Never()) as system:
        system.admit(waveforms[4])
        system.wait(lambda: not system.desk.ledger.num_open)
        record, report = system.desk.ledger.records[0], system.hosts["a"].get_report()
    assert report.bytes_sent == 49 * 32 * 4
    least = 0.2 + report.bytes_sent * 8 / 1e5
    assert least <= record.answered - record.admitted < least + 0.5


def test_what_cannot_be_computed_is_told_and_the_rest_goes_on(waveforms):
    model = tiny_model()
    system = ThreadSystem({"workers": WORKERS}, model, spread_policy(model, waveforms))
    system.admit(torch.zeros(10))  # less than a frame
    system.admit(waveforms[0])
    deadline = time.monotonic() + 20
    while not (system.failures and system.desk.ledger.records):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert system.failures[0].startswith("worker a, task 0: ")
    assert list(system.desk.ledger.records) == [1]
    for name in list(system.hosts):
        system.kill(name)


def test_a_worker_that_breaks_down_tells_it_first(system_model, waveforms, monkeypatch):
    with ThreadSystem({"workers": WORKERS}, system_model, Never()) as system:
        machine, ended = system.hosts["a"].machine, []
        monkeypatch.setattr(threading, "excepthook", ended.append)
        monkeypatch.setattr(machine, "finish", lambda *what: 1 / 0)
        monkeypatch.setattr(machine, "abandon", lambda: 1 / 0)
        system.admit(waveforms[0])
        deadline = time.monotonic() + 20
        while not (system.failures and ended):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert system.failures == ["worker a, task 0: ZeroDivisionError('division by zero')"]


class FaultySystem(ThreadSystem):
    """The first thing that is sent cannot be."""

    is_whole = False

    def send(self, sending, sender):
        if not self.is_whole:
            self.is_whole = True
            raise TypeError("cannot be pickled")
        return super().send(sending, sender)


def test_what_cannot_be_sent_is_told_and_tried_again(system_model, waveforms):
    with FaultySystem({"workers": WORKERS}, system_model, Never()) as system:
        system.admit(waveforms[0])
        system.wait(lambda: not system.desk.ledger.num_open, limit_sec=10)  # overdue only after 120 s
        assert system.desk.ledger.num_restarts == 0
        (failure,) = system.failures
    assert failure.startswith("worker a, task 0 to ")
    assert failure.endswith("TypeError('cannot be pickled')")


def test_workers_tell_what_they_have_done(system_model, waveforms):
    with ThreadSystem({"workers": WORKERS}, system_model, Never()) as system:
        for waveform in waveforms:
            system.admit(waveform)
        # Each worker reports by itself: what b has answered, a may not yet have told that it sent.
        system.wait(lambda: system.told and sum(told.num_exits for told in system.told.values()) == len(waveforms))
        system.wait(lambda: system.told["a"].num_sent == len(waveforms))
        told = dict(system.told)
    assert told["a"].num_computed == told["a"].num_sent == len(waveforms)
    assert told["b"].num_computed + told["c"].num_computed == len(waveforms)
    assert min(one.busy_sec for one in told.values() if one.num_computed) > 0


def test_parts_of_latencies_sum_up_to_them(waveforms):
    model = tiny_model()
    link = {"delay_ms": 30, "rate_mbit": 4}
    links = [{"between": ["a", "b"], **link}, {"between": ["a", "c"], **link}]
    system = ThreadSystem({"workers": WORKERS, "links": links}, model, spread_policy(model, waveforms))
    for waveform in waveforms:
        system.admit(waveform)
    deadline = time.monotonic() + 20
    while len(system.desk.ledger.records) < len(waveforms):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    records = list(system.desk.ledger.records.values())
    report = RunReport(
        seconds=1.0,
        records=records,
        workers={name: host.get_report() for name, host in system.hosts.items()},
        fidelity=[],
        work=[],
        num_admitted=len(records),
        began=system.began,
    )
    divisions = break_down(report)
    assert len(divisions) == len(records)
    assert {one.num_hops for one in divisions} == {0, 1}
    for record, one in zip(records, divisions, strict=True):
        assert sum(one.seconds.values()) == pytest.approx(record.answered - record.admitted, abs=1e-6)
        assert min(one.seconds.values()) > -1e-3
        if one.num_hops:
            assert one.seconds["link"] > 0.03
            assert one.seconds["hop"] < 0.5
    for name in list(system.hosts):
        system.kill(name)
