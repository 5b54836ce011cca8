"""fairseq's HuBERTs with several label sets, each with its own softmax, and those without a configuration."""

import argparse
import dataclasses
import re

import pytest
import torch

import daisy
from daisy import CheckpointError
from daisy.checkpoints.converters import convert
from tests.checkpoints.converters.test_sources import assert_same, fairseq_config, fairseq_layers, our_states
from tests.cli.running import run
from tests.conftest import KINDS, POST_NORM, PRE_NORM, randomise, tiny_model

hubert = pytest.importorskip("fairseq.models.hubert.hubert", reason="needs fairseq")

SIZES, NAMES = (9, 7, 12), ("km", "phn", "ltr")


def make(num_sets, config=POST_NORM, **options):
    """fairseq's model with random weights, and the file that fairseq would write."""
    from fairseq.data import Dictionary

    dictionaries = []
    for size in SIZES[:num_sets]:
        dictionaries.append(Dictionary())
        for unit in range(size - len(dictionaries[-1])):
            dictionaries[-1].add_symbol(str(unit))
    fields, task = fairseq_config(config)
    fields |= options
    cfg = hubert.HubertConfig(**{name: value for name, value in fields.items() if name != "_name"})
    model = randomise(hubert.HubertModel(cfg, argparse.Namespace(**task), dictionaries)).eval()
    state = {
        "args": None,
        "cfg": {"model": fields, "task": {**task, "labels": list(NAMES[:num_sets])}},
        "model": model.state_dict(),
        "task_state": {"dictionaries": dictionaries},
    }
    return model, state


def save(state, path, form="fairseq"):
    if form == "s3prl":
        state = {
            "task_cfg": state["cfg"]["task"],
            "model_cfg": state["cfg"]["model"],
            "model_weight": state["model"],
            "dictionaries_symbols": [dictionary.symbols for dictionary in state["task_state"]["dictionaries"]],
        }
    torch.save(state, path)
    return path


@torch.no_grad()
def their_logits(model, states, index):
    """As `HubertModel.forward` has them: each unit's similarity, by its own function, for one label set."""
    projected = model.final_proj(states)
    if model.untie_final_proj:
        projected = projected.chunk(len(model.num_classes), dim=-1)[index]
    units = model.label_embs_concat.split(model.num_classes, 0)[index]
    units = units if model.target_glu is None else model.target_glu(units)
    nothing = torch.zeros(len(states), units.shape[1])
    return model.compute_nce(projected, nothing, units[:, None].expand(-1, len(states), -1))[:, 1:]


@pytest.mark.parametrize("form", ["fairseq", "s3prl"])
@pytest.mark.parametrize("options", [{}, {"untie_final_proj": True}, {"target_glu": True}, {"final_dim": 0}], ids=str)
@pytest.mark.parametrize(("num_sets", "chosen"), [(1, None), (1, 1), (2, 1), (2, 2), (3, 2), (3, 3)])
def test_the_head_of_one_label_set_is_fairseqs(num_sets, chosen, options, form, tmp_path):
    model, state = make(num_sets, **options)
    ours = convert(save(state, tmp_path / "x.pt", form), allow_pickle=True, label_set=chosen)
    index = (chosen or 1) - 1
    assert ours.final_head.num_units == SIZES[index]
    assert ours.final_head.temperature == 0.2
    states = torch.randn(5, POST_NORM.width, generator=torch.Generator().manual_seed(0))
    logits = ours.final_head(states)
    torch.testing.assert_close(logits, their_logits(model, states, index), atol=1e-4, rtol=1e-4)
    others = "" if num_sets == 1 else f"the heads of the other {num_sets - 1} of {num_sets} label sets"
    assert ours.provenance.get("left_out", "") == others


@pytest.mark.parametrize("untie", [True, False])
def test_without_a_choice_there_is_no_head_and_it_is_said(untie, waveforms, tmp_path):
    model, state = make(2, untie_final_proj=untie)
    path = save(state, tmp_path / "x.pt")
    ours = convert(path, allow_pickle=True)
    assert ours.final_head is None
    said = "the heads of 2 label sets (1: km of 9 units, 2: phn of 7 units), none of which was chosen"
    assert ours.provenance["left_out"] == said
    assert_same(our_states(ours, waveforms[4]), fairseq_layers(model, waveforms[4], POST_NORM.num_layers, False))
    with pytest.raises(CheckpointError, match=r"has no label set 3: there is 1: km of 9 units, 2: phn of 7 units$"):
        convert(path, allow_pickle=True, label_set=3)
    with pytest.raises(CheckpointError, match=r"has no label set 0: "):
        convert(path, allow_pickle=True, label_set=0)


