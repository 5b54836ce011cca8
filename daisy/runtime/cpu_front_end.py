"""Run the front end on CPUs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from daisy.models import Backbone
from daisy.models.lengths import count_frames
from daisy.runtime.convolution import Conv, gather_windows
from daisy.runtime.dtypes import Precision
from daisy.runtime.front_end import FrontEnd
from daisy.runtime.linear import round_up_rows

MAX_VALUES_PER_BLOCK = 2**21
"""Values of the first convolution's output held at a time: 64 frames of HuBERT Base; more costs new memory pages."""


class CpuFrontEnd(FrontEnd):
    """Convolves utterance by utterance, in blocks of frames whose values stay in the caches."""

    def __init__(self, backbone: Backbone, precision: Precision):
        super().__init__(backbone, precision)
        self.convs = [
            Conv(conv.weight, conv.bias, stride, precision)
            for conv, (_, _, stride) in zip(self.others, self.shapes, strict=True)
        ]
        self.block_frames = max(1, MAX_VALUES_PER_BLOCK // (self.windows_per_hop * len(self.weight)))

    def _convolve(self, waveforms: Sequence[Tensor]) -> Tensor:
        counts = [count_frames(len(waveform), self.config.conv_layers) for waveform in waveforms]
        features = torch.empty(sum(counts), self.config.conv_layers[-1][0], dtype=self.dtype)
        for waveform, rows in zip(waveforms, features.split(counts), strict=True):
            self._convolve_utterance(waveform, rows)
        return features

    def _convolve_utterance(self, waveform: Tensor, features: Tensor) -> None:
        """Convolve a waveform (N,) block by block into ``features``, (T, C)."""
        first, is_normed = self._make_first(waveform)
        hop, span = self.config.frame_hop, self.config.frame_span
        for start in range(0, len(features), self.block_frames):
            rows = features[start : start + self.block_frames]
            # Extra frames, over zeros past the end, are dropped below.
            count = min(self.block_frames, round_up_rows(len(rows)))
            part = waveform[start * hop : (start + count - 1) * hop + span]
            part = F.pad(part, (0, (count - 1) * hop + span - len(part)))
            x = self._activate(0, first, part[:, None], is_normed).to(self.dtype)
            for index, conv in enumerate(self.convs, start=1):
                x = self._activate(index, conv, x, self.norms[index] is None)
            rows.copy_(x[: len(rows)])

    def _make_first(self, waveform: Tensor) -> tuple[Conv, bool]:
        """Make the first convolution, in float32, and tell whether no separate norm is to follow it."""
        weight, bias, folds = self.weight, self.bias, isinstance(self.norms[0], nn.GroupNorm)
        if folds:
            windows = F.pad(gather_windows(waveform[:, None], self.kernel, self.stride), (0, 1), value=1.0).double()
            weight, bias = self._fold_group_norm(windows.T @ windows)
        return Conv(weight[:, None], bias, self.stride), folds or self.norms[0] is None

    def _activate(self, index: int, conv: Conv, x: Tensor, is_normed: bool) -> Tensor:
        return conv(x, gelu=True) if is_normed else self._norm_and_gelu(index, conv(x))
