from importlib.util import find_spec

import pytest
import torch

from benchmarks.shared import results
from benchmarks.units import peers, policies, tables
from benchmarks.units.runs import run_condition
from daisy import Backbone
from daisy.units import UnitEncoder, deduplicate, unit_error_rate
from tests.conftest import POST_NORM, randomise, tiny_model


@pytest.fixture(scope="module")
def runs():
    generator = torch.Generator().manual_seed(1)
    waveforms = [0.1 * torch.randn(length, generator=generator) for length in (9000, 16000, 12000, 20000)]
    model = tiny_model(num_units=24)
    return model, waveforms, run_condition(model, waveforms, list("abcd"), list("abcd"), "clean")


def test_errors_of_a_cut_are_those_of_its_units(runs):
    model, waveforms, measured = runs
    full, cut = (
        [sequence.deduplicate()[0] for sequence in UnitEncoder(model, "fixed", layer=layer)(waveforms)]
        for layer in (4, 2)
    )
    row = policies.make_row("fixed", 0.5, torch.full((4,), 2), measured)
    assert row["depth"] == 0.5
    assert row["unit_errors"] == pytest.approx(unit_error_rate(cut, full))
    assert row["unit_errors"] > 0.1
    assert row["unit_errors_gain"] == pytest.approx(0)
    own = [model.final_head(states[-1])[:, 4:].argmax(-1) for states in model.encoder("never")(waveforms).states]
    references = [deduplicate(units.tolist())[0] for units in own]
    assert row["final_head_unit_errors"] == pytest.approx(unit_error_rate(cut, references), abs=0.02)
    assert policies.make_row("never", 1.0, torch.full((4,), 4), measured)["unit_errors"] == 0


def test_peers_write_the_same_units():
    pytest.importorskip("sklearn")
    pytest.importorskip("transformers")
    pytest.importorskip("torchaudio")
    backbone = randomise(Backbone(POST_NORM))
    waveforms = [0.1 * torch.randn(8000, generator=torch.Generator().manual_seed(seed)) for seed in range(2)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(peers, "LAYER", 2)
        patch.setattr(peers, "CLUSTERS", 5)
        systems = peers.make_systems(backbone, peers.fit_centres(backbone, waveforms), waveforms)
        rows = peers.measure(systems, peers.OURS, waveforms, repeats=3)
    assert len(rows) == 5 + (find_spec("fairseq") is not None)
    assert all(row["other_units"] < 0.05 for row in rows)
    assert all(row["seconds"] > 0 for row in rows)


def test_depth_of_exits_is_that_of_the_recordings_that_are_timed(runs, monkeypatch):
    model, waveforms, measured = runs
    second, third = measured.traces.scores["entropy"][:, 0].sort().values[1:3].tolist()
    encoder = model.encoder("entropy", threshold=(second + third) / 2)  # where two of four leave at layer 1
    monkeypatch.setattr(peers, "HEADS", {"all": "never", "some": encoder.policy})
    rows = peers.measure_heads(model, waveforms, repeats=3)
    layers = [int(encoder([waveform]).exit_layer) for waveform in waveforms]
    assert layers.count(1) == 2
    assert [row["depth"] for row in rows] == [1.0, sum(layers) / 16]
    assert rows[1]["other_units"] > 0


def test_tables_say_what_was_measured(runs, tmp_path, monkeypatch):
    _, _, measured = runs
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    exits = torch.tensor([2, 4, 4, 2])
    rows = [{**policies.make_row("entropy", 0.75, exits, measured), "time": 0.8, "unit_errors_static_at_time": 0.25}]
    results.write_result("discrete_units", rows)
    line = tables.render_errors().splitlines()[2].split(" | ")
    assert line[:2] == ["| entropy", "75%"]
    assert line[2].startswith(f"{rows[0]['unit_errors']:.3f} (")
    assert line[3:6] == [f"{rows[0][f'unit_errors_{name}']:.3f}" for name in ("static", "mixture", "random")]
    assert line[-2:] == ["0.80", "0.250 |"]
    guarantee = dict(system="entropy", target=0.1, violations=0.05, mean_test_risk=0.04, depth=0.8)
    results.write_result("discrete_units_guarantee", [guarantee])
    assert "| entropy | 10% | 5.0% | 0.040 | 80% |" in tables.TABLES["discrete_units_guarantee"]()
    peer = dict(system="a", beside="b", seconds=2.0, audio_sec=50.0, ratio=1.5, ratio_low=1.4, ratio_high=1.6)
    peers_rows = [{**peer, "other_units": 0.001}, {**peer, "other_units": 0.1, "depth": 0.683}]
    results.write_result("discrete_units_peers", peers_rows)
    assert "| a, 68% of the layers | 0.0400 |" in tables.TABLES["discrete_units_peers"]()
    assert "| a | 0.0400 | 1.50 (1.40-1.60) times b | 0.10% |" in tables.TABLES["discrete_units_peers"]()
