"""Progress: timed lines with the remaining time if stderr is not a terminal; a bar on a terminal."""

import contextlib
import io
import os
import re
import sys
import time

import numpy
import pytest
import soundfile

import daisy
from daisy.cli import progress
from daisy.cli.progress import ProgressLines
from tests.cli.running import read_terminal, run_python
from tests.conftest import tiny_model


class Clock:
    """Time that passes only when somebody waits; ``step`` happens at the end of each wait."""

    def __init__(self, waits, step=lambda: None):
        self.now, self.waits, self.step = 1000.0, waits, step

    def __call__(self):
        return self.now

    def wait(self, seconds):
        if not self.waits:
            return True  # the task has ended
        self.waits -= 1
        self.now += seconds
        self.step()
        return False


def lines_of(clock, description, total):
    written = []
    return written, ProgressLines(description, total, interval=10.0, clock=clock, write=written.append)


def test_a_line_every_ten_seconds_with_what_is_done_and_what_remains():
    clock = Clock(waits=3)
    written, task = lines_of(clock, "extracting", 500)
    task.advance(400)  # an earlier run's
    clock.step = lambda: task.advance(20)
    task.report(clock.wait)
    assert written == [
        "extracting: 420 of 500, 0:00:10 elapsed, 0:00:40 remaining",
        "extracting: 440 of 500, 0:00:20 elapsed, 0:00:30 remaining",
        "extracting: 460 of 500, 0:00:30 elapsed, 0:00:20 remaining",
    ]


def test_a_log_on_a_full_disk_ends_no_task(monkeypatch):
    clock = Clock(waits=2)
    task = ProgressLines("extracting", 3, interval=10.0, clock=clock)
    with open("/dev/full", "wb", buffering=0) as device:
        full = io.TextIOWrapper(device, write_through=True)
        monkeypatch.setattr(sys, "stderr", full)
        with pytest.raises(OSError, match="No space left"):
            print("a line", file=sys.stderr, flush=True)
        task.report(clock.wait)
        with pytest.raises(ZeroDivisionError), task:
            raise ZeroDivisionError
        monkeypatch.undo()
        with contextlib.suppress(OSError):
            full.close()  # writes what it still holds


def test_without_steps_there_is_no_estimate_and_without_a_total_none_is_named():
    clock = Clock(waits=1)
    written, task = lines_of(clock, "extracting", 500)
    task.report(clock.wait)
    clock.waits = 1
    written_too, k_means = lines_of(clock, "k-means on 5000 frames", None)
    k_means.report(clock.wait)
    k_means.advance(3)
    assert written == ["extracting: 0 of 500, 0:00:10 elapsed"]
    assert written_too == ["k-means on 5000 frames: 0:00:10 elapsed"]
    assert k_means.describe() == "k-means on 5000 frames: 3 done, 0:00:10 elapsed"


@pytest.mark.parametrize(
    ("seconds", "expected"), [(9.9, []), (10.0, []), (3700.2, ["extracting: 2 of 2, 1:01:40 elapsed"])]
)
def test_the_end_is_a_line_for_a_long_task_and_nothing_for_a_short_one(seconds, expected):
    clock = Clock(waits=0)
    written, task = lines_of(clock, "extracting", 2)
    with task as lines:
        lines.advance(2)
        clock.now += seconds
    assert written == expected


def test_the_last_line_comes_after_an_error_too_and_the_thread_has_ended():
    clock = Clock(waits=0)
    written, task = lines_of(clock, "extracting", 2)

    def fail():
        with task as lines:
            lines.advance(1)
            clock.now += 11
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert written == ["extracting: 1 of 2, 0:00:11 elapsed"]
    assert not task._thread.is_alive()


def test_a_short_task_is_silent(capfd):
    with progress.track("extracting", 3) as advance:
        advance(3)
    assert capfd.readouterr() == ("", "")


@pytest.fixture
def recordings(tmp_path):
    daisy.save(tiny_model(), tmp_path / "tiny.safetensors")
    generator = numpy.random.default_rng(0)
    for index in range(3):
        soundfile.write(tmp_path / f"{index}.wav", 0.1 * generator.standard_normal(8000), 16000)
    return tmp_path


EXTRACT = ("extract", "0.wav", "1.wav", "2.wav", "-c", "tiny.safetensors", "-p", "never", "-o")
SLOWLY = """
import time
from daisy import audio
from daisy.cli import main, progress
progress.INTERVAL_SEC = 0.2
read = audio.read_recording
audio.read_recording = lambda *given, **named: (time.sleep(0.5), read(*given, **named))[1]
main()
"""


def test_a_real_run_whose_output_is_no_terminal(recordings):
    done = run_python(SLOWLY, *EXTRACT, "out", "--batch-sec", "0.5", cwd=recordings)
    assert done.returncode == 0, done.stderr
    lines = done.stderr.decode().splitlines()
    pattern = (
        r"extracting: ([0-3]) of 3, 0:00:0\d elapsed(, 0:00:0\d remaining)?"
        r"(, [\d.,]+ audio hours an hour, mean exit layer \d\.\d\d)?"
    )
    matches = [re.fullmatch(pattern, line) for line in lines]
    assert all(matches), lines
    assert any(match[3] for match in matches), lines  # what is finished, of whose speed and depth it tells
    counts = [int(match[1]) for match in matches]
    assert counts == sorted(counts)
    assert len(counts) >= 5  # a second and a half of reading
    assert (counts[0], counts[-1]) == (0, 3)
    assert b"extracting" not in done.stdout


@pytest.mark.parametrize(("term", "is_bar"), [("xterm", True), ("dumb", False)])
def test_a_terminal_gets_a_bar_if_it_can_draw_one(monkeypatch, term, is_bar):
    ours, theirs = os.openpty()
    monkeypatch.setenv("TERM", term)
    monkeypatch.setattr(progress, "INTERVAL_SEC", 0.1)
    with open(theirs, "w", encoding="utf-8") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        with progress.track("extracting [3]", 3) as advance:
            advance(2)
            time.sleep(0.3)
            advance(1)
        shown = read_terminal(ours)
    os.close(ours)
    assert ("━" in shown) == is_bar
    assert ("3/3" in shown) == is_bar
    assert ("extracting [3]: 2 of 3, 0:00:00 elapsed" in shown) != is_bar
