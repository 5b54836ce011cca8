import pytest
import torch

from daisy import EarlyExitEncoder
from tests.conftest import POST_NORM, assert_same_output, spread_policy, tiny_model


@pytest.fixture(params=["all", "last"])
def encoder(request, waveforms):
    model = tiny_model(POST_NORM)
    policy = spread_policy(model, waveforms)
    return EarlyExitEncoder(model.backbone, model.heads, policy, keep=request.param, scores=["margin"])


def test_an_utterance_of_a_batch_is_its_own_output(encoder, waveforms):
    out = encoder(waveforms)
    assert len(out) == len(waveforms) == 7
    for index, waveform in enumerate(waveforms):
        assert len(out[index]) == 1
        assert_same_output(out[index], encoder([waveform]), tolerance=1e-4)
        assert out[index].states[0] is out.states[index]
        assert_same_output(out[index - 7], out[index])
        assert_same_output(out[index][0], out[index])
    for index, single in enumerate(out):
        assert_same_output(single, out[index])
    assert len(list(out)) == 7


def test_there_is_no_utterance_behind_the_last(encoder, waveforms):
    out = encoder(waveforms[:3])
    for index in (3, -4, 100):
        with pytest.raises(IndexError, match=f"utterance {index} of a batch of 3"):
            out[index]


def test_the_last_hidden_state_is_padded_with_zeros(encoder, waveforms):
    out = encoder(waveforms)
    longest = int(out.num_frames.max())
    assert out.last_hidden_state.shape == (7, longest, POST_NORM.width)
    assert out.last_hidden_state.dtype == torch.float32
    for padded, states, count in zip(out.last_hidden_state, out.states, out.num_frames.tolist(), strict=True):
        assert torch.equal(padded[:count], states[-1])
        assert not padded[count:].any()
    assert out.last_hidden_state is out.last_hidden_state  # padded once


def test_the_mask_is_true_where_a_frame_is(encoder, waveforms):
    out = encoder(waveforms)
    assert out.mask.dtype == torch.bool
    assert out.mask.shape == out.last_hidden_state.shape[:2]
    assert out.mask.tolist() == [
        [frame < count for frame in range(out.mask.shape[1])] for count in out.num_frames.tolist()
    ]
    assert torch.equal(out.last_hidden_state[out.mask], torch.cat([states[-1] for states in out.states]))
    assert torch.equal(out[2].mask, torch.ones(1, int(out.num_frames[2]), dtype=torch.bool))


def test_bfloat16_states_stay_bfloat16_when_they_are_padded(waveforms):
    out = tiny_model(POST_NORM).encoder("fixed", layer=2, dtype="bfloat16")(waveforms)
    assert out.last_hidden_state.dtype == torch.bfloat16
    assert torch.equal(out.last_hidden_state[4, : out.num_frames[4]], out.states[4][-1])


def test_an_output_cannot_be_changed_by_accident(encoder, waveforms):
    out = encoder(waveforms[:2])
    with pytest.raises(AttributeError):
        out.exit_layer = torch.ones(2)
