"""Parity and speed of wav2vec 2.0, WavLM, data2vec and Whisper against other libraries', on tiny networks."""

import json
import logging
import sys

import pytest
import torch

from benchmarks import parity_backbones, tables
from benchmarks.shared import backbones, results
from benchmarks.speed import backbones as speed
from benchmarks.speed.measures import BACKBONE_SETTING
from benchmarks.speed.tables import TABLES
from daisy.errors import DaisyError
from tests.conftest import tiny_model

pytestmark = pytest.mark.filterwarnings("ignore")  # fairseq's and s3prl's own
CONV = [(16, 10, 5), *[(16, 3, 2)] * 4, *[(16, 2, 2)] * 2]
TORCHAUDIO = "torchaudio"
"""Makes its published sizes only: its forms are in tests/checkpoints/converters."""
CASES = [(network, source) for network, of in backbones.SOURCES.items() for source in of if source != TORCHAUDIO]


@pytest.fixture
def tiny(monkeypatch):
    """Two layers of 32 in place of the published sizes; oneDNN's bfloat16 is wrong for groups of under 16 channels."""
    channels, kernels, strides = zip(*CONV, strict=True)
    common = {"conv_dim": channels, "conv_kernel": kernels, "conv_stride": strides}
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    fairseq = {"encoder_layers": 2, "encoder_embed_dim": 32, "encoder_ffn_embed_dim": 48, "encoder_attention_heads": 4}
    fairseq |= {"conv_feature_layers": str(CONV), "conv_pos_groups": 2}
    sizes["num_conv_pos_embedding_groups"] = 2
    whisper = {"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 48}
    for shapes, changes in (
        (backbones.FAIRSEQ_SHAPES, fairseq),
        (backbones.TRANSFORMERS_SHAPES, {**common, **sizes}),
        (backbones.WHISPER_SHAPES, whisper),
    ):
        for size in shapes:
            monkeypatch.setitem(shapes, size, {**shapes[size], **changes})


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("size", ["base", "large"])
@pytest.mark.parametrize(("network", "source"), CASES)
def test_every_library_gives_our_states(network, source, size, waveforms, capsys):
    pytest.importorskip(source, reason=f"needs {source}")
    rows = parity_backbones.measure(network, source, size, waveforms[4:6])
    assert [row["layer"] for row in rows] == [1, 2]
    assert {(row["network"], row["size"], row["source"]) for row in rows} == {(network, size, source)}
    assert 0 < max(row["max_abs_diff_over_std"] for row in rows) < 1e-4
    assert f"{network} {size}, {source}: largest over layers" in capsys.readouterr().out


def test_a_difference_is_seen_and_so_is_what_is_no_number(waveforms):
    model = tiny_model()
    other = tiny_model(seed=1)
    run = lambda waveform: model.encoder("never")([waveform]).states[0]  # noqa: E731
    assert parity_backbones.compare_layers(model, run, waveforms[4:5]).tolist() == [0, 0, 0, 0]
    assert parity_backbones.compare_layers(other, run, waveforms[4:5]).min() > 0.1
    broken = lambda waveform: run(waveform) * (torch.nan if len(waveform) == 5000 else 1)  # noqa: E731
    assert parity_backbones.compare_layers(model, broken, waveforms[3:5]).isnan().all()


def test_a_library_that_is_missing_is_left_out(monkeypatch, capsys, waveforms):
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert parity_backbones.measure("WavLM", "transformers", "base", waveforms[:1]) == []
    assert capsys.readouterr().out == "WavLM of transformers: left out, transformers is not installed\n"
    with pytest.raises(DaisyError, match="none of fairseq, transformers has WavLM here"):
        speed.make_pairs("WavLM", ["fairseq", "transformers"], "cpu")


@pytest.mark.usefixtures("tiny")
def test_batches_of_many_lengths_are_masked(waveforms):
    pytest.importorskip("transformers", reason="needs transformers")
    pair = backbones.make_pair("wav2vec 2.0", "transformers", "large")  # no norm over time, so padding is not heard
    with torch.no_grad():
        together = pair.system(waveforms[3:6])
        for waveform, states in zip(waveforms[3:6], together, strict=True):
            (alone,) = pair.system([waveform])
            torch.testing.assert_close(states[: len(alone)], alone, atol=1e-4, rtol=1e-4)


@pytest.fixture
def _as_before():
    """What a script sets for its whole process is set back."""
    threads, level = torch.get_num_threads(), logging.root.manager.disable
    yield
    torch.set_num_threads(threads)
    logging.disable(level)


@pytest.mark.usefixtures("tiny", "_as_before")
def test_the_quick_measure_of_speed_writes_rows(monkeypatch, tmp_path):
    for source in speed.SYSTEMS:
        pytest.importorskip(source, reason=f"needs {source}")
    monkeypatch.setattr(speed, "make_backbone", lambda size: tiny_model().backbone)
    path = tmp_path / "rows.json"
    monkeypatch.setattr(sys, "argv", ["backbones", "--quick", "--json", str(path)])
    speed.main()
    rows = json.loads(path.read_text())
    assert [tuple(row[key] for key in (*BACKBONE_SETTING, "system")) for row in rows] == [
        ("WavLM", precision, batch, lengths, 1, system)
        for precision in ("float32", "bfloat16")
        for batch, lengths in ((1, "fixed"), (2, "mixed"))
        for system in ("daisy", "HuBERT", "s3prl", "transformers")
    ]
    assert {row["form"] for row in rows if row["system"] == "transformers"} <= {"float32", "autocast", "weights"}
    assert all(row["seconds"] > 0 for row in rows)
    assert all(row["ratio"] == 1.0 for row in rows if row["system"] == "daisy")


@pytest.mark.usefixtures("tiny")
def test_what_computes_something_else_is_not_timed(monkeypatch):
    pytest.importorskip("transformers", reason="needs transformers")
    monkeypatch.setattr(speed, "make_backbone", lambda size: tiny_model().backbone)
    pairs = speed.make_pairs("data2vec", ["transformers"], "cpu")
    waveform = 0.1 * torch.randn(16000, generator=torch.Generator().manual_seed(0))
    assert list(speed.build_systems("data2vec", pairs, "float32", waveform)) == ["daisy", "HuBERT", "transformers"]
    with torch.no_grad():
        pairs["transformers"].model.encoder.layers[1].feed_forward.output_dense.weight.neg_()
    with pytest.raises(DaisyError, match="the states of transformers's data2vec are not ours in float32"):
        speed.build_systems("data2vec", pairs, "float32", waveform)


def make_speed_rows(network, precision, seconds):
    times = {"daisy": seconds, "HuBERT": seconds, "transformers": 2 * seconds}
    return [
        dict(zip(BACKBONE_SETTING, (network, precision, 1, "fixed", 1), strict=True))
        | dict(device="cpu", system=system, form=precision, audio_sec=10.0, seconds=of)
        | dict(ratio=of / seconds, ratio_low=of / seconds, ratio_high=of / seconds)
        for system, of in times.items()
    ]


def test_parts_of_the_speed_come_in_any_order_and_replace_those_of_before(monkeypatch, tmp_path):
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    for network, precision, seconds in (
        *(("data2vec", "float32", 1.0), ("WavLM", "bfloat16", 1.0)),
        *(("WavLM", "float32", 1.0), ("WavLM", "bfloat16", 0.5)),
    ):
        speed.merge_result(make_speed_rows(network, precision, seconds), "backbones")
    rows = results.read_result("backbones")["rows"]
    assert [(row["network"], row["precision"], row["seconds"]) for row in rows if row["system"] == "daisy"] == [
        ("WavLM", "float32", 1.0),
        ("WavLM", "bfloat16", 0.5),
        ("data2vec", "float32", 1.0),
    ]
    lines = TABLES["backbones"]().splitlines()
    assert lines[0].startswith("| network | precision | batch | lengths | threads | audio, s | ours, ms | HuBERT |")
    assert lines[3].startswith("| WavLM | bfloat16 | 1 | fixed | 1 | 10 | 500 | 1.00 (1.00-1.00) | 2.00 (2.00-2.00)")


def test_the_table_of_parity_has_a_column_for_each_library(monkeypatch, tmp_path):
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    rows = [
        dict(network=network, size="base", source=source, layer=layer, max_abs_diff_over_std=layer * 1e-6)
        for network, sources in (("WavLM", ("s3prl", "transformers")), ("Whisper", ("transformers",)))
        for source in sources
        for layer in (1, 2)
    ]
    results.write_result("parity_backbones", rows, arguments=())
    lines = tables.render_parity_backbones().splitlines()
    assert lines[0] == "| network | layers | s3prl | transformers |"
    assert lines[2] == "| WavLM, base | 2 | 2.0e-06 | 2.0e-06 |"
    assert lines[3] == "| Whisper, base | 2 |  | 2.0e-06 |"


@pytest.mark.parametrize("size", ["base", "large"])
def test_the_published_shapes_are_ones_that_transformers_takes(size, monkeypatch):
    """Without weights: a network of a published size takes seconds and gigabytes to make."""
    pytest.importorskip("transformers", reason="needs transformers")
    made = {}
    monkeypatch.setattr(backbones, "spread_weights", lambda model: made.setdefault(model.config.model_type, model))
    monkeypatch.setattr(backbones, "_convert_folder", lambda model, extractor: tiny_model())
    with torch.device("meta"):
        for network, sources in backbones.SOURCES.items():
            sources["transformers"](network, size)
    widths = {name: (model.config.hidden_size, model.config.num_hidden_layers) for name, model in made.items()}
    kin = (768, 12) if size == "base" else (1024, 24)
    whisper = (512, 6) if size == "base" else (1280, 32)
    assert widths == {"wav2vec2": kin, "wavlm": kin, "data2vec-audio": kin, "whisper": whisper}