def test_dictionaries_that_are_missing_or_do_not_fit(tmp_path):
    _, state = make(2)
    state["task_state"] = {}
    path = save(state, tmp_path / "x.pt")
    assert "2 label sets (1: km, 2: phn), none of which" in convert(path).provenance["left_out"]
    with pytest.raises(CheckpointError, match="does not tell which of 16 units are of which label set: its dictionar"):
        convert(path, label_set=1)
    state["cfg"]["task"]["labels"] = ["km"]  # and a dictionary of 9 units, where the head has 16
    state["task_state"] = {"dictionaries": make(1)[1]["task_state"]["dictionaries"]}
    path = save(state, tmp_path / "y.pt")
    ours = convert(path, allow_pickle=True)
    assert ours.final_head is None
    assert ours.provenance["left_out"] == "a prediction head for 16 units, of which the dictionary has 9"


@pytest.mark.parametrize("form", ["weights", "bare", "unnamed"])
def test_several_label_sets_that_nothing_tells_of_are_one_and_it_is_said(form, tmp_path):
    """Tied sets share a projection: nothing in the weights tells where one ends."""
    _, state = make(3, untie_final_proj=False)
    state["task_state"], state["cfg"]["task"]["labels"] = {}, []
    path = save({"weights": {"model": state["model"]}, "bare": state["model"]}.get(form, state), tmp_path / "x.pt")
    ours = convert(path, overrides={} if form == "unnamed" else {"num_heads": "4"})
    assert ours.final_head.num_units == sum(SIZES) == 28
    assert ours.provenance["assumed"].split("; ")[-1] == "one label set of 28 units"


def test_a_head_without_a_width(tmp_path):
    _, state = make(1)
    state["model"]["label_embs_concat"] = torch.zeros(3, 0)
    with pytest.raises(CheckpointError, match="not whole, or not of the form it seems to have") as error:
        convert(save(state, tmp_path / "x.pt"), allow_pickle=True)
    assert len(str(error.value).splitlines()) == 1


