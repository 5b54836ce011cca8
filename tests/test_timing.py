"""How the benchmarks compare systems."""

import importlib
import sys
from pathlib import Path

import pytest
import torch

from daisy import EarlyExitEncoder, policies
from daisy.errors import DaisyError
from tests.conftest import KINDS, tiny_model

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


def test_systems_take_turns_and_nobody_is_always_first(script):
    called = []
    systems = {name: lambda name=name: called.append(name) for name in "abc"}
    found = script("paired").turns(systems, 3)
    assert [len(times.seconds) for times in found.values()] == [3, 3, 3]
    assert "".join(called[3:]) == "abcbcacab"  # after the warm-up


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


def test_what_computes_something_else_is_not_timed(script):
    latency = script("latency")
    systems = {"daisy": lambda w: [torch.ones(5, 3)], "other": lambda w: [torch.tensor([[1.0, 1.0, 0.0]] * 5)]}
    with pytest.raises(DaisyError, match="other's states are not ours: mean cosine 0.816"):
        latency.check(systems, "float32", torch.zeros(800))
