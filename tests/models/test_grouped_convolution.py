"""Grouped convolutions in bfloat16 are right whatever the width of the groups."""

import pytest
import torch
from torch import nn

from daisy.models.modules import convolve_in_groups


@pytest.mark.parametrize("groups", [1, 2, 4, 8])
def test_bfloat16_is_near_float64_and_so_are_its_gradients(groups):
    torch.manual_seed(0)
    conv = nn.Conv1d(32, 32, 16, padding=8, groups=groups).bfloat16()
    exact = nn.Conv1d(32, 32, 16, padding=8, groups=groups).double()
    exact.load_state_dict(conv.state_dict())
    x = torch.randn(3, 32, 50).bfloat16().requires_grad_()
    wanted_x = x.detach().double().requires_grad_()
    y, wanted = convolve_in_groups(conv, x), exact(wanted_x)
    assert y.dtype == torch.bfloat16
    y.float().square().sum().backward()
    wanted.square().sum().backward()
    found = ((y, wanted), (x.grad, wanted_x.grad), (conv.weight.grad, exact.weight.grad))
    for ours, theirs in found:
        assert (ours.double() - theirs).norm() < 0.01 * theirs.norm()
