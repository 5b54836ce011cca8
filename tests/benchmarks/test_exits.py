import json
from functools import partial

import numpy
import pytest
import torch

import daisy
from benchmarks.shared import results
from benchmarks.training import exit_variants, exits, tables
from daisy.calibration.traces import Traces
from daisy.errors import OutputError
from daisy.policies import Entropy

LAYERS = 4


def make_traces(condition, entropies):
    batch = len(entropies)
    return Traces(
        utterances=tuple(map(str, range(batch))),
        groups=tuple(f"speaker{index % 3}" for index in range(batch)),
        conditions=(condition,) * batch,
        scores={"entropy": torch.tensor(entropies)},
        losses={"disagreement": torch.zeros(batch, LAYERS)},
        weights=torch.ones(batch),
        costs=torch.arange(1, LAYERS + 1).float(),
        layers=tuple(range(1, LAYERS + 1)),
    )


def test_exits_are_held_against_a_cut_and_chance_of_their_own_depth():
    early, late = [0.0] * LAYERS, [9.0, 9.0, 0.0, 0.0]  # leave at layer 1, at layer 3
    clean, noisy = make_traces("clean", [early, early, early]), make_traces("0 dB", [early, late, late])
    gains = [numpy.array([[1, 0, 0, 1]] * 3, float), numpy.array([[0, 0, 1, 0]] * 3, float)]
    (row,) = exits.compare_exits(gains, [clean, noisy], {("entropy", 0.5): Entropy(threshold=1.0)})
    assert row["depth"] == pytest.approx((4 * 1 + 2 * 3) / 6 / LAYERS)
    assert (row["layers_clean"], row["layers_0_dB"]) == (1.0, pytest.approx(7 / 3))
    assert row["exit"] == pytest.approx(5 / 6)
    assert row["static"] == pytest.approx(0.5 / 3)  # a cut at layer 1 2/3: a third of layer 1's half, none of layer 2's
    assert row["random"] == pytest.approx(4 / 6 * 0.5 + 2 / 6 * 0.5)
    assert (row["full"], row["full_clean"]) == (0.5, 1.0)
    assert row["over_static_low"] <= row["over_static"] <= row["over_static_high"]
    assert row["over_random"] == pytest.approx(row["exit"] - row["random"])


def test_the_three_hours_keep_recordings_and_their_units_together(tmp_path):
    units = tmp_path / "units"
    units.mkdir()
    names = ["an4/a.ogg", "keywords/b.ogg", "robotutor/c.ogg", "librispeech/d.ogg", "librispeech_more/e.ogg"]
    (units / "train.tsv").write_text("\n".join(["/root", *(f"{name}\t16000" for name in names), ""]))
    (units / "train.km").write_text("".join(f"{index} {index}\n" for index in range(5)))
    for name in ("valid.tsv", "valid.km", "dict.km.txt"):
        (units / name).write_text(name)
    exit_variants.copy_lines(units, tmp_path / "few")
    assert (tmp_path / "few" / "train.tsv").read_text() == "/root\nkeywords/b.ogg\t16000\nlibrispeech/d.ogg\t16000\n"
    assert (tmp_path / "few" / "train.km").read_text() == "1 1\n3 3\n"
    assert (tmp_path / "few" / "valid.km").read_text() == "valid.km"


def test_a_start_has_some_modules_of_its_layers_drawn_anew(tmp_path):
    before = daisy.load("daisy-mini").hubert
    changed = {}
    for kind, modules in (("norms", ("norm",)), ("layers", exit_variants.VARIANTS["new layers"].redrawn)):
        exit_variants.redraw("daisy-mini", modules, tmp_path / f"{kind}.safetensors")
        after = dict(daisy.load(tmp_path / f"{kind}.safetensors").hubert.named_parameters())
        changed[kind] = {name for name, value in before.named_parameters() if not torch.equal(value, after[name])}
        if kind == "norms":
            assert all(
                torch.equal(after[name], torch.full_like(after[name], "weight" in name)) for name in changed[kind]
            )
        else:
            weight = after["encoder.transformer.layers.7.feed_forward.output_dense.weight"]
            assert weight.std().item() == pytest.approx(0.02, rel=0.02)
    of_layers = {name for name, _ in before.named_parameters() if name.startswith("encoder.transformer.layers.")}
    assert changed["layers"] == of_layers
    assert changed["norms"] == {name for name in of_layers if "norm" in name}


def write_inputs(folder):
    (folder / "start.safetensors").write_bytes(b"weights")
    (folder / "weighted").mkdir()
    for name in ("train", "valid", "noise"):
        (folder / "weighted" / f"{name}.tsv").write_text("/root\n")


def test_variants_of_another_training_are_not_gone_on_with(tmp_path):
    write_inputs(tmp_path)
    make = lambda updates: exit_variants.Origin(tmp_path, tmp_path / "start.safetensors", "teacher", 4, updates)  # noqa: E731
    make(500).check()
    make(500).check()
    with pytest.raises(OutputError, match="holds variants made with .*500"):
        make(300).check()
    (tmp_path / "weighted" / "train.tsv").write_text("/elsewhere\n")
    with pytest.raises(OutputError, match="holds variants made with"):
        make(500).check()


def test_a_variant_that_was_changed_since_is_not_taken_for_the_new_one(tmp_path, monkeypatch):
    folder, origin = tmp_path / "exits" / "last_layer", exit_variants.Origin(tmp_path, tmp_path / "start", "t", 4, 500)
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    assert exit_variants.train("last layer", tmp_path, origin) == folder / "model.safetensors"
    (folder / "variant.json").write_text(
        '{"units": "teacher200", "overrides": ["model.exit_layers=[]"], "redrawn": []}'
    )
    assert exit_variants.train("last layer", tmp_path, origin) == folder / "model.safetensors"
    monkeypatch.setitem(exit_variants.VARIANTS, "last layer", exit_variants.Variant(units="mfcc100"))
    with pytest.raises(OutputError, match=r"last_layer: was trained with .*exit_layers=\[\].*; remove it"):
        exit_variants.train("last layer", tmp_path, origin)


