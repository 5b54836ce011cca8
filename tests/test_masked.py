import math

import numpy
import pytest
import torch

from daisy import CheckpointError, masked
from daisy.errors import UsageError
from tests.conftest import POST_NORM, tiny_model

UNITS = 3


@pytest.fixture
def speech():
    """Stretches of three noises, 10 frames each, and which one is heard."""
    generator = torch.Generator().manual_seed(0)
    shapes = torch.randn(UNITS, 3200, generator=generator)
    waveforms, units = [], []
    for _ in range(6):
        order = torch.randint(UNITS, (8,), generator=generator)
        waveforms.append(torch.cat([shapes[unit] for unit in order]) * 0.1)
        units.append(order.repeat_interleave(10)[:79])
    return waveforms, units


def test_spans_cover_about_the_share_that_hubert_masks():
    generator = numpy.random.default_rng(0)
    share = float(torch.cat([masked.spans(250, 0.65, 10, generator) for _ in range(200)]).float().mean())
    assert 0.42 < share < 0.52  # 1 - exp(-0.65) = 0.48 for overlapping spans, a little less at the ends
    assert masked.spans(1, 0.65, 10, generator).tolist() == [True]
    one = masked.spans(250, 0.0, 10, generator)
    assert 10 < int(one.sum()) <= 20  # at least two spans


def test_loss_is_that_of_the_head_on_masked_frames(speech):
    model = tiny_model(POST_NORM, num_units=UNITS + masked.SPECIAL_SYMBOLS)
    waveforms, units = speech
    found = masked.loss(model, waveforms[:1], units[:1], seed=3)
    where = masked.spans(79, 0.65, 10, numpy.random.default_rng(3))
    states = masked.masked_states(model, waveforms[0], where)
    log_probs = model.final_head(states[where]).log_softmax(-1)
    wanted = units[0][where] + masked.SPECIAL_SYMBOLS
    assert float(found.mean()[0]) == pytest.approx(float(-log_probs.gather(1, wanted[:, None]).mean()), rel=1e-5)
    assert float(found.num_counted[0]) == int(where.sum())
    clear = masked.masked_states(model, waveforms[0], torch.zeros(79, dtype=torch.bool))
    assert torch.allclose(clear, model_states(model, waveforms[0]), atol=1e-5)
    assert not torch.allclose(states, clear, atol=0.1)


def model_states(model, waveform):
    from daisy import EarlyExitEncoder, policies

    return EarlyExitEncoder(model.backbone, None, policies.Never())([waveform]).states[0][-1]


def test_a_refitted_head_predicts_before_any_training(speech):
    """Also where the network never had one; units that occur are predicted, special symbols never."""
    waveforms, units = speech
    for model in (tiny_model(POST_NORM, num_units=20), tiny_model(POST_NORM)):
        if model.final_head.num_units != 20:
            model.final_head = None
        masked.refit(model, waveforms, units, UNITS, seed=1)
        assert model.final_head.num_units == UNITS + masked.SPECIAL_SYMBOLS
        assert model.heads is None
        found = masked.loss(model, waveforms, units, seed=2)
        accuracy = float(found.num_correct.sum() / found.num_counted.sum())
        assert accuracy > 1 / UNITS
        states = model_states(model, waveforms[0])
        assert (model.final_head(states).argmax(-1) >= masked.SPECIAL_SYMBOLS).all()
        assert math.isfinite(float(found.loss.sum()))


def test_what_cannot_be_measured_is_refused(speech):
    waveforms, units = speech
    model = tiny_model()
    with pytest.raises(UsageError, match="unit 3 occurs nowhere"):
        masked.refit(model, waveforms, units, 5)
    model.final_head = None
    with pytest.raises(CheckpointError, match="no prediction head"):
        masked.loss(model, waveforms, units)
