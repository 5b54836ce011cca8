"""The remaining gain of later layers, learnt from full runs."""

import pytest
import torch

from daisy.calibration.forecast import fit_gains


def make_runs(num=40, num_layers=4, seed=0):
    """A score, and a loss that falls with it, each run in its own way."""
    generator = torch.Generator().manual_seed(seed)
    score = torch.rand(num, num_layers, generator=generator).sort(1, descending=True).values
    return {"entropy": score}, 0.5 * score + 0.1 * torch.rand(num, num_layers, generator=generator)


def test_a_loss_that_is_the_score_is_foreseen():
    """It falls by as much as the score has left: the gain to a layer where the score is 0 is the score."""
    scores, _ = make_runs()
    scores["entropy"][:, 3] = 0
    gains = fit_gains(scores, scores["entropy"], ["entropy"], penalty=1e-9)
    weights, intercept = gains.weights[2][0], gains.intercepts[2][0]  # at the third layer, to the fourth
    assert weights == pytest.approx((0, 0, 1), abs=1e-6)
    assert intercept == pytest.approx(0, abs=1e-6)


def test_runs_count_by_their_weights_as_if_they_were_there_so_often():
    scores, loss = make_runs()
    often = torch.arange(40) % 3 + 1
    repeated = torch.arange(40).repeat_interleave(often)
    weighted = fit_gains(scores, loss, ["entropy"], run_weights=often)
    expected = fit_gains({"entropy": scores["entropy"][repeated]}, loss[repeated], ["entropy"])
    alike = fit_gains(scores, loss, ["entropy"], run_weights=torch.full((40,), 7.0))
    plain = fit_gains(scores, loss, ["entropy"])
    for one, other in ((weighted, expected), (alike, plain)):
        for rows, others in zip(one.weights + one.intercepts, other.weights + other.intercepts, strict=True):
            torch.testing.assert_close(torch.tensor(rows), torch.tensor(others))
    assert abs(weighted.intercepts[0][0] - plain.intercepts[0][0]) > 1e-3
