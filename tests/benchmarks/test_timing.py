"""How the benchmarks compare systems."""

import importlib
import sys
import time
from pathlib import Path

import pytest
import torch

import daisy
from daisy import EarlyExitEncoder, policies
from daisy.errors import DaisyError
from tests.conftest import KINDS, POST_NORM, tiny_model

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "/").parent == FOLDER:
            del sys.modules[name]


def test_ratios_are_taken_turn_by_turn(script):
    times = script("paired").Times
    one, other = times([1.0, 10.0, 4.0]), times([2.0, 5.0, 4.0])
    assert one.median == 4.0
    assert one.over(other) == (1.0, 0.75, 1.5)
    assert times([3.0]).over(times([2.0])) == (1.5, 1.5, 1.5)


def test_systems_take_turns_and_nobody_is_always_first(script, monkeypatch):
    called = []
    systems = {name: lambda name=name: called.append(name) for name in "abc"}
    found = script("paired").turns(systems, 3)
    assert [len(times.seconds) for times in found.values()] == [3, 3, 3]
    assert "".join(called[3:]) == "abcbcacab"  # after the warm-up
    called.clear()
    monkeypatch.setattr(script("paired"), "LONG_SEC", 0.0)
    script("paired").turns(systems, 3)
    assert "".join(called) == "abcbcacab"  # none where a turn takes long
    short = script("paired").turns(systems, 9, budget_sec=0.0)
    assert [len(times.seconds) for times in short.values()] == [3, 3, 3]


@pytest.mark.parametrize("kind", ["post-norm", "pre-norm"])
def test_peers_compute_what_we_compute(script, waveforms, kind):
    pytest.importorskip("transformers", reason="a peer")
    backbone = tiny_model(KINDS[kind]).backbone
    names = ["torchaudio", "transformers"] if KINDS[kind].conv_norm == "group" else ["transformers"]
    ours = EarlyExitEncoder(backbone, None, policies.Never(), keep="last")
    waveform = waveforms[4]
    if backbone.config.normalize:  # their callers do it
        waveform = torch.nn.functional.layer_norm(waveform, waveform.shape)
    with torch.no_grad():
        for name, system in script("peers").build(names, backbone).items():
            expected = ours([waveform]).states[0][0]
            torch.testing.assert_close(system([waveform])[0], expected, atol=1e-4, rtol=1e-4, msg=name)


def test_what_computes_something_else_is_not_timed(script, monkeypatch):
    latency = script("latency")
    other = lambda waveforms: [torch.ones(5, POST_NORM.width)]  # noqa: E731
    monkeypatch.setattr(latency.peers, "build", lambda names, backbone, dtype=None: {"other": other})
    with pytest.raises(DaisyError, match="the states of other are not ours in float32"):
        latency.forms_of(["other"], tiny_model().backbone, "float32", 0.1 * torch.randn(1840))


def test_a_peer_runs_in_bfloat16_as_is_faster_for_it(script, waveforms):
    latency = script("latency")
    # daisy-mini: oneDNN's bfloat16 convolutions of few channels give other numbers from one process to the next.
    systems = latency.forms_of(["torchaudio"], daisy.load("daisy-mini").backbone, "bfloat16", waveforms[4])
    assert list(systems["daisy"]) == ["bfloat16"]
    assert set(systems["torchaudio"]) == {"autocast", "weights"}
    slow = lambda waveforms: time.sleep(0.05)  # noqa: E731
    assert latency.fastest({"autocast": slow, "weights": len}, []) == "weights"


def test_results_of_another_machine_are_not_mixed_with_ours(script, monkeypatch, tmp_path):
    common = script("common")
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    assert common.kept("speed") == []
    common.write("speed", [{"measure": "deciding"}], results=tmp_path, arguments=())
    assert common.kept("speed") == [{"measure": "deciding"}]
    monkeypatch.setattr(common, "_processor", lambda: "another")
    with pytest.raises(DaisyError, match=r"speed\.json was measured on another machine or with other versions"):
        common.kept("speed")
