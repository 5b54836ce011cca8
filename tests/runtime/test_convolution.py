import pytest
import torch
from torch.nn import functional as F

from daisy.models.packing import PackedLayout
from daisy.runtime.convolution import Conv, FourierConv


@pytest.mark.parametrize(("kernel", "groups"), [(128, 4), (15, 2), (16, 1), (2, 8)])
def test_fourier_convolution_is_the_convolution(kernel, groups):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(8, 8 // groups, kernel, generator=generator) / kernel**0.5
    bias = torch.randn(8, generator=generator)
    utterances = [torch.randn(n, 8, generator=generator) for n in (1, 3, 300, 513)]
    expected = [F.conv1d(u.T, weight, bias, padding=kernel // 2, groups=groups)[:, : len(u)].T for u in utterances]
    for some in (slice(None), slice(2, 3)):
        layout = PackedLayout(torch.tensor([len(u) for u in utterances[some]]))
        convolved = FourierConv(weight, bias, groups)(torch.cat(utterances[some]), layout)
        torch.testing.assert_close(convolved, torch.cat(expected[some]), atol=2e-5, rtol=1e-4)


def test_convolutions_of_any_kernel_and_stride():
    generator = torch.Generator().manual_seed(0)
    for kernel, stride in ((3, 2), (2, 2), (1, 1), (4, 1)):
        x, weight = torch.randn(21, 6, generator=generator), torch.randn(5, 6, kernel, generator=generator)
        expected = F.gelu(F.conv1d(x.T, weight, stride=stride)).T
        torch.testing.assert_close(Conv(weight, None, stride)(x, gelu=True), expected, atol=1e-5, rtol=1e-5)
