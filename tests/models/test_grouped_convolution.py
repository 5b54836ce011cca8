"""Grouped convolutions in bfloat16 are right whatever the width of the groups."""

import runpy

import pytest
import torch
from torch import nn

from daisy.integrations.huggingface_folder import CODE
from daisy.models.modules import convolve_in_groups


@pytest.fixture(params=["plain", "exported"])
def convolve(request):
    """The function of the plain modules, or that of the code which ``daisy export hf`` writes."""
    if request.param == "plain":
        return convolve_in_groups
    pytest.importorskip("transformers", reason="the exported code needs transformers")
    return runpy.run_path(str(CODE))["convolve_in_groups"]


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("groups", [1, 2, 4, 8])
def test_bfloat16_is_near_float64_and_so_are_its_gradients(groups, autocast, convolve):
    torch.manual_seed(0)
    dtype = torch.float32 if autocast else torch.bfloat16
    conv = nn.Conv1d(32, 32, 16, padding=8, groups=groups).to(dtype)
    exact = nn.Conv1d(32, 32, 16, padding=8, groups=groups).double()
    exact.load_state_dict(conv.state_dict())
    x = torch.randn(3, 32, 50).to(dtype).requires_grad_()
    wanted_x = x.detach().double().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = convolve(conv, x)
    wanted = exact(wanted_x)
    assert y.dtype == torch.bfloat16
    y.float().square().sum().backward()
    wanted.square().sum().backward()
    found = ((y, wanted), (x.grad, wanted_x.grad), (conv.weight.grad, exact.weight.grad))
    for ours, theirs in found:
        assert (ours.double() - theirs).norm() < 0.01 * theirs.norm()
