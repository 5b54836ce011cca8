"""Workers and drivers that are killed: nothing finished is lost or done again."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from daisy import audio
from daisy.audio import Recording
from daisy.distributed.extraction import RayEngine
from daisy.distributed.extraction.engine import MAX_DEATHS, _try_again
from daisy.distributed.extraction.pool import Attempt
from daisy.extraction.batch_encoder import Batch
from daisy.extraction.tasks import Task
from tests.distributed.recordings import NUM_RECORDINGS, make_extractor, read_journal_lines, write_recordings

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    return audio.find([write_recordings(tmp_path_factory.mktemp("recordings") / "in")])


@pytest.fixture(scope="module")
def expected(recordings, tmp_path_factory):
    """States as the local engine writes them, by file."""
    out = tmp_path_factory.mktemp("local")
    report = make_extractor(out).run(recordings)
    return {row.output: load_file(out / row.output)["states"] for row in report.rows}


def stamp_finished(out):
    """Each file that the journal says is finished, and when it was written."""
    return {row["output"]: (out / row["output"]).stat().st_mtime_ns for row in read_journal_lines(out)}


def check_folder(out, expected, finished):
    """All is there, each recording once, and what was finished is as it was."""
    assert sorted(row["output"] for row in read_journal_lines(out)) == sorted(expected)
    written = stamp_finished(out)
    assert {output: written[output] for output in finished} == finished
    for output, states in expected.items():
        torch.testing.assert_close(load_file(out / output)["states"], states, rtol=0, atol=1e-4 * float(states.std()))
    assert not list(out.rglob("*.part"))


def test_killed_workers(recordings, expected, tmp_path, cluster):
    engine, out, finished, killed = RayEngine(workers=2), tmp_path / "out", {}, []

    def kill_two(count):
        finished.update(stamp_finished(out))
        if count and len(killed) < 2 and len(finished) > 4 * len(killed):
            pid = next(pid for _, pid in reversed(engine.tally.workers) if pid not in killed)
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)

    report = make_extractor(out, engine, batch_sec=0.01).run(recordings, progress=kill_two)
    assert len(report.rows) == NUM_RECORDINGS
    assert engine.tally.lost == len(killed) == 2
    assert engine.tally.repeated <= 2
    check_folder(out, expected, finished)


DRIVER = """
import os, signal, sys
from pathlib import Path
from daisy import audio
from daisy.distributed.extraction import RayEngine
from tests.distributed.recordings import make_extractor

def count(number):
    global done
    done += number
    if done >= 5:
        os.kill(os.getpid(), signal.SIGKILL)

done = 0
engine = RayEngine(sys.argv[3], workers=1)
make_extractor(Path(sys.argv[2]), engine, batch_sec=0.01).run(audio.find([sys.argv[1]]), progress=count)
"""


def test_a_killed_driver(recordings, expected, tmp_path, cluster):
    out, place = tmp_path / "out", Path(os.path.commonpath([recording.path for recording in recordings]))
    ended = subprocess.run([sys.executable, "-c", DRIVER, place, out, cluster], cwd=ROOT, capture_output=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
    finished = stamp_finished(out)
    assert len(finished) == 5
    engine = RayEngine(cpus_per_worker=2)
    report = make_extractor(out, engine, batch_sec=0.01).run(recordings)
    assert len(engine.tally.workers) == 1  # there is room for one of two cores
    assert (report.num_resumed, len(report.rows)) == (5, NUM_RECORDINGS)
    check_folder(out, expected, finished)


def make_task(*batches):
    return Task(
        batches=[
            Batch(
                recordings=[Recording(path=Path(f"/{name}.wav"), name=f"{name}.wav") for name in names],
                outputs=[f"{name}.npy" for name in names],
                num_samples=3,
            )
            for names in batches
        ],
        shard="shard-000001.tar",
    )


def test_a_task_that_kills_workers_is_halved_and_one_recording_given_up():
    attempt = Attempt(make_task("abc", "d"), deaths=1)
    assert _try_again(attempt) == [attempt]
    attempt.deaths = 2
    halves = _try_again(attempt)
    assert [half.task.batches for half in halves] == [make_task("abc").batches, make_task("d").batches]
    assert [half.task.shard for half in halves] == ["shard-000001-0.tar", "shard-000001-1.tar"]
    assert [half.deaths for half in halves] == [0, 0]
    halves[0].deaths = 2
    assert [half.task.batches for half in _try_again(halves[0])] == [make_task("a").batches, make_task("bc").batches]
    assert _try_again(halves[0])[1].task.shard == "shard-000001-0-1.tar"
    halves[1].deaths = MAX_DEATHS - 1
    assert _try_again(halves[1]) == [halves[1]]
    halves[1].deaths = MAX_DEATHS
    assert _try_again(halves[1]) == []