def test_variants_of_other_trainings_are_not_put_beside_each_other(tmp_path, monkeypatch):
    write_inputs(tmp_path)
    origin = exit_variants.Origin(tmp_path, tmp_path / "start.safetensors", "teacher", 4, 500)
    before = {"network": "3 hours", "updates": 300, "bf16": origin.training["bf16"]}
    rows = [{"network": "daisy-mini", "checkpoint": "daisy-mini"}, before]
    monkeypatch.setattr(exit_variants, "read_rows_beside", lambda name, timed: rows)
    with pytest.raises(OutputError, match="has variants trained with .*300"):
        origin.check()
    before["updates"] = 500
    origin.check()


def test_the_stored_command_has_the_networks_beside_the_variants(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    monkeypatch.setattr(exit_variants.exits, "measure_networks", lambda networks: [{"network": n} for n in networks])
    exit_variants.measure("mini", "mini.pt", {"checkpoint": "mini.pt"}, ["runs"])
    exit_variants.measure("3 hours", tmp_path / "model", {"updates": 5, "bf16": False}, ["runs"])
    exit_variants.measure("all layers", tmp_path / "model", {"updates": 5, "bf16": False}, ["runs"])
    result = results.read_result("exit_variants")
    assert result["command"].endswith("runs --beside mini=mini.pt")
    assert [row["network"] for row in result["rows"]] == ["mini", "all layers", "3 hours"]
    assert [row.get("updates") for row in result["rows"]] == [None, 5, 5]


def test_the_table_of_variants_has_conditions_beside_each_other_and_networks_below(monkeypatch):
    rows = [
        {"network": network, "task": task, "condition": condition, "layer": layer}
        | {"value": value, "value_low": value - 0.02 * layer, "value_high": value + 0.02 * layer}
        for network, num_layers in (("deep", 8), ("flat", 4))
        for task in ("digit", "keyword")
        for condition, drop in (("clean", 0.0), ("0 dB", 0.3))
        for layer in range(1, num_layers + 1)
        for value in [layer / 10 - drop + (0.05 if task == "digit" else 0) + (0.02 if network == "flat" else 0)]
    ]
    result = {"rows": rows, "command": "c", "date": "d", "machine": {"processor": "P", "threads": 1}}
    monkeypatch.setattr(tables, "read_result", lambda name: result)
    layers = " | ".join(f"layer {layer}: clean / 0 dB" for layer in (2, 4, 6, 8))
    assert tables.render_exit_variants().splitlines()[:6] == [
        f"| what | network | {layers} | interval, at most |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        "| digit | deep | 0.25 / -0.05 | 0.45 / 0.15 | 0.65 / 0.35 | 0.85 / 0.55 | ±0.16 |",
        "| digit | flat | 0.27 / -0.03 | 0.47 / 0.17 |  |  | ±0.08 |",
        "| keyword | deep | 0.20 / -0.10 | 0.40 / 0.10 | 0.60 / 0.30 | 0.80 / 0.50 | ±0.16 |",
        "| keyword | flat | 0.22 / -0.08 | 0.42 / 0.12 |  |  | ±0.08 |",
    ]


def test_tables_of_exits(monkeypatch):
    curve = [
        {"network": "n", "task": "keyword", "condition": condition, "layer": layer}
        | {"value": layer / 10, "value_low": layer / 10 - 0.02, "value_high": layer / 10 + 0.04}
        for condition in ("clean", "0 dB")
        for layer in range(1, 5)
    ]
    system = {"network": "n", "task": "keyword", "policy": "forecast", "depth": 0.6, "exit": 0.9, "static": 0.8}
    system |= {"random": 0.7, "full": 1.0, "over_static": 0.1, "over_static_low": 0.05, "over_static_high": 0.15}
    system |= {"over_random": 0.2, "over_random_low": 0.1, "over_random_high": 0.3}
    machine = {"processor": "P", "threads": 1, "gpu": None}
    others = [{**system, "depth": 0.5}, {**system, "depth": 0.6, "policy": "entropy"}]
    result = {"rows": [*curve, *others, system], "command": "c", "date": "d", "machine": machine}
    monkeypatch.setattr(tables, "read_result", lambda name: json.loads(json.dumps(result)))
    for condition in ("clean", "0 dB"):
        line = f"| keyword | n | {condition} | 0.100 | 0.200 | 0.300 | 0.400 | ±0.030 |"
        assert line in tables.render_exit_curves()
    agreement = [{**row, "task": "agreement"} for row in curve]
    result["rows"] += [{**row, "network": "other", "value": 0.0} for row in agreement] + agreement
    assert "| 0 dB | 0.100 (0.080-0.140) | 0.200 (0.180-0.240) |" in tables.render_unit_layers()
    result["rows"] = result["rows"][: -2 * len(agreement)]
    expected = "| keyword | n | forecast | 60% | 0.900 | 0.800 | 0.240 | 0.700 | 1.000 | +0.100 (+0.050 to +0.150)"
    shown = tables.render_exit_systems("x", partial(tables.choose_depth, policy="forecast")).splitlines()
    assert [line for line in shown if line.startswith("| keyword")] == [line for line in shown if expected in line]
    assert len(tables.choose_depth([*others, system])) == 2
    assert tables.choose_default_policy([*others, {**system, "network": "m"}]) == [{**system, "network": "m"}]
    assert tables.choose_default_policy([*others, system]) == [others[0], system]
