"""The simulator: known queues, exactly-once answers, determinism, scale."""

import time

import pytest

from daisy.distributed.pipeline.baselines import make_system
from daisy.distributed.pipeline.joint import choose_jointly
from daisy.distributed.pipeline.run_report import RunEndedError
from daisy.distributed.pipeline.timeline import PARTS, Costs, average_parts, break_down, measure_costs
from daisy.distributed.pipeline.topology_file import parse_topology
from daisy.errors import UsageError
from tests.distributed.pipeline.systems import make_workload

simpy = pytest.importorskip("simpy", reason="the simulator needs simpy (extra ray)")
from daisy.distributed.pipeline.simulation import Simulation  # noqa: E402

PIPE = {"source": "a", "workers": {"a": {"layers": "1-2"}, "b": {"layers": "3-4"}, "c": {"layers": "5-6"}}}
SPARE = {  # two that hold the same, and a slow link to one of them
    "source": "a",
    "workers": {"a": {"layers": "1-3"}, "b": {"layers": "4-6"}, "c": {"layers": "4-6"}},
    "links": [{"between": ["a", "b"]}, {"between": ["a", "c"], "delay_ms": 20, "rate_mbit": 1}],
}


def simulate(content, workload=None, num_tasks=300, **options):
    topology = parse_topology(content, 6)
    return Simulation(topology, workload or make_workload(), **options).run(num_tasks=num_tasks)


def test_an_empty_system_takes_the_sum_of_its_times():
    """10 layers of time and two links: 20 ms front end, 6 x 10 ms, two transfers of 6,400 bytes at 1 Mbit/s + 5 ms."""
    links = [{"between": pair, "delay_ms": 5, "rate_mbit": 1} for pair in (["a", "b"], ["b", "c"])]
    report = simulate({**PIPE, "links": links, "rules": {"exits": False}}, num_tasks=20, rate=0.1, even=True)
    assert report.latencies() == pytest.approx([0.02 + 0.06 + 2 * (0.0512 + 0.005)] * 20)
    table = report.to_json()
    assert table["bytes_sent"] == 20 * 2 * 6400
    assert table["answer_bytes"] == 20 * 100
    assert table["fidelity"] == 1.0
    assert table["exit_layers"] == {"6": 20}
    busy = {name: worker.busy_sec for name, worker in report.workers.items()}
    assert busy == pytest.approx({"a": 20 * 0.04, "b": 20 * 0.02, "c": 20 * 0.02})


def test_exits_and_fidelity_are_those_of_the_full_runs():
    workload = make_workload()
    for level in range(3):
        report = simulate(PIPE, workload, num_tasks=100, rate=5, level=level)
        exits = {record.answer.number: record.answer.exit_layer for record in report.records}
        assert [exits[i] for i in range(100)] == list(workload.exit_layers[level])
        assert sum(report.fidelity) / 100 == pytest.approx(workload.mean_fidelity(level))
        assert sum(worker.num_exits for worker in report.workers.values()) == 100
    assert report.to_json()["fidelity"] < 0.9


def test_one_worker_is_a_queue_whose_mean_delay_is_known():
    """One server with even service times: Pollaczek and Khinchine's mean wait, rho s / 2 (1 - rho)."""
    service, rate = 0.08, 8.0
    content = {"workers": {"a": {}}, "rules": {"exits": False}}
    report = simulate(content, num_tasks=20000, rate=rate)
    rho = rate * service
    assert sum(report.latencies()) / 20000 == pytest.approx(service + rho * service / (2 * (1 - rho)), rel=0.05)
    assert report.throughput == pytest.approx(rate, rel=0.02)
    assert report.to_json()["workers"]["a"]["utilisation"] == pytest.approx(rho, rel=0.02)


def test_the_same_seed_gives_the_same_run_and_another_another():
    runs = [simulate(SPARE, rate=15, seed=seed, kills=[(3.0, "b")]).to_json() for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]


def test_an_adapting_rate_finds_what_the_bottleneck_can_do():
    content = {**PIPE, "rules": {"admission": "rate", "exits": False}}
    report = simulate(content, num_tasks=2000, rate=1.0)
    steady = report.windows(10)[3:-1]
    most = 1 / 0.04  # front end and two layers: the slowest
    assert sum(window["throughput"] for window in steady) / len(steady) == pytest.approx(most, rel=0.15)
    assert report.latencies()[-1] < 2.0  # the queue stays short


