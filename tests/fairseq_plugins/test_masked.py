import numpy
import pytest
import torch

from daisy import EarlyExitEncoder, policies
from daisy.errors import UsageError
from tests.conftest import POST_NORM, tiny_model

UNITS = 3


@pytest.fixture(scope="module")
def masked():
    from fairseq_plugins import masked

    return masked


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


def test_spans_cover_about_the_share_that_hubert_masks(masked):
    generator = numpy.random.default_rng(0)
    share = float(torch.cat([masked.draw_spans(250, 0.65, 10, generator) for _ in range(200)]).float().mean())
    assert 0.42 < share < 0.52  # 1 - exp(-0.65) = 0.48 for overlapping spans, a little less at the ends
    assert masked.draw_spans(1, 0.65, 10, generator).tolist() == [True]
    one = masked.draw_spans(250, 0.0, 10, generator)
    assert 10 < int(one.sum()) <= 20  # at least two spans


def test_frames_that_are_masked_are_seen_as_masked(masked, speech):
    model = tiny_model(POST_NORM)
    waveforms, units = speech
    masked_states, targets = masked.gather_masked_frames(model, waveforms[:1], [units[0][:78]], seed=3)
    where = masked.draw_spans(79, 0.65, 10, numpy.random.default_rng(3))
    where[78:] = False  # no unit, no mask
    states = masked.run_masked(model, waveforms[0], where)
    assert torch.equal(masked_states, states[where])
    assert torch.equal(targets, units[0][:79][where])
    encoder = EarlyExitEncoder(model.backbone, None, policies.Never())
    clear = masked.run_masked(model, waveforms[0], torch.zeros(79, dtype=torch.bool))
    assert torch.allclose(clear, encoder([waveforms[0]]).states[0][-1], atol=1e-5)
    assert not torch.allclose(states, clear, atol=0.1)


def test_a_refitted_head_predicts_before_any_training(masked):
    """Also where the network never had one; special symbols are never the best."""
    generator = torch.Generator().manual_seed(0)
    units = torch.randint(UNITS, (300,), generator=generator)
    offset, centres = torch.randn(32, generator=generator) * 3, torch.randn(UNITS, 32, generator=generator)
    states = offset + centres[units] + 0.3 * torch.randn(300, 32, generator=generator)
    for with_head in (True, False):
        model = tiny_model(POST_NORM)
        if not with_head:
            model.final_head = None
        model.provenance = {"backbone": "small", "heads": "learnt before", "policies": "60% mean depth"}
        assert masked.refit(model, states, units, UNITS) == 0
        assert model.final_head.num_units == UNITS + masked.SPECIAL_SYMBOLS
        assert model.heads is None
        assert model.provenance == {"backbone": "small"}
        guesses = model.final_head(states).argmax(-1)
        assert float((guesses - masked.SPECIAL_SYMBOLS == units).float().mean()) > 0.95


def test_units_that_are_not_met_start_at_random(masked, speech):
    model = tiny_model()
    assert masked.refit(model, *masked.gather_masked_frames(model, *speech), 5) == 2
    assert torch.allclose(model.final_head.embeddings.norm(dim=1), torch.ones(9))


def test_units_at_another_rate_are_refused(masked, speech):
    waveforms, units = speech
    with pytest.raises(UsageError, match="158 units for 79 frames: make units at the rate of the frames"):
        masked.gather_masked_frames(tiny_model(), waveforms[:1], [units[0].repeat_interleave(2)])
