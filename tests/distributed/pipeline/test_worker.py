"""Queues and decisions of one worker, step by step."""

from random import Random

import numpy
import pytest

from daisy.distributed.pipeline.offloading import Candidate, choose_by_queues, choose_first_done, draw_holder
from daisy.distributed.pipeline.rules import Rules
from daisy.distributed.pipeline.tasks import Status, Task
from daisy.distributed.pipeline.worker import Neighbour, Worker

SERVICE = {0: 1.0, 1: 2.0, 2: 4.0}


def make_worker(stages=range(0, 2), neighbours=(), rules=None, seed=0, **options):
    return Worker("me", stages, neighbours, rules or Rules(), Random(seed), service_sec=SERVICE, **options)


def neighbour(name="you", stages=range(0, 3), delay_sec=0.0, sec_per_byte=0.0):
    return Neighbour(name=name, stages=stages, delay_sec=delay_sec, sec_per_byte=sec_per_byte)


def status(name="you", queued=0, backlog_sec=0.0, incarnation=1, received=0, service_sec=None):
    return Status(
        worker=name,
        incarnation=incarnation,
        queued=queued,
        backlog_sec=backlog_sec,
        waiting=queued,
        service_sec=service_sec or {},
        received={"me": received},
    )


def numbers(sendings):
    return [(sending.neighbour, sending.task.number) for sending in sendings]


def test_a_worker_by_itself_computes_stage_after_stage_in_the_order_of_arrival():
    worker = make_worker(range(0, 3))
    for number in range(2):
        worker.accept(Task(number=number))
    order = []
    while (task := worker.take()) is not None:
        assert worker.take() is None  # one at a time
        order.append((task.number, task.stage))
        worker.finish(1.0, task.replace(stage=task.stage + 1) if task.stage < 2 else None)
    assert order == [(0, 0), (1, 0), (0, 1), (1, 1), (0, 2), (1, 2)]
    assert worker.choose() == []
    assert worker.status().waiting == 0


def test_higher_priorities_go_first_and_equals_in_the_order_of_arrival():
    worker = make_worker(range(0, 3))
    for number, priority in enumerate((0, 2, 1, 2, 0)):
        worker.accept(Task(number=number, priority=priority), sender="you")
    order = []
    while (task := worker.take()) is not None:
        order.append(task.number)
        worker.finish(1.0, None)
    assert order == [1, 3, 2, 0, 4]


def test_what_is_not_held_here_goes_to_where_it_is_done_first():
    near, far = neighbour("near", delay_sec=0.1), neighbour("far", delay_sec=1.0)
    worker = make_worker(range(0, 2), [near, far, neighbour("other", stages=range(0, 1))])
    worker.hear(status("near", queued=1, backlog_sec=5.0, service_sec={2: 4.0}))
    worker.hear(status("far", queued=1, backlog_sec=0.5, service_sec={2: 4.5}))
    worker.accept(Task(number=7, stage=2))
    assert worker.take() is None  # stage 2 is not held here
    (sending,) = worker.choose()
    assert (sending.neighbour, sending.incarnation, sending.task.hops) == ("far", 1, 1)  # 6.0 s, near 9.1 s


def test_a_link_carries_one_task_at_a_time():
    worker = make_worker(range(0, 2), [neighbour()])
    for number in range(3):
        worker.accept(Task(number=number, stage=2))
    assert numbers(worker.choose()) == [("you", 0)]
    assert worker.choose() == []
    worker.free_link("you")
    assert numbers(worker.choose()) == [("you", 1)]


def test_what_is_on_its_way_counts_until_the_neighbour_has_counted_it():
    worker = make_worker(range(0, 2), [neighbour()], Rules(neighbour_limit=2))
    for number in range(4):
        worker.accept(Task(number=number, stage=2))
    for number in range(2):
        assert numbers(worker.choose()) == [("you", number)]
        worker.free_link("you")
    assert worker.choose() == []  # two are on their way, and that is the limit
    worker.hear(status(queued=0, received=1))  # the first has come, and is done already
    assert numbers(worker.choose()) == [("you", 2)]
    worker.free_link("you")
    worker.hear(status(queued=2, received=3))  # all have come, and two wait there
    assert worker.choose() == []
    worker.hear(status(queued=1, received=3))
    assert numbers(worker.choose()) == [("you", 3)]