def test_the_command_line_says_it(tmp_path):
    save(make(2)[1], tmp_path / "x.pt")
    done = run("convert", "x.pt", "x.safetensors", "--allow-pickle", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    said = "left out: the heads of 2 label sets (1: km of 9 units, 2: phn of 7 units), none of which was chosen; "
    assert done.stdout.splitlines()[1] == said + "--label-set N keeps one"
    done = run("convert", "x.pt", "x.safetensors", "--allow-pickle", "--label-set", "2", "--overwrite", cwd=tmp_path)
    assert "prediction head for 7 units" in done.stdout
    assert daisy.load(tmp_path / "x.safetensors").final_head.num_units == 7
    assert "the heads of the other 1 of 2 label sets" in run("info", "x.safetensors", cwd=tmp_path).stdout


def test_sources_that_have_no_label_sets(tmp_path):
    model = daisy.Model(backbone=randomise(daisy.Backbone(POST_NORM)))
    torch.save(model.backbone.state_dict(), tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="has no label sets to choose from"):
        convert(tmp_path / "x.pth", label_set=1)
    _, state = make(1)
    state["model"] = {
        key: value for key, value in state["model"].items() if not key.startswith(("final_proj", "label_"))
    }
    with pytest.raises(CheckpointError, match="has no prediction head of its own: it was fine-tuned"):
        convert(save(state, tmp_path / "y.pt"), allow_pickle=True, label_set=1)


@pytest.mark.parametrize("form", ["both None", "weights", "bare"])
@pytest.mark.parametrize("name", KINDS)
def test_weights_tell_the_shape_and_what_they_do_not_is_said(name, form, waveforms, tmp_path):
    config = KINDS[name]
    model, state = make(1, config)
    state["cfg"] = None
    path = save({"weights": {"model": state["model"]}, "bare": state["model"]}.get(form, state), tmp_path / "x.pt")
    with pytest.raises(
        CheckpointError, match=f"number of attention heads, and width {config.width} is none of 768, 1024"
    ):
        convert(path, allow_pickle=True)
    ours = convert(path, allow_pickle=True, overrides={"num_heads": str(config.num_heads)})
    assert ours.backbone.config == config
    large = str(config.pre_norm).lower()
    assert ours.provenance["assumed"] == (
        f"pre_norm {large}, normalize {large}, sample_rate 16000: the weights do not tell"
        + ("" if form == "both None" else "; one label set of 9 units")
    )
    assert ours.final_head.num_units == SIZES[0]
    assert ours.final_head.temperature == 0.1
    theirs = fairseq_layers(model, waveforms[4], config.num_layers, config.normalize)
    assert_same(our_states(ours, waveforms[4]), theirs)


def test_what_is_given_is_not_assumed(tmp_path):
    _, state = make(1)
    state["cfg"] = None
    overrides = {"num_heads": "4", "normalize": "true", "sample_rate": "8000", "pre_norm": "false"}
    ours = convert(save(state, tmp_path / "x.pt"), allow_pickle=True, overrides=overrides)
    assert ours.backbone.config == dataclasses.replace(POST_NORM, normalize=True, sample_rate=8000)
    assert "assumed" not in ours.provenance
    done = run("convert", "x.pt", "x.safetensors", "--allow-pickle", "--set", "num_heads=4", cwd=tmp_path)
    assert done.stdout.splitlines()[1].startswith("assumed: pre_norm false, normalize false, sample_rate 16000")


def test_strides_that_no_weight_tells(tmp_path):
    fewer = dataclasses.replace(POST_NORM, conv_layers=POST_NORM.conv_layers[:6])
    _, state = make(1, dataclasses.replace(fewer, conv_layers=(*fewer.conv_layers, (16, 2, 2))))
    weights = {key: value for key, value in state["model"].items() if "conv_layers.6." not in key}
    with pytest.raises(
        CheckpointError, match="has 6 convolutions where HuBERT has 7: weights do not tell their strides"
    ):
        convert(save({"model": weights}, tmp_path / "x.pt"), overrides={"num_heads": "4"})


def test_batch_norm_before_the_positions(waveforms, tmp_path):
    """fairseq's main branch: the second module is the convolution then, without weight norm."""
    model, state = make(1)
    convolution = torch.nn.utils.remove_weight_norm(model.encoder.pos_conv[0])
    batch_norm = randomise(torch.nn.BatchNorm1d(POST_NORM.width)).eval()
    model.encoder.pos_conv = torch.nn.Sequential(batch_norm, convolution, *model.encoder.pos_conv[1:])
    state["model"] = model.state_dict()
    assert "encoder.pos_conv.0.num_batches_tracked" in state["model"]
    state["cfg"]["model"]["conv_pos_batch_norm"] = True
    theirs = fairseq_layers(model, waveforms[4], POST_NORM.num_layers, False)
    ours = convert(save(state, tmp_path / "x.pt"), allow_pickle=True)
    assert ours.backbone.config == dataclasses.replace(POST_NORM, pos_batch_norm=True)
    assert "left_out" not in ours.provenance
    assert_same(our_states(ours, waveforms[4]), theirs)
    state["cfg"] = None
    alone = convert(save(state, tmp_path / "y.pt"), allow_pickle=True, overrides={"num_heads": "4"})
    assert alone.backbone.config == ours.backbone.config


@pytest.mark.parametrize("field", ["pos_batch_norm", "projection_norm", "layer_norm_eps"])
def test_what_fairseq_cannot_hold_is_not_written_for_it(field):
    from daisy.checkpoints.converters import fairseq

    value = 1e-3 if field == "layer_norm_eps" else not getattr(POST_NORM, field)
    with pytest.raises(CheckpointError, match="this one differs, and cannot be written for it"):
        fairseq.weights(daisy.Model(backbone=daisy.Backbone(dataclasses.replace(POST_NORM, **{field: value}))))


def test_a_pre_norm_network_that_was_cut_is_not_written_for_fairseq():
    from daisy.checkpoints.converters import fairseq

    cut = daisy.checkpoints.truncate(tiny_model(PRE_NORM), 2)
    with pytest.raises(CheckpointError, match="no final norm, with which fairseq's pre-norm HuBERT always ends"):
        fairseq.weights(cut)
    assert "encoder.layers.1.fc1.weight" in fairseq.weights(daisy.checkpoints.truncate(tiny_model(POST_NORM), 2))


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod."])
def test_names_behind_a_wrappers_prefix(prefix, tmp_path):
    _, state = make(1)
    expected = convert(save(state, tmp_path / "x.pt"), allow_pickle=True).state_dict()
    state["model"] = {prefix + key: value for key, value in state["model"].items()}
    ours = convert(save(state, tmp_path / "y.pt"), allow_pickle=True)
    assert all(torch.equal(weight, expected[name]) for name, weight in ours.state_dict().items())
    state["model"]["mask_emb"] = state["model"].pop(prefix + "mask_emb")  # no wrapper has left this one as it was
    with pytest.raises(CheckpointError, match=re.escape(f"no place in a HuBERT: {prefix}label_embs_concat")):
        convert(save(state, tmp_path / "z.pt"), allow_pickle=True)
