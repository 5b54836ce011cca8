"""Admission, the ledger, and the desk that joins them."""

import math
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daisy.distributed.pipeline.admission import Admission
from daisy.distributed.pipeline.desk import Death, Desk
from daisy.distributed.pipeline.ledger import Ledger
from daisy.distributed.pipeline.rules import RUN_ALL, Rules
from daisy.distributed.pipeline.tasks import Answer, Status, Task
from daisy.distributed.pipeline.topology_file import parse_topology
from daisy.errors import UsageError


def answer(number, attempt=1, worker="w"):
    return Answer(number=number, attempt=attempt, exit_layer=3, worker=worker)


def make_task(number, level, priority):
    return Task(number=number, level=level, priority=priority)


def make_desk(rules=None, **topology):
    workers = {"a": {"layers": "1-4"}, "b": {"layers": "1-4"}}
    content = {"source": "a", "workers": workers, "rules": rules or {}, **topology}
    return Desk(parse_topology(content, 4), Random(0), rate=2.0)


def say(desk, worker, now, waiting=0, incarnation=1):
    desk.hear(Status(worker=worker, incarnation=incarnation, queued=waiting, backlog_sec=0.0, waiting=waiting), now)


def test_the_rate_follows_the_queue_and_the_level_stays():
    rules = Rules(admission="rate", low_mark=3, high_mark=8, speed_up=1.1, slow_down=1.25)
    admission = Admission(rules, rate=10.0, level=1, num_levels=4)
    rates = []
    for waiting in (0, 2, 3, 8, 9, 100):
        admission.adapt(waiting)
        rates.append(admission.rate)
    assert rates == pytest.approx([11, 12.1, 12.1, 12.1, 9.68, 7.744])
    assert admission.level == 1


def test_the_level_follows_the_queue_and_the_rate_stays():
    admission = Admission(Rules(admission="threshold", low_mark=3, high_mark=8), rate=10.0, level=0, num_levels=3)
    levels = []
    for waiting in (9, 9, 9, 5, 2, 2, 2):
        admission.adapt(waiting)
        levels.append(admission.level)
    assert levels == [1, 2, 2, 2, 1, 0, 0]
    assert admission.rate == 10.0


def test_fixed_admission_and_full_runs_never_move():
    fixed = Admission(Rules(), rate=1.0, level=1, num_levels=3)
    full = Admission(Rules(exits=False, admission="threshold"), rate=1.0, level=1, num_levels=3)
    for waiting in (0, 100):
        fixed.adapt(waiting)
        full.adapt(waiting)
    assert (fixed.rate, fixed.level, full.level) == (1.0, 1, RUN_ALL)


def test_arrivals_have_the_rate_and_a_load_that_changes():
    admission, random = Admission(Rules(), rate=4.0, load=[(10.0, 2.0), (20.0, 0.5)]), Random(3)
    for now, mean in ((5.0, 0.25), (10.0, 0.125), (25.0, 0.5)):
        drawn = [admission.next_interval(now, random) for _ in range(4000)]
        assert sum(drawn) / 4000 == pytest.approx(mean, rel=0.05)
        assert sum(value < mean for value in drawn) / 4000 == pytest.approx(0.632, abs=0.03)  # exponential
    even = Admission(Rules(), rate=4.0, even=True)
    assert even.next_interval(0.0, random) == 0.25


def test_a_load_begins_when_it_says_whatever_was_drawn_before():
    load = [(0.0, 0.001), (30.0, 2.0), (40.0, 0.5)]
    even = Admission(Rules(), rate=1.0, load=load, even=True)
    # A thousandth of a task a second: 0.03 until second 30, and then two a second.
    assert even.next_interval(0.0, Random(0)) == pytest.approx(30 + 0.97 / 2)
    assert even.next_interval(39.9, Random(0)) == pytest.approx(0.1 + 0.8 / 0.5)
    admission, random, counts = Admission(Rules(), rate=1.0, load=load), Random(5), [0, 0, 0]
    for _ in range(1000):
        now = admission.next_interval(0.0, random)
        while now < 60:
            counts[(now >= 30) + (now >= 40)] += 1
            now += admission.next_interval(now, random)
    assert [count / 1000 for count in counts] == pytest.approx([0.03, 20, 10], abs=0.4)


@pytest.mark.parametrize("load", [[], [(0.0, 2.0)], [(1e9, 7.0)]])
def test_arrivals_of_a_constant_load_are_the_plain_draws(load):
    admission, random, plain = Admission(Rules(), rate=3.0, load=load), Random(3), Random(3)
    rate = 6.0 if load == [(0.0, 2.0)] else 3.0
    drawn = [admission.next_interval(float(now), random) for now in range(1000)]
    assert drawn == [plain.expovariate(1 / (1 / rate)) for _ in range(1000)]


