"""pretrain.sh, from a teacher to a network with exits, and its error messages."""

import hashlib
import json
import os
import shutil
import subprocess

import pytest
import torch

import daisy
from daisy.checkpoints.converters import convert
from tests.conftest import POST_NORM, tiny_model
from tests.fairseq_plugins.conftest import ROOT, command, refuse, takes_processes_without_gpus
from tests.fairseq_plugins.test_exit_pretraining import NUM_LAYERS, TINY_NETWORK

SCRIPT = ROOT / "fairseq_plugins" / "pretrain.sh"


SETTINGS = (
    "TEACHER",
    "TEACHER_LAYER",
    "WARM_START",
    "CONFIG",
    "UPDATES",
    "EXITS",
    "UNITS",
    "LAYER",
    "PROCESSES",
    "DEPTH",
)
"""Of the recipe; a developer's own are not meant here."""


def call(programs, manifests, out, *options, **settings):
    variables = [f"{name}={value}" for name, value in settings.items()]
    return "env", f"PATH={programs}:/usr/bin:/bin", *variables, SCRIPT, manifests, out, *options


def read_model_settings(out, iteration):
    path = out / f"run{iteration}" / "checkpoints" / "checkpoint_last.pt"
    return torch.load(path, weights_only=False)["cfg"]["model"]


def test_from_a_teacher_to_a_network_that_exits(corpus, programs, tmp_path):
    """Nothing but the units is the teacher's; a second iteration goes on from what came out. Two processes train."""
    teacher, out = tmp_path / "teacher.safetensors", tmp_path / "out"
    daisy.save(tiny_model(POST_NORM), teacher)
    options = ("common.cpu=true", "dataset.max_tokens=40000", "task.min_sample_size=4000", *TINY_NETWORK)
    options = (*options, "model.exit_layers=[1,2,3,4]", "criterion.exit_layer_weights=[1,1,1,2]")
    settings = {"TEACHER": teacher, "TEACHER_LAYER": 2, "UNITS": "5 6", "LAYER": 3, "UPDATES": "1 1", "EXITS": "last"}
    if takes_processes_without_gpus():
        settings |= {"PROCESSES": 2, "PORT": 29521}
    command(*call(programs, corpus / "data", out, *options, **settings))
    assert ("'distributed_world_size': 2" in (out / "iteration1.log").read_text()) == ("PROCESSES" in settings)
    first, second = (read_model_settings(out, iteration) for iteration in (1, 2))
    assert (first["exit_layers"], second["exit_layers"]) == ([], [1, 2, 3, 4])
    assert (first["warm_start"], first["feature_grad_mult"]) == ("", 0.1)
    assert (second["warm_start"], second["feature_grad_mult"]) == (str(out / "start2.safetensors"), 0.1)
    labels = json.loads((out / "units1" / "labels.json").read_text())
    assert (labels["clusters"], labels["source"].rpartition(":")[2]) == (5, "2")

    model = daisy.load(out / "exits.safetensors")
    assert (model.heads.config.num_layers, model.heads.config.num_units) == (NUM_LAYERS, 10)
    before = daisy.load(out / "iteration1.safetensors").heads
    assert not torch.equal(before.units[0].weight[:4], model.heads.units[0].weight[:4])
    stock = convert(out / "hubert.pt", allow_pickle=True)
    assert stock.heads is None
    assert stock.final_head.num_units == 10
    policy = json.loads((out / "exits.json").read_text())
    assert policy["target"]["depth"] == 0.6
    wav = corpus / "wav" / "valid0.wav"
    printed = command(
        programs / "daisy", "extract", wav, "--checkpoint", out / "exits.safetensors", "--policy", out / "exits.json",
        "--out", tmp_path / "features",
    )  # fmt: skip
    assert "1 recordings" in printed
    changed = {**settings, "TEACHER_LAYER": 3}
    assert "iteration 1 was run with other settings" in refuse(
        *call(programs, corpus / "data", out, *options, **changed)
    )


