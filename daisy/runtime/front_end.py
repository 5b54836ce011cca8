"""Run the convolutions before the transformer, as matrix products over windows of frames.

In a network with group norm, that norm over time is folded into the first convolution's weights: mean and variance of
an output over the utterance follow from the mean and covariance of the samples under the kernel, 10 x 10 numbers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from daisy.models import Backbone
from daisy.runtime.dtypes import STATE_DTYPES, Precision


class FrontEnd(ABC):
    """Base class of the front ends of all devices.

    Args:
        backbone: backbone with the convolutions.
        precision: precision of all convolutions but the first.
    """

    def __init__(self, backbone: Backbone, precision: Precision):
        self.config, self.dtype, self.device = backbone.config, STATE_DTYPES[precision], backbone.device
        first, *others = backbone.feature_extractor.conv_layers
        self.norms = [layer.layer_norm for layer in (first, *others)]
        bias = first.conv.bias
        self.weight = first.conv.weight.detach()[:, 0].float()  # (C, kernel)
        self.bias = None if bias is None else bias.detach().float()
        (_, self.kernel, self.stride), *self.shapes = self.config.conv_layers
        self.others = [layer.conv for layer in others]
        self.windows_per_hop = self.config.frame_hop // self.stride
        """Windows of the first convolution per hop."""

    def __call__(self, waveforms: Sequence[Tensor]) -> Tensor:
        """Convolve waveforms, (N_b,) float32 with at least a frame each, to features (F, C)."""
        return self._convolve(self.normalize(waveforms))

    def normalize(self, waveforms: Sequence[Tensor]) -> Sequence[Tensor]:
        """Normalize each waveform to zero mean and unit variance, if the backbone was trained so."""
        if not self.config.normalize:
            return waveforms
        eps = self.config.normalize_eps
        return [F.layer_norm(waveform, waveform.shape, eps=eps) for waveform in waveforms]

    @abstractmethod
    def _convolve(self, waveforms: Sequence[Tensor]) -> Tensor:
        """Convolve waveforms to features, like `__call__` but without normalizing."""

    def _fold_group_norm(self, moments: Tensor) -> tuple[Tensor, Tensor]:
        """Fold the group norm over time into the first convolution.

        Args:
            moments: (..., kernel + 1, kernel + 1) float64, sums of products of the samples under the kernel and 1.

        Returns:
            Weights (..., C, kernel) and biases (..., C), float32.
        """
        norm, wide = self.norms[0], self.weight.double()
        moments = moments / moments[..., -1:, -1:].clamp(min=1)
        mean = moments[..., :-1, -1:]
        covariance = moments[..., :-1, :-1] - mean @ mean.transpose(-1, -2)
        variance = ((wide @ covariance) * wide).sum(-1).clamp(min=0)
        gain = norm.weight.double() / (variance + norm.eps).sqrt()
        shift = norm.bias.double() - gain * (wide @ mean)[..., 0]  # a convolution's bias would be subtracted again
        return (wide * gain[..., None]).float(), shift.float()

    def _norm_and_gelu(self, index: int, x: Tensor) -> Tensor:
        """Apply norm and GELU after convolution ``index``, unless folded in already; ``x`` is overwritten."""
        norm = self.norms[index]
        if isinstance(norm, nn.LayerNorm):
            x = F.layer_norm(x, norm.normalized_shape, norm.weight.to(x.dtype), norm.bias.to(x.dtype), norm.eps)
        torch.ops.aten.gelu_(x)
        return x