@pytest.mark.parametrize(("rate", "level"), [(0.0, 0), (-1.0, 0), (1.0, 2), (1.0, -1)])
def test_impossible_admissions_are_refused(rate, level):
    with pytest.raises(UsageError):
        Admission(Rules(), rate=rate, level=level, num_levels=2)


@pytest.mark.parametrize("load", [(30.0, 0.0), (30.0, -1.0), (30.0, math.nan), (-1.0, 2.0), (math.inf, 2.0)])
def test_impossible_loads_are_refused(load):
    with pytest.raises(UsageError, match="a load has seconds, at least 0, and a factor above 0"):
        Admission(Rules(), rate=1.0, load=[load])


def test_who_cannot_be_started_anew_is_done_without_as_long_as_others_hold_its_layers():
    desk = make_desk({"dead_after_sec": 1.0})
    desk.begin_watch(100.0)
    say(desk, "b", 100.9)
    assert [death.worker for death in desk.check(101.0)[0]] == ["a"]
    desk.give_up("a")
    desk.refuse_if_stuck()
    desk.check(102.0)
    desk.refuse_if_stuck()  # b is about to be started anew
    desk.give_up("b")
    with pytest.raises(UsageError, match="layers 1-4 were held by a, b only, which died"):
        desk.refuse_if_stuck()


def test_the_first_answer_counts_and_later_ones_are_counted():
    ledger = Ledger()
    ledger.admit(Task(number=0), "a", 1, 1.0)
    assert ledger.answer(answer(0, worker="x"), 2.0)
    assert not ledger.answer(answer(0, attempt=2, worker="y"), 3.0)
    record = ledger.records[0]
    assert (record.answer.worker, record.admitted, record.answered) == ("x", 1.0, 2.0)
    assert (ledger.num_open, ledger.num_late) == (0, 1)
    with pytest.raises(ValueError, match="admitted before"):
        ledger.admit(Task(number=0), "a", 1, 4.0)


def test_what_was_last_seen_at_the_dead_is_begun_again():
    ledger = Ledger()
    for number in range(3):
        ledger.admit(Task(number=number), "a", 1, 0.0)
    ledger.moved(1, 1, 1, "b", 1, 0.1)
    ledger.moved(2, 1, 2, "c", 1, 0.3)
    ledger.moved(2, 1, 1, "b", 1, 0.2)  # comes late: it has gone on already
    again = ledger.lose("b", 1, 1.0)
    assert [(task.number, task.attempt) for task in again] == [(1, 2)]
    assert ledger.num_restarts == 1


def test_a_task_that_comes_to_who_is_dead_already_is_begun_again():
    ledger = Ledger()
    ledger.admit(Task(number=0), "a", 1, 0.0)
    assert ledger.lose("b", 1, 0.5) == []
    assert ledger.moved(0, 1, 1, "b", 2, 0.6) is None  # the new incarnation lives
    again = ledger.moved(0, 1, 2, "b", 1, 0.7)
    assert (again.number, again.attempt) == (0, 2)
    assert ledger.moved(0, 1, 3, "c", 1, 0.8) is None  # of the attempt that is given up


def test_a_late_answer_of_an_attempt_that_was_given_up_counts_if_it_is_the_first():
    ledger = Ledger()
    ledger.admit(Task(number=0), "a", 1, 0.0)
    (again,) = ledger.lose("a", 1, 1.0)
    assert ledger.answer(answer(0, attempt=1), 1.5)
    assert not ledger.answer(answer(0, attempt=again.attempt), 2.0)


def test_overdue_tasks_are_begun_again_each_time_after_twice_as_long():
    ledger = Ledger()
    ledger.admit(Task(number=0), "a", 1, 0.0)
    assert ledger.list_overdue(10, 9.9) == []
    assert [task.attempt for task in ledger.list_overdue(10, 10.0)] == [2]
    assert ledger.list_overdue(10, 29.9) == []
    assert [task.attempt for task in ledger.list_overdue(10, 30.0)] == [3]


EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("move"), st.integers(0, 4), st.integers(1, 3), st.integers(1, 3), st.sampled_from("abc")),
        st.tuples(st.just("lose"), st.sampled_from("abc"), st.integers(1, 2)),
        st.tuples(st.just("answer"), st.integers(0, 4), st.integers(1, 3)),
        st.tuples(st.just("overdue")),
    ),
    max_size=40,
)


