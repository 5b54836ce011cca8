"""Tiny recognisers of every kind, with random weights."""

import pytest
import torch

from daisy import Backbone, Model, policies
from daisy.models import Conformer, ConformerConfig, CTCHeads, CTCHeadsConfig, Tokens
from daisy.models.heads import ExitHeads, HeadsConfig
from daisy.recognition import Recogniser
from tests.conftest import POST_NORM, PRE_NORM, randomise

CONFORMER = ConformerConfig(num_layers=6, width=32, ffn_width=48, num_heads=4, kernel=7, num_mels=20)
SPLITFORMER = ConformerConfig(
    num_layers=6, width=32, ffn_width=48, num_heads=4, kernel=7, num_mels=20, split_blocks=(1, 3)
)
TOKENS = Tokens.characters("ABCDE'")
KINDS = {
    "hubert": (POST_NORM, (2, 3, 4), {}),
    "hubert-attention": (PRE_NORM, (1, 3, 4), {"branch": "attention", "attention_width": 16, "num_heads": 2}),
    "conformer": (CONFORMER, (2, 4, 6), {}),
    "conformer-attention": (CONFORMER, (1, 3, 6), {"branch": "attention", "final_branch": "attention"}),
    "splitformer": (SPLITFORMER, (2, 4, 6), {}),
}


def tiny_recogniser(kind, units=False, tokens=TOKENS):
    """Make a model of a kind, with heads on units besides its CTC exits if ``units``."""
    config, layers, branch = KINDS[kind]
    backbone = (Conformer if isinstance(config, ConformerConfig) else Backbone)(config)
    exits = CTCHeadsConfig(layers=layers, width=config.width, num_tokens=len(tokens), blank=tokens.blank, **branch)
    unit_heads = HeadsConfig(num_layers=config.num_layers, width=config.width, num_units=7)
    heads = randomise(CTCHeads(exits), 5)
    with torch.no_grad():
        for classifier in heads.classifiers.values():
            classifier.weight.mul_(3)  # so that some frames are certain and others are not
    return Model(
        backbone=randomise(backbone, 4),
        ctc=heads,
        tokens=tokens,
        heads=randomise(ExitHeads(unit_heads), 6) if units else None,
    )


def run_fully(model, waveforms, scores=(), heads="ctc"):
    """Run all exits and return the output."""
    return Recogniser(model, policies.Never(), heads=heads, scores=scores).run(waveforms)


def spread(scores, name):
    """Return the midpoint of two scores in the middle, so that rounding decides nothing."""
    values = scores[name][:, :-1]
    values = values[values.isfinite()].sort().values
    middle = len(values) // 2
    return float(values[middle - 1 : middle + 1].mean())


@pytest.fixture(params=KINDS, ids=str)
def kind(request):
    return request.param


@pytest.fixture
def recogniser_model(kind):
    return tiny_recogniser(kind)


@pytest.fixture
def speech():
    """Utterances of one frame of a Conformer to a second and a half, with odd and even numbers of frames."""
    generator = torch.Generator().manual_seed(9)
    lengths = [960, 1600, 5000, 16000, 16640, 24000]
    return [torch.randn(n, generator=generator) * (1 + torch.sin(torch.arange(n) / 900)) * 0.1 for n in lengths]