def test_an_adapting_threshold_leaves_earlier_under_load_and_later_again():
    content = {"workers": {"a": {}}, "rules": {"admission": "threshold"}}
    workload = make_workload(num_levels=5)
    report = Simulation(parse_topology(content, 6), workload, rate=11, load=[(0, 1), (60, 1.6), (120, 0.5)]).run(
        seconds=180
    )
    calm, busy, easy = report.windows(60)[:3]
    assert calm["mean_level"] < 0.1
    assert busy["mean_level"] > 0.5
    assert easy["mean_level"] < 0.1
    assert busy["fidelity"] < 0.9
    assert easy["fidelity"] > 0.99
    assert busy["throughput"] == pytest.approx(17.6, rel=0.1)


def test_offloading_by_queues_uses_who_is_free_and_random_does_not_look():
    """c is behind a slow link and as slow as a tenth of b: queues give it little, chance gives it half."""
    workers = {**SPARE["workers"], "c": {"layers": "4-6", "speed": 0.1}}
    content = {**SPARE, "workers": workers}
    by_queues = simulate(content, rate=12, num_tasks=1000)
    topology = make_system("random", parse_topology(content, 6))
    at_random = Simulation(topology, make_workload(), rate=12).run(num_tasks=1000)
    shares = [report.workers["c"].num_computed / report.workers["a"].num_sent for report in (by_queues, at_random)]
    assert shares[0] < 0.1
    assert shares[1] > 0.25
    assert by_queues.latencies()[900] < at_random.latencies()[900] / 2


def test_kills_lose_nothing_and_answer_nothing_twice():
    kills = [(float(2 + 2 * i), "abc"[i % 3]) for i in range(10)]
    report = simulate(SPARE, rate=15, num_tasks=600, kills=kills, seed=5)
    assert report.num_admitted == 600
    assert sorted(record.answer.number for record in report.records) == list(range(600))
    assert report.num_restarts > 5
    assert [report.workers[name].num_deaths for name in "abc"] == [4, 3, 3]


def test_an_answer_that_comes_while_the_next_attempt_waits_counts():
    """a dies with a task on the link of 200 ms; b answers it when the source thinks it lost with a, and nobody is a."""
    workers = {"a": {"layers": "1-4"}, "b": {"layers": "5-6", "speed": 0.05}}
    content = {"source": "a", "workers": workers, "links": [{"between": ["a", "b"], "delay_ms": 200}]}
    for when in (1.2, 1.6, 1.9):
        report = simulate({**content, "rules": {"exits": False}}, num_tasks=30, rate=5, kills=[(when, "a")])
        assert sorted(record.answer.number for record in report.records) == list(range(30))


def test_a_worker_that_is_never_replaced_is_done_without():
    content = {**SPARE, "rules": {"respawn_sec": None}}
    report = simulate(content, rate=10, num_tasks=200, kills=[(2.0, "b")])
    assert len(report.records) == 200
    assert report.workers["c"].num_computed > 50
    with pytest.raises(RunEndedError, match="layers 1-3 were held by a only") as ended:
        simulate(content, rate=10, num_tasks=200, even=True, kills=[(2.0, "a")])
    report = ended.value.report  # of two seconds, with what was in the queues
    assert 10 <= len(report.records) <= 20
    assert all(record.answered < 3.2 for record in report.records)
    assert report.workers["a"].num_deaths == 1
    assert report.to_json()["error"] == str(ended.value)


def test_answers_that_come_after_a_restart_are_dropped():
    """Tasks are begun again after a time that many need: both attempts are answered, and one counts."""
    content = {**PIPE, "rules": {"restart_after_sec": 0.15}}
    report = simulate(content, rate=15, num_tasks=400)
    assert report.num_restarts > 0
    assert report.num_late > 0
    assert sorted(record.answer.number for record in report.records) == list(range(400))