@pytest.fixture
def finished(corpus, programs, tmp_path):
    """How to call the script again on a folder whose one iteration an older version has finished, from a start."""
    manifests, out, start = tmp_path / "manifests", tmp_path / "out", tmp_path / "start.safetensors"
    shutil.copytree(corpus / "data", manifests)
    out.mkdir()
    daisy.save(tiny_model(POST_NORM, num_units=9), start)
    shutil.copy(start, out / "iteration1.safetensors")
    noted = f"hubert_mini_exits of {manifests}, from '{start}', 1 updates, 5 units of ' ', exits train network, "
    (out / "settings1").write_text(f"{noted}\n")
    for path in (start, *manifests.iterdir()):
        os.utime(path, (1e9, 1e9))
    return lambda **settings: call(programs, manifests, out, WARM_START=start, UNITS=5, UPDATES=1, **settings)


def test_files_that_have_changed_since_are_not_passed_over(finished, tmp_path):
    """An older version's folder has times alone to tell by; then whatever has the same content is the same."""
    manifests, start, noted = tmp_path / "manifests", tmp_path / "start.safetensors", tmp_path / "out" / "settings1"
    command(*finished(DEPTH=""))
    os.utime(manifests / "valid.tsv")
    assert "since iteration 1 these have changed: valid.tsv; use another folder" in refuse(*finished(DEPTH=""))
    with open(noted, "a") as stream:
        for path in (*(manifests / f"{split}.tsv" for split in ("train", "valid", "noise")), start):
            stream.write(f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()[:12]}\n")
    command(*finished(DEPTH=""))
    lines = (manifests / "train.tsv").read_text().splitlines()
    (manifests / "train.tsv").write_text("\n".join([*lines[:-1], ""]))
    daisy.save(tiny_model(POST_NORM, num_units=10), start)
    for path in (start, manifests / "train.tsv"):
        os.utime(path, (1e9, 1e9))
    assert "these have changed: train.tsv, start.safetensors; use" in refuse(*finished(DEPTH=""))


def test_exits_are_set_anew_on_other_recordings_and_for_another_depth(finished, tmp_path):
    policy = tmp_path / "out" / "exits.json"
    made = []
    for depth, num_recordings in ((0.6, 4), (0.6, 4), (0.5, 4), (0.5, 3)):
        valid = tmp_path / "manifests" / "valid.tsv"
        valid.write_text("\n".join([*valid.read_text().splitlines()[: 1 + num_recordings], ""]))
        os.utime(valid, (1e9, 1e9))
        command(*finished(DEPTH=depth))
        content = json.loads(policy.read_text())
        assert (content["target"]["depth"], content["data"]["num_recordings"]) == (depth, num_recordings)
        made.append(policy.stat().st_mtime_ns)
    assert made[0] == made[1] < made[2] < made[3]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "from nothing: give UPDATES"),
        ({"TEACHER_LAYER": "9"}, "TEACHER_LAYER=9 is of a TEACHER: give one"),
        ({"UPDATES": "2", "EXITS": "none"}, "EXITS=none: must be all or last"),
        (
            {"UPDATES": "2", "EXITS": "last", "CONFIG": "hubert_mini_pretraining"},
            "hubert_mini_pretraining has no exits",
        ),
        ({"UPDATES": "2", "CONFIG": "hubert_huge"}, "CONFIG=hubert_huge: no such file in"),
        ({"CONFIG": "hubert_base_exits", "WARM_START": __file__}, "hubert_base_exits: give UPDATES"),
        ({"WARM_START": "/gone.pt"}, "/gone.pt: no such checkpoint"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(corpus, programs, tmp_path, settings, message):
    done = subprocess.run(
        [*map(str, call(programs, corpus / "data", tmp_path / "out", **settings))],
        capture_output=True,
        text=True,
        env={name: value for name, value in os.environ.items() if name not in SETTINGS},
    )
    assert done.returncode == 2
    assert message in done.stderr
    assert not list((tmp_path / "out").iterdir())


def test_a_teacher_that_is_not_there_leaves_nothing_behind(corpus, programs, tmp_path):
    done = subprocess.run(
        [*map(str, call(programs, corpus / "data", tmp_path / "out", TEACHER=tmp_path / "gone.pt", TEACHER_LAYER=2))],
        capture_output=True,
        text=True,
    )
    assert done.returncode
    assert len(done.stderr.splitlines()) == 1
    assert "gone.pt: no such" in done.stderr
    assert not list((tmp_path / "out").iterdir())


def test_the_recipe_explains_itself():
    printed = command("bash", SCRIPT, "--help")
    assert printed.startswith("Pre-train a HuBERT with exits")
    assert "DEPTH=0.6" in printed
    assert "set -euo" not in printed