@given(EVENTS)
def test_whatever_happens_no_task_is_lost_and_none_answered_twice(events):
    ledger = Ledger()
    for number in range(5):
        ledger.admit(Task(number=number), "a", 1, 0.0)
    counted = []
    for now, (kind, *what) in enumerate(events, 1):
        if kind == "move":
            number, attempt, hops, worker = what
            ledger.moved(number, attempt, hops, worker, 1, now)
        elif kind == "lose":
            ledger.lose(*what, now)
        elif kind == "answer":
            if ledger.answer(answer(*what), now):
                counted.append(what[0])
        else:
            ledger.list_overdue(3.0, now)
    assert sorted(counted) == sorted(set(counted)) == sorted(ledger.records)
    assert ledger.num_open + len(ledger.records) == 5


def test_silence_is_death_and_the_tasks_go_elsewhere():
    desk = make_desk({"dead_after_sec": 1.0})
    (begin,) = desk.admit(0, make_task, 0.0)
    assert (begin.worker, begin.incarnation, begin.task.attempt) == ("a", 1, 1)
    say(desk, "a", 0.5)
    say(desk, "b", 1.2)
    assert desk.check(1.4) == ([], [])
    deaths, begins = desk.check(1.6)
    assert deaths == [Death("a", 1)]
    assert [(begin.worker, begin.task.attempt) for begin in begins] == [("b", 2)]
    say(desk, "a", 1.7)  # was said before
    (later,) = desk.admit(0, make_task, 1.8)
    assert later.worker == "b"
    assert desk.welcome("a", 2, 2.0) == []
    (last,) = desk.admit(0, make_task, 2.1)
    assert (last.worker, last.incarnation) == ("a", 2)


def test_without_anybody_for_the_first_stage_tasks_wait():
    desk = make_desk(workers={"a": {"layers": "1-2"}, "b": {"layers": "3-4"}})
    desk.admit(0, make_task, 0.0)
    assert desk.lose(Death("a", 1), 1.0) == []
    assert desk.lose(Death("a", 1), 1.0) == []  # known
    assert desk.admit(0, make_task, 1.1) == []
    begins = desk.welcome("a", 2, 2.0)
    assert [(begin.worker, begin.incarnation, begin.task.number) for begin in begins] == [("a", 2, 0), ("a", 2, 1)]


def test_what_is_answered_or_begun_again_while_it_waits_is_not_begun():
    """Of three tasks that wait for a, b answers one, and the others are overdue by then: each is begun once."""
    desk = make_desk({"restart_after_sec": 10.0}, workers={"a": {"layers": "1-2"}, "b": {"layers": "3-4"}})
    for when in (0.0, 0.0, 5.0):
        desk.admit(0, make_task, when)
    desk.lose(Death("a", 1), 6.0)
    assert desk.answer(answer(0, worker="b"), 7.0)  # the first attempt, which a had handed on before it died
    say(desk, "b", 26.0)
    assert desk.check(26.0)[1] == []
    begins = desk.welcome("a", 2, 26.5)
    assert [(begin.worker, begin.task.number, begin.task.attempt) for begin in begins] == [("a", 1, 3), ("a", 2, 3)]
    assert desk.welcome("a", 3, 27.0) == []


def test_a_system_that_cannot_go_on_says_so():
    desk = make_desk({"respawn_sec": None}, workers={"a": {"layers": "1-2"}, "b": {"layers": "3-4"}})
    desk.admit(0, make_task, 0.0)
    desk.refuse_if_stuck()
    desk.lose(Death("b", 1), 1.0)
    with pytest.raises(UsageError, match="layers 3-4 were held by b only, which died: 1 tasks are without an answer"):
        desk.refuse_if_stuck()


def test_a_holder_out_of_reach_is_no_help():
    workers = {"a": {"layers": "1-2"}, "b": {"layers": "3-4"}, "c": {"layers": "3-4"}}
    links = [{"between": pair} for pair in (["a", "b"], ["b", "c"])]
    desk = make_desk({"respawn_sec": None}, workers=workers, links=links)
    desk.refuse_if_stuck()
    desk.lose(Death("b", 1), 1.0)
    with pytest.raises(UsageError, match="held by b, c only, and nobody who lives has a link to c: 0 tasks"):
        desk.refuse_if_stuck()


def test_the_desk_adapts_by_what_waits_at_the_source():
    desk = make_desk({"admission": "rate", "adapt_every": 2, "speed_up": 1.1, "slow_down": 1.1})
    say(desk, "b", 0.1, waiting=99)  # is no source
    rates = []
    for waiting in (0, 0, 99, 99):
        say(desk, "a", 0.1, waiting=waiting)
        desk.admit(0, make_task, 0.1)
        rates.append(desk.admissions[0].rate)
    assert rates == pytest.approx([2.0, 2.2, 2.2, 2.0])