def test_losses_take_the_links_time_again():
    link = {"between": ["a", "b"], "rate_mbit": 1, "loss": 0.5}
    content = {"source": "a", "workers": {"a": {"layers": "1-2"}, "b": {"layers": "3-6"}}, "links": [link]}
    report = simulate({**content, "rules": {"exits": False}}, rate=5, num_tasks=1000)
    assert report.workers["a"].bytes_sent / (1000 * 6400) == pytest.approx(2.0, rel=0.05)


def test_higher_priorities_wait_less():
    sources = {"a": {"rate": 5, "priority": 0}, "b": {"rate": 5, "priority": 1}}
    content = {"workers": {"a": {}, "b": {}}, "sources": sources, "links": []}
    both = {
        **content,
        "workers": {"a": {"layers": "1-2"}, "b": {"layers": "1-2"}, "c": {"layers": "3-6", "speed": 0.23}},
    }
    del both["links"]
    report = simulate(both, num_tasks=1500)
    table = report.to_json()["by_priority"]
    assert table["0"]["median_latency_sec"] > 1.5 * table["1"]["median_latency_sec"]


def test_fewer_bits_are_fewer_bytes():
    sizes = [simulate(PIPE, num_tasks=50, rate=5, wire=wire).to_json()["bytes_sent"] for wire in ("float32", "int8")]
    assert sizes[0] / sizes[1] == pytest.approx(4 * 32 / (32 + 4))


def test_the_joint_choice_sends_more_to_the_faster_and_leaves_earlier_under_load():
    workers = {"a": {"layers": "1-3"}, "b": {"layers": "4-6", "speed": 0.3}, "c": {"layers": "4-6", "speed": 0.15}}
    topology = make_system("joint", parse_topology({"source": "a", "workers": workers}, 6))
    workload = make_workload()
    calm, busy = (choose_jointly(topology, workload, rate) for rate in (1.0, 19.0))
    dear = choose_jointly(topology, workload, 19.0, price_per_sec=2.0)
    assert calm.level == 0
    assert busy.delay_sec > 5 * calm.delay_sec
    assert dear.level > 0
    assert calm.routes[1]["b"] > 0.95  # alone it is the faster
    loaded = choose_jointly(topology, workload, 17.0, levels=[0]).routes[1]
    assert 0.6 < loaded["b"] < 0.95
    assert loaded["b"] + loaded["c"] == pytest.approx(1.0)
    report = Simulation(topology, workload, rate=17, routes={1: loaded}).run(num_tasks=1000)
    assert report.workers["b"].num_computed / report.workers["a"].num_sent == pytest.approx(loaded["b"], abs=0.05)


def test_a_thousand_workers():
    """A hundred pipelines of ten, each stage linked to two of the next."""
    workers, links, sources = {}, [], {}
    for i in range(250):
        for stage in range(4):
            workers[f"w{i}s{stage}"] = {"layers": str(stage + 1) if stage < 3 else "4-6"}
            if stage:
                links += [
                    {"between": [f"w{j}s{stage - 1}", f"w{i}s{stage}"], "delay_ms": 2} for j in (i, (i + 1) % 250)
                ]
        sources[f"w{i}s0"] = {"rate": 2}
    topology = parse_topology(
        {"workers": workers, "links": links, "sources": sources, "rules": {"status_sec": 1, "dead_after_sec": 3}}, 6
    )
    begun = time.perf_counter()
    report = Simulation(topology, make_workload(), seed=1).run(num_tasks=500)
    assert len(report.workers) == 1000
    assert len(report.records) == 500
    assert report.throughput == pytest.approx(500, rel=0.3)
    assert time.perf_counter() - begun < 60


def test_models_that_do_not_go_together_are_refused():
    with pytest.raises(UsageError, match="the topology is for 6 layers, and the workload has 5"):
        simulate(PIPE, make_workload(num_layers=5))
    simulation = Simulation(parse_topology(PIPE, 6), make_workload())
    with pytest.raises(UsageError, match="a number of tasks or a number of seconds"):
        simulation.run()


LINKED = {
    "source": "a",
    "workers": {"a": {"layers": "1-2"}, "b": {"layers": "3-6", "speed": 0.5}},
    "links": [{"between": ["a", "b"], "delay_ms": 5, "rate_mbit": 1}],
    "rules": {"exits": False},
}
COSTS = Costs(admission_sec=0.003, hop_sec=0.007, answer_sec=0.002, slowdown={("a", 0): 1.5, ("b", 1): 2.0})