def test_the_next_stage_is_kept_by_an_idle_worker_and_offered_by_a_busy_one():
    worker = make_worker(range(0, 3), [neighbour()])
    worker.accept(Task(number=0))
    assert worker.status().queued == 1
    assert worker.choose() == []
    worker.accept(Task(number=1))  # the input queue is not empty: to the output queue
    assert (worker.status().queued, worker.status().waiting) == (1, 2)
    assert numbers(worker.choose()) == [("you", 1)]  # 1 s of work here, nobody there


def test_an_idle_worker_takes_back_what_waits_for_sending():
    worker = make_worker(range(0, 3), [neighbour()])
    worker.hear(status(queued=9, backlog_sec=90.0))
    worker.accept(Task(number=0))
    worker.accept(Task(number=1))
    assert worker.choose() == []
    assert worker.take().number == 0
    worker.finish(1.0, None)
    assert worker.take().number == 1


def test_a_long_output_queue_keeps_tasks_here():
    worker = make_worker(range(0, 3), [neighbour()], Rules(output_limit=2))
    worker.hear(status(queued=9, backlog_sec=90.0))
    for number in range(6):
        worker.accept(Task(number=number))
    said = worker.status()
    assert (said.queued, said.waiting) == (3, 6)  # the first, then three to the output queue, then here again


def test_service_times_are_moving_averages_of_a_unit_of_work():
    worker = make_worker(range(0, 3), rules=Rules(memory=0.75))
    for seconds, work in ((6.0, 2.0), (10.0, 2.0)):
        worker.accept(Task(number=0, work=work))
        worker.take()
        worker.finish(seconds, None)
    assert worker.status().service_sec == {0: pytest.approx(0.75 * 3 + 0.25 * 5)}
    worker.accept(Task(number=1, work=10.0))
    assert worker.status().backlog_sec == pytest.approx(10 * 3.5)


def test_transfers_are_measured_beside_what_the_link_declares():
    worker = make_worker(range(0, 2), [neighbour("a", sec_per_byte=1e-3), neighbour("b")], Rules(memory=0.0))
    worker.delivered("b", 100, 0.5)
    worker.accept(Task(number=0, stage=2, num_bytes=100))  # a: 0.1 s, b: 0.5 s
    assert numbers(worker.choose()) == [("a", 0)]
    worker.free_link("a")
    worker.hear(status("a", received=1))
    worker.delivered("a", 100, 0.9)  # 0.8 s more than it declares
    worker.accept(Task(number=1, stage=2, num_bytes=100))
    assert numbers(worker.choose()) == [("b", 1)]


def test_a_task_that_cannot_be_sent_comes_back_and_goes_elsewhere():
    worker = make_worker(range(0, 2), [neighbour("a"), neighbour("b", delay_sec=1.0)])
    worker.accept(Task(number=0, stage=2))
    (sending,) = worker.choose()
    worker.free_link("a")
    worker.failed(sending)
    (again,) = worker.choose()
    assert again.neighbour == "b"
    assert again.task == sending.task
    worker.free_link("b")
    worker.accept(Task(number=1, stage=2))
    assert numbers(worker.choose()) == [("b", 1)]  # a is still not heard of
    worker.free_link("b")
    worker.hear(status("a"))
    worker.accept(Task(number=2, stage=2))
    assert numbers(worker.choose()) == [("a", 2)]


def test_the_dead_get_nothing_until_they_are_started_anew():
    worker = make_worker(range(0, 2), [neighbour()])
    worker.accept(Task(number=0, stage=2))
    worker.lose("you", 1)
    assert worker.choose() == []
    worker.hear(status(incarnation=1))  # was said before it died
    assert worker.choose() == []
    worker.welcome("you", 2)
    (sending,) = worker.choose()
    assert sending.incarnation == 2
    worker.free_link("you")
    worker.failed(sending._replace(incarnation=1))  # of an earlier life: says nothing of this one
    assert numbers(worker.choose()) == [("you", 0)]


def test_a_new_start_is_also_learnt_from_what_it_says():
    worker = make_worker(range(0, 2), [neighbour()])
    worker.accept(Task(number=0, stage=2))
    worker.lose("you", 1)
    worker.hear(status(incarnation=2))
    assert worker.choose()[0].incarnation == 2


