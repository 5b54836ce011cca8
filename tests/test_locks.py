"""Locks between processes: one named holder at a time, and a killed one blocks nobody."""

import errno
import fcntl
import json
import os
import signal
import socket
import threading
import time

import pytest

from daisy import OutputError, _locks


@pytest.fixture
def holder(tmp_path):
    """Process number of a child that holds the lock at ``tmp_path / "lock"``, until it is killed."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        _locks.acquire(tmp_path / "lock")
        os.write(writing, b"!")
        signal.pause()
        os._exit(0)
    assert os.read(reading, 1) == b"!"
    yield child
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def test_who_holds_a_lock_is_told(tmp_path, holder):
    assert _locks.acquire(tmp_path / "lock") is None
    said = _locks.describe_holder(tmp_path / "lock")
    assert said.startswith(f"process {holder} on {socket.gethostname()}, since 20")
    assert _locks.acquire(tmp_path / "other") is not None


def test_a_killed_process_blocks_nobody(tmp_path, holder):
    os.kill(holder, signal.SIGKILL)
    lock = _locks.acquire(tmp_path / "lock", wait=True)
    assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()
    assert _locks.acquire(tmp_path / "lock") is None
    lock.release()
    assert not os.listdir(tmp_path)


def test_who_waited_for_a_lock_holds_the_file_that_others_see(tmp_path):
    """It waits at a file that is then taken away."""
    first = _locks.acquire(tmp_path / "lock")
    later = []
    waiting = threading.Thread(target=lambda: later.append(_locks.acquire(tmp_path / "lock", wait=True)))
    waiting.start()
    time.sleep(0.2)
    assert not later
    first.release()
    waiting.join()
    assert (tmp_path / "lock").is_file()
    assert _locks.acquire(tmp_path / "lock") is None
    later[0].release()


def test_holders_take_turns_although_each_takes_the_file_away(tmp_path):
    inside, most = 0, 0
    guard = threading.Lock()

    def hold_often():
        nonlocal inside, most
        for _ in range(40):
            with _locks.hold(tmp_path / "lock"):
                with guard:
                    inside += 1
                    most = max(most, inside)
                with guard:
                    inside -= 1

    threads = [threading.Thread(target=hold_often) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most, inside) == (1, 0)
    assert not os.listdir(tmp_path)


def test_without_locks_in_the_file_system_there_is_a_warning(tmp_path, monkeypatch):
    def refuse(descriptor, operation):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.warns(RuntimeWarning, match="this file system keeps no locks; let no two processes write the same"):
        lock = _locks.acquire(tmp_path / "lock")
    lock.release()


def test_a_lock_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"file: cannot be written \(Not a directory\)$"):
        _locks.acquire(tmp_path / "file" / "lock")
    (tmp_path / "lock").write_text("no JSON")
    assert _locks.describe_holder(tmp_path / "lock") == "another process"
