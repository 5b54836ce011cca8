"""Extraction by Ray's actors: the local engine's files, index and journal, even if workers and drivers are killed."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
import torch
from safetensors.torch import load_file

from daisy import _files, audio
from daisy.audio import Recording
from daisy.distributed.extraction import RayEngine
from daisy.distributed.extraction.engine import MAX_DEATHS, _try_again
from daisy.distributed.extraction.pool import Attempt
from daisy.errors import UsageError
from daisy.extraction.batch_encoder import Batch
from daisy.extraction.tasks import Task
from tests.distributed.recordings import NUM_RECORDINGS, make_extractor, read_journal_lines, write_recordings

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twenty recordings, and two that cannot be encoded."""
    place = write_recordings(tmp_path_factory.mktemp("recordings") / "in")
    (place / "broken.wav").write_bytes(b"RIFF")
    soundfile.write(place / "short.wav", torch.zeros(100).numpy(), 16000)
    return place


@pytest.fixture(scope="module")
def local(folder, tmp_path_factory):
    """The folder that the local engine fills, each recording by itself."""
    out = tmp_path_factory.mktemp("local")
    make_extractor(out, batch_sec=0.01).run(audio.find([folder]))
    return out


def read_index(out):
    """The index without seconds, which differ from run to run; and losses apart, which do by rounding."""
    index, losses = json.loads((out / "index.json").read_text()), []
    for row in index["recordings"]:
        losses += row.pop("predicted_loss")
        del row["seconds"], row["scores"]
    for name in ("seconds", "real_time_factor"):
        del index["totals"][name]
    return index, losses


def stamp_finished(out):
    """Each file that the journal says is finished, and when it was written."""
    lines = [line for line in read_journal_lines(out) if "failed" not in line]
    return {row["output"]: (out / row["output"]).stat().st_mtime_ns for row in lines}


def check_folder(out, local, finished):
    """All is there as of the local engine, each recording once, and what was finished is as it was."""
    (index, losses), (expected, expected_losses) = map(read_index, (out, local))
    assert index == expected
    torch.testing.assert_close(losses, expected_losses, rtol=1e-5, atol=1e-5)
    assert index["totals"]["num_recordings"] == NUM_RECORDINGS
    assert len({row["exit_layer"] for row in index["recordings"]}) > 1
    assert {Path(failure["path"]).name for failure in index["failed"]} == {"broken.wav", "short.wav"}
    lines = [line.get("output", line["path"]) for line in read_journal_lines(out)]
    assert len(lines) == len(set(lines)) == NUM_RECORDINGS + 2
    written = stamp_finished(out)
    assert {output: written[output] for output in finished} == finished
    for row in index["recordings"]:
        states, others = (load_file(place / row["output"])["states"] for place in (out, local))
        assert (states - others).abs().max() < 1e-4 * others.std()
    assert not list(out.rglob("*.part"))


def test_equals_the_local_engine_although_a_worker_is_killed(folder, local, tmp_path, cluster):
    engine, finished, counts, killed = RayEngine(workers=2), {}, [], []

    def kill_one(count):
        counts.append(count)
        finished.update(stamp_finished(tmp_path))
        if len(finished) == 3:
            killed.append(engine.tally.workers[-1].pid)
            os.kill(killed[0], signal.SIGKILL)

    report = make_extractor(tmp_path, engine, batch_sec=0.01).run(audio.find([folder]), progress=kill_one)
    assert len(report.rows) == NUM_RECORDINGS
    assert sum(counts) == NUM_RECORDINGS + 2
    assert engine.tally.lost == len(killed) == 1
    assert engine.tally.repeated <= 1
    assert len({worker.pid for worker in engine.tally.workers}) >= 2
    assert 0 < engine.tally.start_sec < 120
    check_folder(tmp_path, local, finished)


def test_what_a_worker_of_a_killed_driver_leaves_meanwhile_is_taken_away(folder, local, tmp_path, cluster):
    """It may end, in the middle of a file, only when the run after its own has begun."""
    output = read_index(local)[0]["recordings"][0]["output"]

    def die_late(count):
        _files._beside(tmp_path / output).write_bytes(b"half")

    make_extractor(tmp_path, RayEngine(workers=1)).run(audio.find([folder]), progress=die_late)
    check_folder(tmp_path, local, {})


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


def test_a_killed_driver(folder, local, tmp_path, cluster):
    ended = subprocess.run(
        [sys.executable, "-c", DRIVER, folder, tmp_path, cluster], cwd=ROOT, capture_output=True, timeout=120
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
    finished = stamp_finished(tmp_path)
    assert len(finished) == 4  # and one could not be read
    engine = RayEngine(cpus_per_worker=2)
    report = make_extractor(tmp_path, engine, batch_sec=0.01).run(audio.find([folder]))
    assert report.num_resumed == 4
    assert len(engine.tally.workers) == 1  # of two cores there is room for one
    check_folder(tmp_path, local, finished)


def test_an_earlier_run_stays_where_no_worker_could_run(folder, tmp_path, cluster):
    recordings = audio.find([folder])[:2]
    make_extractor(tmp_path).run(recordings)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(UsageError, match="no machine of the cluster has 1000 cores for a worker"):
        make_extractor(tmp_path, RayEngine(cpus_per_worker=1000)).run(recordings, overwrite=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    report = make_extractor(tmp_path, RayEngine(workers=1)).run(recordings, overwrite=True)
    assert (len(report.rows), report.num_resumed) == (2, 0)


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
