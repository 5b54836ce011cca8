"""The pool of actors, with actors that do little: its behaviour when they die or raise errors."""

import os
import socket
import time

import pytest

from daisy.distributed.extraction.pool import WorkerPool, WorkerProcess
from daisy.errors import OutputError, UsageError


class Squarer:
    def __init__(self, starts=True, sees_folder=True, writes=True):
        if not starts:
            raise RuntimeError("no such library")
        self.sees_folder, self.writes = sees_folder, writes

    def prepare(self):
        if not self.sees_folder:
            raise OutputError("not the same folder")
        return WorkerProcess("node", socket.gethostname(), os.getpid())

    def encode(self, task):
        if task == "deadly":
            os._exit(1)
        if task == "wrong":
            raise UsageError("no such layer")
        if not self.writes or task == "unwritable":
            raise OutputError(f"disk full, {task}")
        return task * task


def make_pool(**arguments):
    import ray

    kind = ray.remote(Squarer).options(num_cpus=1)
    return WorkerPool(
        ray,
        lambda: kind.remote(**arguments),
        size=1,
        try_again=lambda attempt: [] if attempt.task == "deadly" else [attempt],
        describe=lambda: "each asks for 1 core",
    )


def test_what_kills_workers_is_given_up_and_the_rest_done_once(cluster):
    pool = make_pool()
    results = list(pool.run([*range(100), "deadly", *range(100, 200)]))
    assert sorted(task for task, _ in results if task != "deadly") == list(range(200))
    assert all(result == task * task for task, result in results if task != "deadly")
    assert [result for task, result in results if task == "deadly"] == [None]
    # The worker may die before it has sent the result of the task before, which then is what it seems to have died of.
    assert (pool.tally.lost, pool.tally.repeated) in ((1, 0), (2, 1))
    assert len({worker.pid for worker in pool.tally.workers}) == pool.tally.lost + 1


def test_tasks_are_taken_as_there_is_room_and_a_refusal_ends_the_run(cluster):
    taken, pool = [], make_pool()
    running = pool.run(taken.append(task) or task for task in [*range(20), "wrong", *range(20)])
    for count in range(1, 21):
        next(running)
        assert len(taken) <= count + 2
    with pytest.raises(UsageError, match="no such layer"):
        next(running)
    assert len(taken) <= 23
    deadline = time.monotonic() + 20
    while os.path.exists(f"/proc/{pool.tally.workers[0].pid}"):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_who_replaces_the_dead_is_not_waited_for_where_nothing_is_left(cluster):
    import ray

    kind, cores = ray.remote(Squarer), iter([1, 99])  # the second never finds its place
    pool = WorkerPool(ray, lambda: kind.options(num_cpus=next(cores)).remote(), 1, lambda attempt: [], lambda: "cores")
    assert list(pool.run(["deadly"])) == [("deadly", None)]
    assert list(make_pool(starts=False).run([])) == []


def test_workers_that_cannot_start(cluster, monkeypatch):
    monkeypatch.setattr("daisy.distributed.extraction.pool.MAX_FAILED_STARTS", 1)
    with pytest.raises(UsageError, match="1 workers in a row have ended as they began: .*no such library"):
        list(make_pool(starts=False).run([1]))


def make_mixed_pool(size, *kinds):
    """A pool whose first actors are as told, one after the other, and the rest sound; and how many it has made."""
    import ray

    kind, made = ray.remote(Squarer).options(num_cpus=0.1), []

    def make_actor():
        made.append(kinds[len(made)] if len(made) < len(kinds) else {})
        return kind.remote(**made[-1])

    return WorkerPool(ray, make_actor, size, lambda attempt: [attempt], lambda: "each asks for 1 core"), made


@pytest.mark.parametrize("trouble", [{"sees_folder": False}, {"writes": False}])
def test_one_machines_trouble_does_not_end_the_run(cluster, trouble):
    pool, made = make_mixed_pool(1, trouble)
    assert sorted(pool.run(range(50))) == [(task, task * task) for task in range(50)]
    assert len(pool.tally.refusals) == 1
    assert len(made) == 2
    pool, made = make_mixed_pool(2, {}, *[trouble] * 9)  # a machine that takes every replacement
    assert sorted(pool.run(range(50))) == [(task, task * task) for task in range(50)]
    assert len(made) <= 4


def test_what_nobody_can_write_ends_the_run(cluster):
    pool, made = make_mixed_pool(1, *[{"sees_folder": False}] * 9)
    with pytest.raises(OutputError, match="^not the same folder$"):
        list(pool.run(range(5)))
    assert len(made) == 3
    pool, made = make_mixed_pool(2)
    with pytest.raises(OutputError, match="^disk full, unwritable$"):
        list(pool.run([*range(5), "unwritable", *range(5)]))
    assert len(made) == 4
