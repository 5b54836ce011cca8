import pytest
import torch
from torch.nn import functional as F

from daisy import EarlyExitEncoder, analysis, policies
from daisy.errors import UsageError
from tests.conftest import POST_NORM, tiny_model


def test_full_scores_are_those_of_single_runs(model, waveforms):
    scores = analysis.full_scores(model, waveforms, ["entropy", "regressed"], batch_sec=1.0)
    encoder = EarlyExitEncoder(model.backbone, model.heads, policies.Never(), scores=["entropy", "regressed"])
    for index, waveform in enumerate(waveforms):
        for name, values in encoder([waveform]).scores.items():
            torch.testing.assert_close(scores[name][index], values[0], atol=1e-4, rtol=1e-4)


def test_fidelity_against_its_definition(waveforms):
    model = tiny_model(POST_NORM)
    reference = [torch.randint(11, (n,)) for n in (49, 74)]
    run = analysis.fidelity(model, [waveforms[4], waveforms[6]], reference)
    own = analysis.fidelity(model, [waveforms[4], waveforms[6]])
    for index, waveform in enumerate((waveforms[4], waveforms[6])):
        states = EarlyExitEncoder(model.backbone, None, policies.Never())([waveform]).states[0]
        with torch.no_grad():
            full = model.final_head(states[-1]).softmax(-1)
            assert torch.equal(run.units[index], full.argmax(-1))
            for layer in range(1, 5):
                logits = model.heads.unit_logits(layer, states[layer])
                guesses, probs = logits.argmax(-1), logits.softmax(-1)
                expected = {
                    "loss": F.cross_entropy(logits, reference[index]),
                    "accuracy": (guesses == reference[index]).float().mean(),
                    "agreement": (guesses == full.argmax(-1)).float().mean(),
                    "kl": (full * (full / probs).log()).sum(-1).mean(),
                }
                for name, value in expected.items():
                    torch.testing.assert_close(getattr(run, name)[index, layer - 1], value, atol=1e-4, rtol=1e-4)
    assert torch.equal(own.accuracy, own.agreement)
    exits = torch.tensor([2, 4])
    assert analysis.at_exit(run.loss, exits).tolist() == [run.loss[0, 1], run.loss[1, 3]]


def test_fidelity_needs_both_heads(waveforms):
    model = tiny_model(POST_NORM)
    model.final_head = None
    with pytest.raises(UsageError, match="needs a checkpoint with exit heads and with HuBERT's own final head"):
        analysis.fidelity(model, waveforms)
