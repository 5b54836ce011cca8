import pytest
import torch

from daisy import PolicyError, calibration, policies


@pytest.fixture
def scores():
    generator = torch.Generator().manual_seed(4)
    levels = 3 * torch.rand(500, 1, generator=generator)
    falling = levels + 2 * torch.exp(-torch.arange(12) / (1 + 4 * torch.rand(500, 1, generator=generator)))
    return {"entropy": falling + 0.02 * torch.rand(500, 12, generator=generator)}


@pytest.mark.parametrize("name", ["entropy", "plateau"])
@pytest.mark.parametrize("target", [0.4, 0.6, 0.8])
def test_depth_on_the_given_audio_is_the_target(scores, name, target):
    policy = calibration.for_depth(name, scores, target)
    assert policy.name == name
    assert abs(calibration.depth(policy, scores) - target) < 0.005


def test_other_settings_are_kept(scores):
    policy = calibration.for_depth("plateau", scores, 0.6, patience=1, min_layer=4)
    assert (policy.patience, policy.min_layer) == (1, 4)
    assert policy.exit_layers(scores).min() >= 4


def test_unreachable_depths_come_as_near_as_they_can(scores):
    assert calibration.depth(calibration.for_depth("plateau", scores, 0.01), scores) == 3 / 12
    assert calibration.for_depth("fixed", scores, 0.6) == policies.Fixed(layer=7)
    assert calibration.for_depth("fixed", scores, 0.01) == policies.Fixed(layer=1)


def test_refusals(scores):
    with pytest.raises(PolicyError, match="depth must be above 0 and at most 1, found 1.2"):
        calibration.for_depth("entropy", scores, 1.2)
    with pytest.raises(PolicyError, match="policy never has no setting that moves its depth"):
        calibration.for_depth("never", scores, 0.5)
