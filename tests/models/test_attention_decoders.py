import dataclasses

import pytest
import torch

from daisy import CheckpointError
from daisy.models import AttentionDecoders, DecodersConfig
from tests.conftest import randomise

CONFIG = DecodersConfig(layers=(2, 4), width=16, num_tokens=7, begin=2, end=2, num_blocks=2, num_heads=4, ffn_width=24)


@pytest.fixture
def decoders():
    return randomise(AttentionDecoders(CONFIG)).eval()


@torch.no_grad()
def test_a_token_sees_those_before_it_and_its_exits_states_alone(decoders):
    states = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1))
    texts = torch.tensor([[2, 3, 4, 5], [2, 6, 6, 1]])
    logits = decoders(4, states, None, texts)
    assert logits.shape == (2, 4, 7)
    changed = texts.clone()
    changed[:, 3] = 0
    torch.testing.assert_close(decoders(4, states, None, changed)[:, :3], logits[:, :3])
    assert not torch.allclose(decoders(4, states, None, changed)[:, 3], logits[:, 3])
    assert not torch.allclose(decoders(2, states, None, texts), logits)
    assert not torch.allclose(decoders(4, states.flip(1) * 2, None, texts), logits)


@torch.no_grad()
def test_texts_are_continued_from_states_that_are_read_once(decoders):
    states = torch.randn(5, 16, generator=torch.Generator().manual_seed(1))
    texts = torch.tensor([[2, 3, 4, 5], [2, 6, 6, 1], [2, 2, 0, 3]])
    for layer in (2, 4):
        projected = decoders.project_states(layer, states)
        for length in range(1, 5):
            expected = decoders(layer, states.expand(3, -1, -1), None, texts[:, :length])[:, -1]
            torch.testing.assert_close(decoders.predict_next(layer, projected, texts[:, :length]), expected)


@torch.no_grad()
def test_padding_is_not_heard(decoders):
    states = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1))
    texts = torch.tensor([[2, 3, 4], [2, 6, 6]])
    together = decoders(2, states, torch.tensor([5, 3]), texts)
    alone = decoders(2, states[1:, :3], None, texts[1:])
    torch.testing.assert_close(together[1:], alone)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("num_blocks", 0, "num_blocks must be a whole number"),
        ("layers", (), "layers must be whole numbers"),
        ("num_heads", 3, "multiple of num_heads 3"),
        ("begin", 7, "begin must be one of 7 tokens, found 7"),
        ("dropout", 1.0, "dropout must be from"),
    ],
)
def test_impossible_shapes_are_refused(field, value, message):
    with pytest.raises(CheckpointError, match=message):
        AttentionDecoders(dataclasses.replace(CONFIG, **{field: value}))
    with pytest.raises(CheckpointError, match=message):
        DecodersConfig.from_dict(dataclasses.asdict(CONFIG) | {field: value})
