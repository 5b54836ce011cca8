"""daisy mdi."""

import json

import pytest
import soundfile
import torch

import daisy
from daisy.calibration.traces import write_traces
from tests.cli.running import run
from tests.recognition.conftest import tiny_recogniser

pytest.importorskip("yaml", reason="topologies need PyYAML (extra ray)")
TOPOLOGY = """
source: porch
workers:
  porch: {layers: 1-4, speed: 0.3}
  attic: {layers: 5-12, speed: 0.2}
links:
  - {between: [porch, attic], delay_ms: 5, rate_mbit: 20}
"""


@pytest.fixture
def files(tmp_path, traces):
    (tmp_path / "house.yaml").write_text(TOPOLOGY)
    write_traces(traces, tmp_path / "runs.csv")
    return tmp_path


def test_a_simulated_system_as_a_table_and_as_files(files):
    pytest.importorskip("simpy", reason="the simulator needs simpy (extra ray)")
    pytest.importorskip("matplotlib")
    arguments = ("mdi", "house.yaml", "runs.csv", "--simulate", "--rate", 20, "--tasks", 400, "--policy", "entropy")
    ran = run(*arguments, "--kill", "3:attic", "--out", "out", cwd=files)
    assert ran.returncode == 0, ran.stderr
    assert "400 of 400 admitted utterances answered" in ran.stdout
    saved = json.loads((files / "out" / "mdi.json").read_text())
    assert saved["workers"]["attic"]["num_deaths"] == 1
    assert saved["simulated"] is True
    assert (files / "out" / "mdi.html").read_text().count("<svg") + (files / "out" / "mdi.png").stat().st_size > 1000
    again = json.loads(run(*arguments, "--format", "json", cwd=files).stdout)
    assert again["num_restarts"] == 0
    assert again["throughput"] == pytest.approx(saved["throughput"], rel=0.1)
    deeper = json.loads(run(*arguments, "--format", "json", "--system", "no-exits", cwd=files).stdout)
    assert deeper["mean_exit_layer"] == 12
    assert deeper["fidelity"] > again["fidelity"] + 0.01
    assert deeper["latency_sec"]["median"] > again["latency_sec"]["median"]


def test_a_run_that_cannot_go_on_reports_what_was_answered(files):
    pytest.importorskip("simpy", reason="the simulator needs simpy (extra ray)")
    pytest.importorskip("matplotlib")
    (files / "house.yaml").write_text(TOPOLOGY + "rules: {respawn_sec: null}\n")
    arguments = ("--simulate", "--rate", 20, "--tasks", 400, "--policy", "entropy", "--kill", "3:attic", "--out", "out")
    ran = run("mdi", "house.yaml", "runs.csv", *arguments, cwd=files)
    assert ran.returncode == 2
    message = "layers 5-12 were held by attic only, which died: "
    assert message in ran.stderr
    assert ran.stderr.count("\n") == 1
    assert "admitted utterances answered" in ran.stdout
    saved = json.loads((files / "out" / "mdi.json").read_text())
    assert message in saved["error"]
    assert 0 < saved["num_answered"] < 100
    assert "The run ended early" in (files / "out" / "mdi.html").read_text()


@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_a_recogniser_on_real_workers(tmp_path):
    """Two workers on Ray: all are answered, with the very text of the last exit."""
    pytest.importorskip("ray", reason="the real system needs ray (extra ray)")
    daisy.save(tiny_recogniser("hubert"), tmp_path / "recogniser.safetensors")
    (tmp_path / "two.yaml").write_text("workers: {a: {layers: 1-2}, b: {layers: 3-4}}")
    for number in range(3):
        waveform = 0.1 * torch.randn(12000 + 4000 * number, generator=torch.Generator().manual_seed(number))
        soundfile.write(tmp_path / f"{number}.wav", waveform.numpy(), 16000)
    arguments = ("--rate", 20, "--tasks", 30, "--policy", "entropy", "--system", "no-exits", "--format", "json")
    ran = run("mdi", "two.yaml", ".", "-c", "recogniser.safetensors", *arguments, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    report = json.loads(ran.stdout)
    assert (report["heads"], report["num_answered"], report["exit_layers"]) == ("ctc", 30, {"4": 30})
    assert report["fidelity"] == 1
    assert report["workers"]["a"]["num_sent"] == report["workers"]["b"]["num_exits"] == 30


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--kill", "3:attic"), "--kill is of --simulate"),
        (("--simulate", "--load", "3"), "--load takes seconds and what then"),
        (("--simulate", "--load", "3:fast"), "--load takes seconds and what then"),
        (("--simulate", "--system", "mdx"), "unknown system 'mdx'"),
        (("--simulate", "--level", "7"), "level 7 does not exist: there are 3"),
        (("--level", "7"), "level 7 does not exist: there are 3"),
        (("--rate", "0"), "the rate must be above 0"),
        (("--load", "3:0"), "a factor above 0, found 3:0"),
        (("--simulate", "--kill", "3:atic"), "unknown worker 'atic': did you mean attic"),
        (("--simulate", "--kill", "-3:attic"), "killed at seconds from 0 on"),
        (("--system", "joint", "--level", "1"), "joint chooses the level: leave --level out"),
    ],
)
def test_refusals(files, arguments, message):
    pytest.importorskip("simpy", reason="the simulator needs simpy (extra ray)")
    ran = run("mdi", "house.yaml", "runs.csv", "--policy", "entropy", *arguments, cwd=files)
    assert ran.returncode == 2
    assert message in ran.stderr
    assert ran.stderr.count("\n") == 1
