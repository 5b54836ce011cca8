import itertools

import pytest
import torch
from torch.nn import functional as F

from daisy import CheckpointError, EarlyExitEncoder, Model, policies
from daisy.calibration import tracing
from daisy.models import ExitHeads, HeadsConfig, PackedLayout
from tests.conftest import POST_NORM, randomise, tiny_model


def test_traces_hold_the_scores_of_single_runs(model, waveforms):
    table, _ = tracing.trace(model, waveforms, list("abcdefg"), list("xxxyyyz"), batch_sec=1.0)
    encoder = EarlyExitEncoder(
        model.backbone, model.heads, policies.Never(), scores=set(table.scores) - {"final_agreement"}
    )
    for index, waveform in enumerate(waveforms):
        for name, values in encoder([waveform]).scores.items():
            torch.testing.assert_close(table.scores[name][index], values[0], atol=1e-4, rtol=1e-4, equal_nan=True)
    assert table.utterances == tuple("abcdefg")
    assert table.groups == tuple("xxxyyyz")
    assert table.costs.tolist() == list(range(1, model.backbone.config.num_layers + 1))


def test_losses_against_their_definition(waveforms):
    model = tiny_model(POST_NORM)
    reference = [torch.randint(11, (n,)) for n in (49, 74)]
    pair = [waveforms[4], waveforms[6]]
    run, units = tracing.trace(model, pair, ["a", "b"], reference=reference)
    without_reference, _ = tracing.trace(model, pair, ["a", "b"])
    for index, waveform in enumerate(pair):
        states = EarlyExitEncoder(model.backbone, None, policies.Never())([waveform]).states[0]
        with torch.no_grad():
            full = model.final_head(states[-1]).softmax(-1)
            assert torch.equal(units[index], full.argmax(-1))
            for layer in range(1, 5):
                logits = model.heads.unit_logits(layer, states[layer])
                guesses, probs = logits.argmax(-1), logits.softmax(-1)
                expected = {
                    "loss": F.cross_entropy(logits, reference[index]),
                    "clean_disagreement": (guesses != reference[index]).float().mean(),
                    "disagreement": (guesses != full.argmax(-1)).float().mean(),
                    "kl_nats": (full * (full / probs).log()).sum(-1).mean(),
                }
                for name, value in expected.items():
                    torch.testing.assert_close(run.losses[name][index, layer - 1], value, atol=1e-4, rtol=1e-4)
    assert torch.equal(without_reference.losses["clean_disagreement"], without_reference.losses["disagreement"])
    assert torch.equal(without_reference.scores["final_agreement"], 1 - without_reference.losses["disagreement"])


def test_change_is_the_share_of_frames_whose_unit_changed(waveforms):
    model = tiny_model(POST_NORM)
    table, _ = tracing.trace(model, waveforms[4:], list("abc"))
    states = EarlyExitEncoder(model.backbone, None, policies.Never())([waveforms[5]]).states[0]
    with torch.no_grad():
        units = [model.heads.unit_logits(layer, states[layer]).argmax(-1) for layer in range(1, 5)]
    changes = [float((now != before).float().mean()) for before, now in itertools.pairwise(units)]
    assert table.scores["change"][1, 1:].tolist() == pytest.approx(changes)
    assert table.scores["change"][:, 0].isnan().all()


@pytest.mark.parametrize("reads", ["states", "feed_forward"])
def test_without_huberts_own_head_the_last_exit_head_is_the_full_model(waveforms, reads):
    config = HeadsConfig(
        num_layers=POST_NORM.num_layers, width=POST_NORM.width, num_units=11, reads=reads, regressors=False
    )
    model = Model(backbone=tiny_model(POST_NORM).backbone, heads=randomise(ExitHeads(config), 1))
    layers = []
    EarlyExitEncoder(model.backbone, model.heads, policies.Never())(waveforms, observe=layers.append)
    table, units = tracing.trace(model, waveforms, list("abcdefg"), score_stride=2)
    assert torch.equal(torch.cat(units), layers[-1].units)
    assert table.losses["disagreement"][:, -1].tolist() == [0.0] * 7
    assert table.losses["kl_nats"][:, -1].abs().max() < 1e-6
    strided = PackedLayout(torch.tensor(list(map(len, units)))).strided_rows(2)
    differs = (layers[0].units != layers[-1].units)[strided].float()
    shares = [part.mean() for part in differs.split([-(-len(line) // 2) for line in units])]
    assert torch.allclose(table.losses["disagreement"][:, 0], torch.stack(shares))
    assert "regressed" not in table.scores
    model.heads = None
    with pytest.raises(CheckpointError, match="no exit heads"):
        tracing.trace(model, waveforms, list("abcdefg"))
