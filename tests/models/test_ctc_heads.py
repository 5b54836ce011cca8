import dataclasses

import pytest
import torch

from daisy import CheckpointError
from daisy.models import CTCHeads, CTCHeadsConfig, PackedLayout
from daisy.runtime.packed_heads import PackedCTCHeads
from tests.conftest import randomise

LINEAR = CTCHeadsConfig(layers=(2, 3, 5), width=16, num_tokens=6)
ATTENTION = dataclasses.replace(LINEAR, branch="attention", attention_width=24, num_heads=3)
EVERYWHERE = dataclasses.replace(ATTENTION, final_branch="attention", attention_width=None, num_heads=4)
LENGTHS = torch.tensor([7, 1, 4])


def padded_states(seed=0):
    states = torch.randn(3, 7, 16, generator=torch.Generator().manual_seed(seed))
    for row, length in zip(states, LENGTHS, strict=True):
        row[length:] = 100.0  # what is there must not be seen
    return states


@pytest.mark.parametrize("config", [LINEAR, ATTENTION, EVERYWHERE], ids=["linear", "attention", "everywhere"])
@torch.no_grad()
def test_plain_packed_padded_and_alone_are_the_same(config):
    heads = randomise(CTCHeads(config))
    states, layout = padded_states(), PackedLayout(LENGTHS)
    rows = layout.unpad(states)
    for layer in config.layers:
        logits = heads.unit_logits(layer, rows, layout)
        alone = torch.cat([heads(layer, row[None, :n])[0] for row, n in zip(states, LENGTHS.tolist(), strict=True)])
        torch.testing.assert_close(logits, alone, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(layout.unpad(heads(layer, states, LENGTHS)), alone, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(PackedCTCHeads(heads).unit_logits(layer, rows, layout), alone, atol=1e-5, rtol=1e-5)
    assert [config.has_attention(layer) for layer in config.layers] == [
        config.branch == "attention",
        config.branch == "attention",
        config.final_branch == "attention",
    ]


@torch.no_grad()
def test_an_attention_branch_is_torchs_own():
    """Self-attention, residual and norm, against nn.MultiheadAttention with the same weights."""
    heads = randomise(CTCHeads(EVERYWHERE))
    branch = heads.attentions["3"]
    theirs = torch.nn.MultiheadAttention(16, 4, batch_first=True)
    projections = branch.q_proj, branch.k_proj, branch.v_proj
    theirs.in_proj_weight.copy_(torch.cat([projection.weight for projection in projections]))
    theirs.in_proj_bias.copy_(torch.cat([projection.bias for projection in projections]))
    theirs.out_proj.load_state_dict(branch.out_proj.state_dict())
    states = torch.randn(2, 9, 16, generator=torch.Generator().manual_seed(1))
    expected = heads.classifiers["3"](branch.norm(states + theirs(states, states, states)[0]))
    torch.testing.assert_close(heads(3, states), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_cut_keeps_each_exit_as_it_was():
    heads = randomise(CTCHeads(ATTENTION))
    cut = heads.cut(3)
    assert cut.config == dataclasses.replace(ATTENTION, layers=(2, 3), final_branch="attention")
    states = padded_states()
    for layer in (2, 3):
        assert torch.equal(cut(layer, states, LENGTHS), heads(layer, states, LENGTHS))
    assert heads.cut(5).config == ATTENTION
    with pytest.raises(CheckpointError, match="no exit at layer 4: exits are at 2, 3, 5"):
        heads.cut(4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": ()}, r"layers must be rising whole numbers from 1 on, found \(\)"),
        ({"layers": (3, 2)}, "layers must be rising"),
        ({"layers": (0, 2)}, "layers must be rising"),
        ({"num_tokens": 0}, "num_tokens must be a whole number, at least 1, found 0"),
        ({"blank": 6}, "blank must be one of 6 tokens, found 6"),
        ({"branch": "conv"}, r"branch must be one of \('linear', 'attention'\), found 'conv'"),
        ({"branch": "attention"}, "attention_width 16 is not a multiple of num_heads 3"),
    ],
)
def test_impossible_heads_are_refused(settings, message):
    config = dataclasses.replace(LINEAR, num_heads=3, **settings)
    with pytest.raises(CheckpointError, match=message):
        CTCHeads(config)
    with pytest.raises(CheckpointError, match=message):
        CTCHeadsConfig.from_dict(dataclasses.asdict(config))


def test_an_unknown_field_is_refused():
    with pytest.raises(CheckpointError, match="CTC exits: .*depth"):
        CTCHeadsConfig.from_dict({**dataclasses.asdict(LINEAR), "depth": 1})
