"""How the benchmarks compare systems."""

import json
import logging
import sys
import time

import pytest
import soundfile
import torch

import daisy
from benchmarks.shared import paired, peers, recordings, rendering, results
from benchmarks.shared.script import run_script
from benchmarks.speed import backbones, latency, memory, speed
from benchmarks.speed.measures import SETTING
from benchmarks.speed.stages import exact_row_counts
from daisy import EarlyExitEncoder, policies
from daisy.errors import DaisyError, UsageError
from tests.conftest import KINDS, POST_NORM, Products, tiny_model


def test_ratios_are_taken_turn_by_turn():
    one, other = paired.Times([1.0, 10.0, 4.0]), paired.Times([2.0, 5.0, 4.0])
    assert one.median == 4.0
    assert one.over(other) == (1.0, 0.75, 1.5)
    assert paired.Times([3.0]).over(paired.Times([2.0])) == (1.5, 1.5, 1.5)


def test_systems_take_turns_and_nobody_is_always_first(monkeypatch):
    called = []
    systems = {name: lambda name=name: called.append(name) for name in "abc"}
    times = paired.time_in_turns(systems, 3)
    assert [len(times[name].seconds) for name in "abc"] == [3, 3, 3]
    assert "".join(called[3:]) == "abcbcacab"  # after the warm-up
    called.clear()
    monkeypatch.setattr(paired, "MIN_SEC_WITHOUT_WARM_UP", 0.0)
    paired.time_in_turns(systems, 3)
    assert "".join(called) == "abcbcacab"  # none where a turn takes long
    short = paired.time_in_turns(systems, 9, budget_sec=0.0)
    assert [len(short[name].seconds) for name in "abc"] == [3, 3, 3]


@pytest.mark.parametrize("kind", ["post-norm", "pre-norm"])
def test_peers_compute_what_we_compute(waveforms, kind):
    pytest.importorskip("transformers", reason="a peer")
    backbone = tiny_model(KINDS[kind]).backbone
    names = ["torchaudio", "transformers"] if KINDS[kind].conv_norm == "group" else ["transformers"]
    ours = EarlyExitEncoder(backbone, None, policies.Never(), keep="last")
    waveform = waveforms[4]
    if backbone.config.normalize:  # their callers do it
        waveform = torch.nn.functional.layer_norm(waveform, waveform.shape)
    with torch.no_grad():
        for name, system in peers.build_peers(names, backbone).items():
            expected = ours([waveform]).states[0][0]
            torch.testing.assert_close(system([waveform])[0], expected, atol=1e-4, rtol=1e-4, msg=name)


def test_what_computes_something_else_is_not_timed(monkeypatch):
    other = lambda waveforms: [torch.ones(5, POST_NORM.width)]  # noqa: E731
    monkeypatch.setattr(latency, "build_peers", lambda names, backbone, dtype=None: {"other": other})
    with pytest.raises(DaisyError, match="the states of other are not ours in float32"):
        latency.build_forms(["other"], tiny_model().backbone, "float32", 0.1 * torch.randn(1840))


def test_a_peer_runs_in_bfloat16_as_is_faster_for_it(waveforms):
    pytest.importorskip("torchaudio", reason="a peer")
    # daisy-mini: oneDNN's bfloat16 convolutions of few channels give other numbers from one process to the next.
    systems = latency.build_forms(["torchaudio"], daisy.load("daisy-mini").backbone, "bfloat16", waveforms[4])
    assert list(systems["daisy"]) == ["bfloat16"]
    assert set(systems["torchaudio"]) == {"autocast", "weights"}
    slow = lambda waveforms: time.sleep(0.05)  # noqa: E731
    assert latency.choose_fastest({"autocast": slow, "weights": len}, []) == "weights"


@pytest.fixture
def _as_before():
    """What a script sets for its whole process is set back."""
    threads, level = torch.get_num_threads(), logging.root.manager.disable
    yield
    torch.set_num_threads(threads)
    logging.disable(level)


@pytest.mark.usefixtures("_as_before")
def test_the_quick_measure_writes_rows_in_the_form_of_the_results(monkeypatch, tmp_path):
    """`latency --quick` on a tiny network beside its own plain modules, as a peer."""

    def build_plain(names, backbone, dtype=torch.float32):
        return {name: lambda waveforms: list(backbone(*peers.pad_batch(waveforms))[0][-1]) for name in names}

    monkeypatch.setattr(latency, "make_backbone", lambda size: tiny_model().backbone)
    monkeypatch.setattr(latency, "build_peers", build_plain)
    path = tmp_path / "rows.json"
    options = ["--quick", "--precisions", "float32", "--threads", "1", "--systems", "torchaudio", "--json", str(path)]
    monkeypatch.setattr(sys, "argv", ["latency", *options])
    latency.main()
    rows = json.loads(path.read_text())
    assert [tuple(row[key] for key in (*SETTING, "device", "system", "form")) for row in rows] == [
        ("mini", "float32", batch, lengths, 1, "cpu", system, "float32")
        for batch, lengths in ((1, "fixed"), (2, "mixed"))
        for system in ("daisy", "torchaudio")
    ]
    for row in rows:
        assert row["seconds"] > 0
        assert 0 < row["ratio_low"] <= row["ratio"] <= row["ratio_high"]
        assert row["system"] != "daisy" or row["ratio"] == 1.0
    assert rows[0]["audio_sec"] == 10.0


