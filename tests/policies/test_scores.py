import pytest
import torch

from daisy.models.heads import ExitHeads, HeadsConfig
from daisy.models.packing import PackedLayout
from daisy.policies.scores import SCORES, HeadOutputs, compute_scores
from tests.conftest import randomise

OF_UNITS = ("change", "confidence", "entropy", "margin", "regressed")
SEQLENS = [7, 1, 12]


def outputs_of(features, previous_units=None, stride=1):
    heads = randomise(ExitHeads(HeadsConfig(num_layers=2, width=6, num_units=9))).requires_grad_(False)
    layout = PackedLayout(torch.tensor(SEQLENS))
    return HeadOutputs(heads, 2, features, layout, previous_units, stride=stride)


@pytest.fixture
def features():
    return torch.randn(sum(SEQLENS), 6, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("stride", [1, 2])
def test_scores_together_are_those_of_each_and_of_each_utterance(features, stride):
    count = sum(-(-length // stride) for length in SEQLENS)
    previous_units = torch.arange(count) % 9
    outputs = outputs_of(features, previous_units, stride)
    together = compute_scores(OF_UNITS, outputs)
    assert together.dtype == torch.float32
    assert together.shape == (len(OF_UNITS), len(SEQLENS))
    probs = outputs.log_probs.exp()
    first, second = probs.topk(2).values.unbind(-1)
    expected = {
        "change": (probs.argmax(-1) != previous_units).float(),
        "confidence": first,
        "entropy": -(probs * outputs.log_probs).sum(-1),
        "margin": first - second,
    }
    for name, row in zip(OF_UNITS, together, strict=True):
        torch.testing.assert_close(SCORES[name](outputs), row, rtol=0, atol=0)
        if name in expected:
            parts = expected[name].split([-(-length // stride) for length in SEQLENS])
            torch.testing.assert_close(row, torch.stack([part.mean() for part in parts]))


def test_at_the_first_exit_nothing_has_changed_yet(features):
    entropy, change = compute_scores(("entropy", "change"), outputs_of(features))
    assert change.isnan().all()
    assert entropy.isfinite().all()


def test_two_units_that_are_equally_likely_have_no_margin():
    outputs = outputs_of(torch.zeros(sum(SEQLENS), 6))
    outputs.heads.units[1].bias.copy_(torch.tensor([0.0, 5.0, 1.0, 5.0, 0, 0, 0, 0, 0]))
    assert compute_scores(("margin",), outputs).abs().max() == 0
    assert set(outputs.units.tolist()) == {1}
