"""Long commands that are stopped, or that meet a bad recording."""

import csv
import json
import operator
import shutil

import numpy
import pytest
import soundfile

import daisy
from tests.cli.running import run, run_and_interrupt
from tests.conftest import tiny_model

NUM_RECORDINGS = 12
CALIBRATE = ("calibrate", "speech", "-c", "tiny.safetensors", "--depth", "0.6", "-p", "entropy", "--noise", "rain")
CONDITIONS = ("--snr", "clean,20,10,5,0")
CURVE = ("noise-curve", "speech", "-c", "tiny.safetensors", "--noise", "white", "--policies", "entropy,fixed")

HEAD = operator.itemgetter(0)
"""Name of a command."""


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stopped")
    daisy.save(tiny_model(), folder / "tiny.safetensors")
    daisy.save(tiny_model(seed=5), folder / "other.safetensors")
    generator = numpy.random.default_rng(0)
    for kind, count in (("speech", NUM_RECORDINGS), ("others", NUM_RECORDINGS), ("rain", 2)):
        (folder / kind).mkdir()
        for index in range(count):
            wave = 0.1 * generator.standard_normal(6000 + 500 * index)
            soundfile.write(folder / kind / f"{index}.wav", wave, 16000)
    return folder


@pytest.fixture
def place(template, tmp_path):
    return shutil.copytree(template, tmp_path / "place")


def read_policy(path):
    return json.loads(path.read_text())


@pytest.mark.usefixtures("interruptible")
def test_calibrate_goes_on_after_ctrl_c(place):
    call = (*CALIBRATE, *CONDITIONS)
    assert run(*call, "-o", "whole.json", cwd=place).returncode == 0
    assert not list(place.glob("*full-runs*"))
    stopped = run_and_interrupt(*call, "-o", "p.json", cwd=place, journal=place / "p.json.full-runs")
    assert stopped.returncode == 130
    (said,) = stopped.stderr.splitlines()
    words = said.split()
    assert words[:2] == ["stopped", "after"]
    assert int(words[2]) in (24, 36, 48)  # clean, and one to three of the four ratios
    assert said.endswith("of 60 full runs: they are kept in p.json.full-runs, and the same command goes on from there")
    assert not (place / "p.json").exists()
    refused = run(*call[:3], "other.safetensors", *call[4:], "-o", "p.json", cwd=place)
    assert refused.returncode == 2
    assert (
        "p.json.full-runs: holds full runs with other values of checkpoint; remove it to begin anew" in refused.stderr
    )
    done = run(*call, "-o", "p.json", cwd=place)
    assert done.returncode == 0, done.stderr
    assert done.stderr == (
        f"note: p.json.full-runs holds {words[2]} full runs that were made before; they are not made again\n"
    )
    assert read_policy(place / "p.json") == read_policy(place / "whole.json")
    assert not list(place.glob("*full-runs*"))


def test_full_runs_that_stay_serve_other_goals(place):
    call = (*CALIBRATE, "--full-runs", "kept")
    assert run(*call, *CONDITIONS, "-o", "a.json", cwd=place).returncode == 0
    before = (place / "kept").read_bytes()
    other = run(*call, "--snr", "clean,10", "--depth", "0.9", "-o", "b.json", cwd=place)
    assert other.returncode == 0, other.stderr
    assert "kept holds 60 full runs" in other.stderr
    assert (place / "kept").read_bytes() == before  # nothing was run
    assert run(*CALIBRATE, "--snr", "clean,10", "--depth", "0.9", "-o", "c.json", cwd=place).returncode == 0
    assert read_policy(place / "b.json") == read_policy(place / "c.json")


@pytest.mark.parametrize("full_runs", ["p.json", "./p.json", "link.json"])
def test_full_runs_are_not_kept_in_the_policy_file(place, full_runs):
    (place / "link.json").symlink_to("p.json")
    done = run(*CALIBRATE, "--full-runs", full_runs, "-o", "p.json", cwd=place)
    assert done.returncode == 2
    assert done.stderr.startswith(f"daisy: --full-runs {full_runs.removeprefix('./')}: is the policy file too")
    assert not (place / "p.json").exists()


@pytest.mark.usefixtures("interruptible")
def test_noise_curve_goes_on_after_ctrl_c(place):
    call = (*CURVE, "--tune", "others", "--snr", "clean,10,5,0")
    assert run(*call, "-o", "whole", cwd=place).returncode == 0
    stopped = run_and_interrupt(*call, "-o", "curve", cwd=place, journal=place / "curve/traces.full-runs")
    assert stopped.returncode == 130
    assert stopped.stderr.endswith("of 48 full runs: they are kept in curve, and the same command goes on from there\n")
    done = run(*call, "-o", "curve", cwd=place)
    assert done.returncode == 0, done.stderr
    assert "note: curve/tune.full-runs holds 48 full runs" in done.stderr
    files = {path.name for path in (place / "curve").iterdir()}
    assert files == {"traces.csv", "tune.csv", "study.csv", "study.json"}
    for name in ("traces.csv", "tune.csv", "study.csv"):
        assert (place / "curve" / name).read_bytes() == (place / "whole" / name).read_bytes()


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("where", ["speech", "rain"])
@pytest.mark.parametrize("command", [(*CALIBRATE, "-o", "p.json"), (*CURVE, "--noise", "rain", "-o", "out")], ids=HEAD)
def test_a_bad_recording_is_left_out_and_listed(place, command, where, strict):
    (place / where / "5.wav").write_text("no audio")
    soundfile.write(place / where / "short.wav", numpy.zeros(0 if where == "rain" else 399), 16000)
    done = run(*command, "--snr", "clean,5", *["--strict"] * strict, cwd=place)
    lines = done.stderr.splitlines()
    if strict:
        assert done.returncode == 2
        assert lines == [f"daisy: {place / where / '5.wav'}: not readable as audio (Format not recognised)"]
        assert not (place / "p.json").exists()
        return
    assert done.returncode == 1
    why = "holds no samples" if where == "rain" else "too short: 399 samples at 16000 Hz, one frame needs 400 (25 ms)"
    assert lines[:2] == [
        f"failed: {place / where / '5.wav'}: not readable as audio (Format not recognised)",
        f"failed: {place / where / 'short.wav'}: {why}",
    ]
    num_read = NUM_RECORDINGS + 2 - (where == "speech")
    assert lines[-1] == f"2 of {num_read + 2} recordings failed"
    if command[0] == "calibrate":
        assert read_policy(place / "p.json")["data"]["num_recordings"] == NUM_RECORDINGS - (where == "speech")
    else:
        with open(place / "out" / "traces.csv", newline="") as stream:
            assert len({row["utterance"] for row in csv.DictReader(stream)}) == NUM_RECORDINGS - (where == "speech")


def test_noise_of_which_nothing_can_be_read_is_refused(place):
    for path in (place / "rain").iterdir():
        path.write_text("no audio")
    done = run(*CALIBRATE, "--snr", "clean,5", "-o", "p.json", cwd=place)
    assert done.returncode == 2
    assert "noise rain: no recording could be read: " in done.stderr
    assert "not readable as audio" in done.stderr
