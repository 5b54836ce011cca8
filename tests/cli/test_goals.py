"""Goals that a policy is set for, and the message if a goal is missed."""

import dataclasses

import pytest
import torch

from daisy.cli.goals import DepthGoal


@pytest.mark.parametrize("target", [0.5, 0.8])
def test_a_depth_that_is_reached_needs_no_note(traces, target):
    assert DepthGoal(depth=target, in_time=False).calibrate("entropy", traces, 0).note == ""


def test_a_depth_that_no_setting_reaches_is_said(traces):
    """All recordings have the same scores, so that all leave at one layer, or at the last."""
    scores = {name: torch.ones_like(values) for name, values in traces.scores.items()}
    calibration = DepthGoal(depth=0.5, in_time=False).calibrate(
        "entropy", dataclasses.replace(traces, scores=scores), 0
    )
    assert set(calibration.exit_layers.tolist()) in ({1}, {traces.layers[-1]})
    assert "no setting of entropy that was tried comes nearer to 50% than" in calibration.note
