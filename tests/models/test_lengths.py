import pytest
import torch

from daisy.models.lengths import HUBERT_CONV, compute_frame_hop, compute_frame_span, count_frames, make_valid_mask


@pytest.mark.parametrize(
    ("samples", "expected"), [(0, 0), (399, 0), (400, 1), (719, 1), (720, 2), (16000, 49), (160000, 499)]
)
def test_counts_are_the_convolutions_own(samples, expected):
    assert count_frames(samples, HUBERT_CONV) == expected
    assert count_frames(torch.tensor([samples]), HUBERT_CONV).tolist() == [expected]
    signal = torch.zeros(1, 1, samples)
    if expected:
        for _, kernel, stride in HUBERT_CONV:
            signal = torch.nn.functional.conv1d(signal, torch.ones(1, 1, kernel), stride=stride)
        assert signal.shape[-1] == expected


def test_hop_and_span():
    assert compute_frame_hop(HUBERT_CONV) == 320
    assert compute_frame_span(HUBERT_CONV) == 400
    assert compute_frame_span(((8, 4, 2), (8, 3, 3))) == 4 + 2 * 2


def test_mask_marks_own_frames():
    mask = make_valid_mask(torch.tensor([0, 2, 3]), 3)
    assert mask.tolist() == [[False] * 3, [True, True, False], [True] * 3]