@pytest.mark.parametrize(
    ("script", "options", "refusal"),
    [
        (
            latency,
            ["--systems", "torchaudio"],
            "latency.json is not written without fairseq, s3prl, transformers; --json",
        ),
        (
            latency,
            ["--repeats", "1"],
            "latency.json is not written with other turns than 5; --json FILE keeps such rows",
        ),
        (backbones, ["--systems", "s3prl"], "backbones.json is not written without transformers; --json"),
    ],
)
def test_a_part_of_the_systems_or_turns_is_not_written_over_all(monkeypatch, script, options, refusal):
    monkeypatch.setattr(sys, "argv", ["script", *options])
    with pytest.raises(UsageError, match=refusal):
        script.main()


def test_a_batch_says_how_many_recordings_it_has(monkeypatch, tmp_path):
    """Of nine recordings of each set every third is heard where four are asked for."""
    for name in latency.MIXED_SETS:
        folder = tmp_path / name
        folder.mkdir()
        soundfile.write(folder / "a.wav", 0.1 * torch.randn(4000).numpy(), 16000)
        lines = ["path,split,speaker", *["a.wav,test,s"] * 9]
        (folder / "index.csv").write_text("\n".join(lines) + "\n")
    for module in (latency, recordings):
        monkeypatch.setattr(module, "DATA", tmp_path)
    monkeypatch.setattr(latency, "make_backbone", lambda size: tiny_model().backbone)
    monkeypatch.setattr(sys, "argv", ["latency", "--precisions", "float32", "--batches", "16", "--lengths", "mixed"])
    arguments = latency.parse_arguments()
    arguments.threads, arguments.repeats, arguments.systems = [torch.get_num_threads()], 1, []
    ((row,),) = latency.measure("mini", arguments, lambda setting: None)
    assert (row["batch"], row["audio_sec"]) == (12, 12 * 0.25)


def test_products_have_as_many_rows_as_frames_where_no_row_shall_be_added(waveforms):
    encoder = EarlyExitEncoder(tiny_model().backbone, None, policies.Never())
    shape = POST_NORM.ffn_width, POST_NORM.width
    seen = {}
    for name, run in (("shared", encoder), ("own", exact_row_counts()(encoder))):
        with Products() as products:
            run(waveforms[5:])  # 49 and 74 frames
        seen[name] = {*products.rows(*shape, after="gelu")}
    if not seen["shared"]:
        pytest.skip("this torch has no products of oneDNN")
    assert seen == {"shared": {128}, "own": {50 + 74}}


def test_processes_find_the_package_from_any_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    measured = memory.measure_in_process("utterances", 1)
    assert measured["seconds"] > 0
    assert measured["peak_bytes"] >= measured["before_bytes"] > 2**20


def test_a_refusal_is_one_line(monkeypatch):
    monkeypatch.setattr(sys, "argv", [speed.__file__, "--device", "cuda", "--only", "stages"])
    with pytest.raises(SystemExit, match=r"^benchmarks\.speed\.speed: .*(--device cuda: |stages: on CPUs only).*$"):
        run_script(speed.main)


def test_results_of_another_machine_are_not_mixed_with_ours(monkeypatch, tmp_path):
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    assert results.read_rows_beside("speed") == []
    results.write_result("speed", [{"measure": "deciding"}], arguments=())
    assert results.read_rows_beside("speed") == [{"measure": "deciding"}]
    monkeypatch.setattr(results, "read_processor", lambda: "another")
    with pytest.raises(DaisyError, match=r"speed\.json was measured on another machine or with other versions"):
        results.read_rows_beside("speed")
    assert results.read_rows_beside("speed", timed=False) == [{"measure": "deciding"}]
    monkeypatch.setattr(results, "list_versions", lambda: {"python": "another"})
    with pytest.raises(DaisyError, match=r"speed\.json was measured with other versions"):
        results.read_rows_beside("speed", timed=False)


def test_processors_of_one_name_are_told_apart(monkeypatch, tmp_path):
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    monkeypatch.setattr(results, "CPU_INFO", tmp_path / "cpuinfo")
    lines = "processor : {}\ncpu family : 25\nmodel : {}\nmodel name : AMD EPYC\nflags : fpu avx2 {}\n\n"
    (tmp_path / "cpuinfo").write_text(lines.format(0, 17, "avx512f avx512_bf16") + lines.format(1, 17, ""))
    results.write_result("speed", [{"measure": "deciding"}], arguments=())
    machine = results.read_result("speed")["machine"]
    assert (machine["processor"], machine["processor_family"], machine["processor_model"]) == ("AMD EPYC", 25, 17)
    source = rendering.render_source(results.read_result("speed"), threads=False)
    assert source.endswith(", AMD EPYC (family 25, model 17, avx2, avx512f, avx512_bf16).\n")
    (tmp_path / "cpuinfo").write_text(lines.format(0, 1, ""))
    with pytest.raises(DaisyError, match="another machine"):
        results.read_rows_beside("speed")
    written = json.loads((tmp_path / "speed.json").read_text())
    written["machine"] = {name: value for name, value in machine.items() if name not in results.MODEL_FIELDS}
    (tmp_path / "speed.json").write_text(json.dumps(written))  # as before these fields were there
    assert results.read_rows_beside("speed") == [{"measure": "deciding"}]
    assert rendering.render_source(written, threads=False).endswith(", AMD EPYC.\n")
    written["rows"] = [{"processor": "Xeon"}, {"processor": "AMD EPYC"}, {"processor": None}, {"processor": "Xeon"}]
    assert rendering.render_source(written, threads=False).endswith(", Xeon and AMD EPYC.\n")
