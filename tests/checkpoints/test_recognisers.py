"""Recognisers in daisy's single-file format: tokens, CTC exits, Conformers."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import daisy
from daisy import CheckpointError, Model, PolicyError, policies
from daisy.checkpoints import digest
from daisy.models import CTCHeads, CTCHeadsConfig, Tokens
from daisy.policies import write_policy
from daisy.recognition import Recogniser
from tests.cli.running import run
from tests.conftest import tiny_model
from tests.recognition.conftest import KINDS, TOKENS, tiny_recogniser


def read_config(path):
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["daisy"])


@pytest.mark.parametrize("kind", KINDS)
def test_round_trip(kind, tmp_path):
    model = tiny_recogniser(kind, units=kind == "conformer")
    model.ctc_policies = {"entropy": {"threshold": 0.75}}
    model.policies = {"entropy": {"threshold": 2.5}}
    path = tmp_path / "m.safetensors"
    daisy.save(model, path)
    again = daisy.load(path)
    assert json.dumps(again.config()) == json.dumps(model.config())
    assert again.tokens == TOKENS
    waveforms = [0.1 * torch.randn(n, generator=torch.Generator().manual_seed(n)) for n in (16000, 9000)]
    for ours, theirs in zip(Recogniser(model)(waveforms), Recogniser(again)(waveforms), strict=True):
        assert ours == theirs
    assert Recogniser(again).encoder.policy == policies.Entropy(threshold=0.75)
    assert again.policy("entropy", heads="ctc") == policies.Entropy(threshold=0.75)
    if again.heads is not None:
        assert again.policy("entropy") == again.policy("entropy", heads="units") == policies.Entropy(threshold=2.5)


def test_files_of_other_models_have_nothing_new(tmp_path):
    daisy.save(tiny_model(), tmp_path / "m.safetensors")
    config = read_config(tmp_path / "m.safetensors")
    keys = {"format_version", "backbone", "final_head", "heads", "policies", "provenance", "digest"}
    assert set(config) == keys
    assert "kind" not in config["backbone"]


def test_info_describes_recognisers(tmp_path):
    daisy.save(tiny_recogniser("hubert-attention"), tmp_path / "hubert.safetensors")
    shown = run("info", tmp_path / "hubert.safetensors").stdout
    assert "11 tokens at layers 1, 3, 4; attention, the last linear" in shown
    assert "11, characters" in shown
    daisy.save(tiny_recogniser("splitformer"), tmp_path / "split.safetensors")
    shown = run("info", tmp_path / "split.safetensors").stdout
    assert "Conformer, kernel 7, blocks of 2 layers, a half-rate layer beside block 1 and 3" in shown
    assert "log-mel of 20 bands, normalised; a frame of 960 samples every 640" in shown
    assert "multiply-accumulates" in shown
    assert "padding" not in shown
    published = tiny_recogniser("splitformer")
    published.backbone.config = published.backbone.config.as_published()
    daisy.save(published, tmp_path / "published.safetensors")
    assert "padding not masked: utterances run one by one" in run("info", tmp_path / "published.safetensors").stdout


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("tokens"), "CTC exits and tokens go together: no tokens"),
        (lambda c: c.pop("ctc"), "CTC exits and tokens go together: no exits"),
        (lambda c: c["tokens"]["symbols"].pop(), "CTC exits of 11 tokens with blank 0 do not fit 10 symbols"),
        (lambda c: c["ctc"].update(layers=[2, 4]), "CTC exits for 4 layers of width 32, and a backbone with 6"),
        (lambda c: c["ctc"].update(beams=3), "CTC exits: .*beams"),
        (lambda c: c["backbone"].update(kind="mamba"), "a backbone of kind 'mamba', which this daisy does not know"),
        (lambda c: c["backbone"].update(kernel=8), "kernel must be odd"),
        (lambda c: c.update(ctc_policies={"entropy": {"threshold": -1}}), "threshold must be at least 0 nats"),
        (lambda c: c.update(ctc_policies=[]), "ctc_policies must be an object"),
    ],
)
def test_damaged_configurations_are_one_line(change, message, tmp_path):
    path = tmp_path / "m.safetensors"
    daisy.save(tiny_recogniser("conformer"), path)
    with safe_open(path, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    config = read_config(path)
    config.pop("digest")
    change(config)
    save_file(tensors, path, {"daisy": json.dumps(config)})
    with pytest.raises(CheckpointError, match=message):
        daisy.load(path)


def test_parts_that_do_not_go_together_are_refused():
    backbone = tiny_model().backbone
    exits = CTCHeads(CTCHeadsConfig(layers=(2, 4), width=32, num_tokens=5))
    with pytest.raises(CheckpointError, match="no tokens"):
        Model(backbone=backbone, ctc=exits)
    with pytest.raises(CheckpointError, match="CTC exits of 5 tokens with blank 0 do not fit 7 symbols with blank 0"):
        Model(backbone=backbone, ctc=exits, tokens=Tokens.characters("ab"))


def test_a_policy_file_is_for_one_kind_of_heads(tmp_path):
    model = tiny_recogniser("hubert", units=True)
    daisy.save(model, tmp_path / "m.safetensors")
    model, name = daisy.load(tmp_path / "m.safetensors"), digest(tmp_path / "m.safetensors")
    rule = policies.Entropy(threshold=0.5)
    parts = {"checkpoint": "m", "digest": name, "target": {}, "attained": {}, "data": {}}
    for heads in ("units", "ctc"):
        write_policy(tmp_path / f"{heads}.json", rule, heads=heads, **parts)
        assert Recogniser(model, tmp_path / f"{heads}.json", heads=heads).encoder.policy == rule
    assert "heads" not in json.loads((tmp_path / "units.json").read_text())
    with pytest.raises(
        PolicyError, match=r"units.json: was calibrated for the scores of units exits, not for those of"
    ):
        Recogniser(model, tmp_path / "units.json")
    with pytest.raises(PolicyError, match=r"ctc.json: was calibrated for the scores of ctc exits"):
        model.encoder(tmp_path / "ctc.json")
