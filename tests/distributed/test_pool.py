"""The pool of actors, with actors that do little: what it does when they die or refuse."""

import os
import socket
import time

import pytest

from daisy.distributed.extraction.pool import WorkerPool
from daisy.errors import OutputError, UsageError


class Squarer:
    def __init__(self, starts=True):
        if not starts:
            raise RuntimeError("no such library")

    def prepare(self):
        return socket.gethostname(), os.getpid()

    def encode(self, task):
        if task == "deadly":
            os._exit(1)
        if task == "full":
            raise OutputError("disk full")
        return task * task


def make_pool(size=1, limit=2, **arguments):
    import ray

    kind = ray.remote(Squarer).options(num_cpus=1)
    return WorkerPool(
        ray,
        lambda: kind.remote(**arguments),
        size,
        lambda attempt: [attempt] if attempt.deaths < limit else [],
        lambda: "each asks for 1 core",
    )


def test_what_kills_every_worker_is_given_up_and_the_rest_done_once(cluster):
    pool = make_pool()
    results = list(pool.run([1, 2, "deadly", *range(3, 200)]))
    assert sorted(task for task, _ in results if task != "deadly") == list(range(1, 200))
    assert all(result == task * task for task, result in results if task != "deadly")
    assert [result for task, result in results if task == "deadly"] == [None]
    assert (pool.tally.lost, pool.tally.repeated) == (2, 1)
    pids = [pid for _, pid in pool.tally.workers]
    assert len(set(pids)) == len(pids) == 3


def test_tasks_are_taken_as_there_is_room_and_an_early_end_leaves_no_worker(cluster):
    taken, pool = [], make_pool()
    running = pool.run(taken.append(index) or index for index in range(50))
    for count in range(1, 11):
        next(running)
        assert len(taken) <= count + 2
    running.close()  # as an exception in the loop does
    assert len(taken) < 15
    deadline = time.monotonic() + 20
    while any(map(is_alive, pool.tally.workers)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_alive(worker):
    return os.path.exists(f"/proc/{worker[1]}")


def test_a_refusal_ends_the_run(cluster):
    with pytest.raises(OutputError, match="disk full"):
        list(make_pool().run([3, "full", 4]))


def test_workers_that_cannot_start(cluster, monkeypatch):
    monkeypatch.setattr("daisy.distributed.extraction.pool.MAX_FAILED_STARTS", 2)
    with pytest.raises(UsageError, match="2 workers in a row have ended as they began: .*no such library"):
        list(make_pool(starts=False).run([1]))