def test_a_sender_that_was_started_anew_is_counted_from_nothing():
    rules = Rules(neighbour_limit=2)
    sender, me = neighbour("a", stages=range(0, 1)), neighbour("me", stages=range(1, 2))
    taker = make_worker(range(1, 2), [sender])
    for number in range(10):
        taker.accept(Task(number=number, stage=1), "a")
    while taker.take() is not None:
        taker.finish(1.0, None)
    again = Worker("a", range(0, 1), [me], rules, Random(0), incarnation=2)
    taker.accept(Task(number=50, stage=1), "a", incarnation=2)  # before anybody else says that it is a new one
    taker.welcome("a", 2)
    taker.accept(Task(number=51, stage=1), "a", incarnation=1)  # was on its way when the first one died
    assert taker.status().received == {"a": 1}
    for number in range(100, 110):
        again.accept(Task(number=number, stage=1))
    sent = []
    for _ in range(10):  # the taker says again and again what it said, as nothing of this has come yet
        sent += again.choose()
        again.free_link("me")
        again.hear(status("me", incarnation=1))
    assert len(sent) == 2


def test_a_task_is_in_the_queues_once():
    rules = Rules(neighbour_limit=9)
    package = {"states": numpy.zeros((3, 4))}  # cannot be compared
    worker = make_worker(range(0, 2), [neighbour("a"), neighbour("b")], rules)
    for _ in range(2):
        worker.accept(Task(number=0, stage=2, payload=package))
        worker.accept(Task(number=1, stage=0, payload=package), "a")
    assert (worker.status().queued, worker.status().waiting) == (1, 2)
    assert worker.status().received == {"a": 2}
    worker.accept(Task(number=0, stage=2, payload=package, attempt=2))
    assert numbers(worker.choose()) == [("a", 0), ("b", 0)]  # two attempts
    worker.take()
    worker.accept(Task(number=1, stage=0, payload=package), "a")  # is in work
    assert worker.status().queued == 1


def test_random_offloading_draws_holders_evenly_and_keeps_what_was_drawn():
    counts = {"me": 0, "a": 0, "b": 0}
    worker = make_worker(
        range(0, 3), [neighbour("a"), neighbour("b"), neighbour("c", stages=range(2, 3))], Rules(offloading="random")
    )
    for number in range(3000):
        worker.accept(Task(number=number))
        if worker.take() is not None:
            counts["me"] += 1
            worker.finish(1.0, None)
        else:
            (sending,) = worker.choose()
            counts[sending.neighbour] += 1
            worker.free_link(sending.neighbour)
            worker.hear(status(sending.neighbour, received=counts[sending.neighbour]))
    assert all(abs(count - 1000) < 100 for count in counts.values()), counts


def test_what_was_meant_for_the_dead_is_drawn_anew():
    worker = make_worker(
        range(0, 2), [neighbour("a"), neighbour("b")], Rules(offloading="routed"), routes={2: {"a": 1}}
    )
    worker.hear(status("a", queued=99))
    worker.accept(Task(number=0, stage=2))
    assert worker.choose() == []  # meant for a, which has too many
    worker.lose("a", 1)
    assert numbers(worker.choose()) == [("b", 0)]


def test_first_done_adds_transfer_wait_and_service():
    slow = Candidate(name="slow", queued=0, wait_sec=0, transfer_sec=0.1, service_sec=5)
    fast = Candidate(name="fast", queued=3, wait_sec=3, transfer_sec=0.5, service_sec=1)
    assert choose_first_done([slow, fast], limit=4) == "fast"
    assert choose_first_done([slow, fast], limit=3) == "slow"  # fast has as many as may be
    assert choose_first_done([slow, fast], limit=0) is None


@pytest.mark.parametrize(
    ("draw", "num_here", "wait_here", "expected"),
    [
        (0.99, 3, 4.1, "you"),  # longer here than transfer and wait there: surely
        (0.49, 3, 2.0, "you"),  # 2 s of 4 s: with probability 1/2
        (0.51, 3, 2.0, None),
        (0.0, 2, 9.0, None),  # not more wait for sending here than wait there
        (0.0, 3, 0.0, None),
    ],
)
def test_offloading_by_queues(draw, num_here, wait_here, expected):
    you = Candidate(name="you", queued=2, wait_sec=3.0, transfer_sec=1.0, service_sec=1.0)
    assert choose_by_queues([you], draw, num_here, wait_here, limit=4) == expected


def test_shares_are_followed_and_without_any_the_draw_is_even():
    random = Random(1)
    drawn = [draw_holder(["a", "b", "c"], random, {"a": 0.75, "c": 0.25}) for _ in range(4000)]
    assert abs(drawn.count("a") - 3000) < 120
    assert drawn.count("b") == 0
    even = [draw_holder(["b"], random, {"a": 1.0}) for _ in range(3)]
    assert even == ["b"] * 3