def test_costs_are_in_every_latency():
    """Front end and two layers 1.5 times as long, four layers at half the speed twice as long, and each hop."""
    report = simulate(LINKED, num_tasks=20, rate=0.1, even=True, costs=COSTS)
    link = 0.0512 + 0.005
    assert report.latencies() == pytest.approx([0.003 + 1.5 * 0.04 + link + 0.007 + 4 * 0.04 + 0.002] * 20)
    (one,) = {tuple(round(seconds, 9) for seconds in one.seconds.values()) for one in break_down(report)}
    assert dict(zip(PARTS, one, strict=True)) == pytest.approx(
        {
            "admission": 0.003,
            "queued": 0.0,
            "computing": 0.06 + 0.16,
            "waiting_to_send": 0.0,
            "link": link,
            "hop": 0.007,
            "answering": 0.002,
        }
    )


def test_costs_are_measured_as_they_are():
    """Under load, with queues, and of exits of all kinds."""
    content = {**LINKED, "rules": {}}
    report = simulate(content, num_tasks=200, rate=6, level=1, costs=COSTS)
    measured = measure_costs(report, parse_topology(content, 6), make_workload())
    assert (measured.admission_sec, measured.hop_sec, measured.answer_sec) == pytest.approx((0.003, 0.007, 0.002))
    assert measured.slowdown == pytest.approx(COSTS.slowdown)
    divisions = break_down(report)
    assert len(divisions) == 200
    for record, one in zip(report.records, divisions, strict=True):
        assert sum(one.seconds.values()) == pytest.approx(record.answered - record.admitted)
    assert average_parts(divisions)["queued"] > 0.01


@pytest.mark.parametrize(("cores", "threads", "factor"), [(1, 1, 2.0), (2, 1, 1.0), (2, 2, 2.0), (3, 2, 4 / 3)])
def test_workers_of_a_machine_share_its_cores(cores, threads, factor):
    """Two sources at the same moments, each of whose tasks takes 80 ms alone."""
    workers = {name: {"threads": threads} for name in "ab"}
    content = {"workers": workers, "links": [], "sources": {"a": {}, "b": {}}, "cores": {"here": cores}}
    report = simulate({**content, "rules": {"exits": False}}, num_tasks=20, rate=1, even=True)
    assert report.latencies() == pytest.approx([factor * 0.08] * 20)


def test_a_core_is_shared_as_long_as_both_want_it():
    """The second comes 40 ms after the first: 40 ms alone, then 80 ms at half the speed each, and the second alone."""
    content = {"workers": {"a": {}, "b": {}}, "links": [], "cores": {"here": 1}, "rules": {"exits": False}}
    sources = {"a": {"rate": 1 / 0.5}, "b": {"rate": 1 / 0.54}}
    report = simulate({**content, "sources": sources}, num_tasks=2, even=True)
    assert report.latencies() == pytest.approx([0.12, 0.12])


def test_the_dead_want_no_core():
    """a dies 20 ms after b's task has come, of which 10 ms are done: the other 70 ms have the core alone."""
    content = {"workers": {"a": {}, "b": {}}, "links": [], "cores": {"here": 1}, "rules": {"exits": False}}
    sources = {"a": {"rate": 1 / 0.5}, "b": {"rate": 1 / 0.54}}
    report = simulate({**content, "sources": sources}, num_tasks=2, even=True, kills=[(0.56, "a")])
    assert report.latencies()[0] == pytest.approx(0.09)
    assert (report.num_restarts, report.workers["a"].num_computed, report.workers["b"].num_computed) == (1, 0, 2)


def test_an_emulated_speed_wants_a_core_only_while_it_computes():
    """At a tenth of the speed: 80 ms of a core, then 720 ms of waiting; two of them on one core are as two alone."""
    workers = {name: {"speed": 0.1} for name in "ab"}
    content = {"workers": workers, "links": [], "sources": {"a": {}, "b": {}}, "cores": {"here": 1}}
    report = simulate({**content, "rules": {"exits": False}}, num_tasks=4, rate=0.5, even=True)
    assert report.latencies() == pytest.approx([0.8] * 4)
