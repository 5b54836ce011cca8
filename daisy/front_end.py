"""The convolutions before the transformer, as matrix products over windows of frames.

In a network with group norm, that norm over time is put into the first convolution's weights: mean and variance of
an output over the utterance follow from the mean and covariance of the samples under the kernel, 10 x 10 numbers.
"""

from __future__ import annotations

import contextlib
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from daisy import frames, kernels
from daisy.backbone import Backbone
from daisy.kernels import DTYPES, Conv, under_kernel
from daisy.layout import Layout

SLOT = 4
"""Hops; in the sequence of `InOneSequence` utterances begin at multiples of it."""
TOGETHER = 2**29
"""Values of the first convolution's output up to which utterances go together: five minutes of HuBERT Base."""
BLOCK_VALUES = 2**21
"""Of the first convolution's output that are held at a time on a CPU: 64 frames of HuBERT Base; more pays for pages."""


def front_end(backbone: Backbone, dtype: str) -> FrontEnd:
    """The one for the backbone's device, with the weights as they are now."""
    return (InBlocks if backbone.device.type == "cpu" else InOneSequence)(backbone, dtype)


class FrontEnd(ABC):
    """What both ways share.

    Args:
        backbone: whose convolutions.
        dtype: of `daisy.kernels.DTYPES`, that of all convolutions but the first.
    """

    def __init__(self, backbone: Backbone, dtype: str):
        self.config, self.dtype, self.device = backbone.config, DTYPES[dtype], backbone.device
        first, *others = backbone.feature_extractor.conv_layers
        self.norms = [each.layer_norm for each in (first, *others)]
        bias = first.conv.bias
        self.weight = first.conv.weight.detach()[:, 0].float()  # (C, kernel)
        self.bias = None if bias is None else bias.detach().float()
        (_, self.kernel, self.stride), *self.shapes = self.config.conv_layers
        self.others = [each.conv for each in others]
        self.per_frame = self.config.frame_hop // self.stride
        """Windows of the first convolution in a hop."""

    def __call__(self, waveforms: Sequence[Tensor]) -> Tensor:
        """(N_b,) float32 each, of a frame or more, to features (F, C)."""
        return self._run(self.levelled(waveforms))

    def levelled(self, waveforms: Sequence[Tensor]) -> Sequence[Tensor]:
        """Each with zero mean and unit variance, where the backbone was trained so."""
        if not self.config.normalize:
            return waveforms
        return [F.layer_norm(waveform, waveform.shape) for waveform in waveforms]

    @abstractmethod
    def _run(self, waveforms: Sequence[Tensor]) -> Tensor:
        """As `__call__`, of waveforms as they are."""

    def _folded(self, moments: Tensor) -> tuple[Tensor, Tensor]:
        """The first convolution with the group norm over time in it.

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
        shift = norm.bias.double() - gain * (wide @ mean)[..., 0]  # a bias of the convolution would be taken off again
        return (wide * gain[..., None]).float(), shift.float()

    def _after(self, index: int, x: Tensor) -> Tensor:
        """What follows convolution ``index``, where it is not in the product already."""
        norm = self.norms[index]
        if isinstance(norm, nn.LayerNorm):
            x = F.layer_norm(x, norm.normalized_shape, norm.weight.to(x.dtype), norm.bias.to(x.dtype), norm.eps)
        return torch.ops.aten.gelu_(x)  # x is nobody else's


class InBlocks(FrontEnd):
    """On CPUs: utterance by utterance, in blocks of frames whose values stay in the caches."""

    def __init__(self, backbone: Backbone, dtype: str):
        super().__init__(backbone, dtype)
        self.convs = [
            Conv(conv.weight, conv.bias, stride, dtype)
            for conv, (_, _, stride) in zip(self.others, self.shapes, strict=True)
        ]
        self.block = max(1, BLOCK_VALUES // (self.per_frame * len(self.weight)))

    def _run(self, waveforms: Sequence[Tensor]) -> Tensor:
        counts = [frames.num_frames(len(waveform), self.config.conv_layers) for waveform in waveforms]
        features = torch.empty(sum(counts), self.config.conv_layers[-1][0], dtype=self.dtype)
        for waveform, rows in zip(waveforms, features.split(counts), strict=True):
            self._utterance(waveform, rows)
        return features

    def _utterance(self, waveform: Tensor, features: Tensor) -> None:
        """(N,) to (T, C), block by block into ``features``."""
        first, is_normed = self._first(waveform)
        hop, span = self.config.frame_hop, self.config.frame_span
        for start in range(0, len(features), self.block):
            rows = features[start : start + self.block]
            # Further frames, over zeros past the end, are dropped below.
            count = min(self.block, kernels.rounded(len(rows)))
            part = waveform[start * hop : (start + count - 1) * hop + span]
            part = F.pad(part, (0, (count - 1) * hop + span - len(part)))
            x = self._activated(0, first, part[:, None], is_normed).to(self.dtype)
            for index, conv in enumerate(self.convs, start=1):
                x = self._activated(index, conv, x, self.norms[index] is None)
            rows.copy_(x[: len(rows)])

    def _first(self, waveform: Tensor) -> tuple[Conv, bool]:
        """The first convolution, in float32, and whether no norm is left after it."""
        weight, bias, folds = self.weight, self.bias, isinstance(self.norms[0], nn.GroupNorm)
        if folds:
            seen = F.pad(under_kernel(waveform[:, None], self.kernel, self.stride), (0, 1), value=1.0).double()
            weight, bias = self._folded(seen.T @ seen)
        return Conv(weight[:, None], bias, self.stride), folds or self.norms[0] is None

    def _activated(self, index: int, conv: Conv, x: Tensor, is_normed: bool) -> Tensor:
        return conv(x, gelu=True) if is_normed else self._after(index, conv(x))


class InOneSequence(FrontEnd):
    """On other devices: all utterances at once, as one sequence of slots.

    A frame sees samples of its own utterance only, so that nothing is padded but a few hops an utterance, whose frames
    are dropped. A convolution is a product for every ``stride`` taps, over rows that are views of its input.
    """

    def __init__(self, backbone: Backbone, dtype: str):
        super().__init__(backbone, dtype)
        self.taps = [
            [
                conv.weight.detach()[:, :, first : first + stride].transpose(1, 2).flatten(1).to(self.dtype)
                for first in range(0, kernel, stride)
            ]
            for conv, (_, kernel, stride) in zip(self.others, self.shapes, strict=True)
        ]
        self.silence = torch.zeros(SLOT * self.config.frame_hop + self.kernel, device=self.device)
        self.biases = [None if conv.bias is None else conv.bias.detach().to(self.dtype) for conv in self.others]

    def _run(self, waveforms: Sequence[Tensor]) -> Tensor:
        num_samples = torch.tensor([len(waveform) for waveform in waveforms])
        groups = (num_samples.cumsum(0) - num_samples) // (TOGETHER // len(self.weight) * self.stride)
        sizes = torch.unique_consecutive(groups, return_counts=True)[1].tolist()
        counts = num_samples.split(sizes)
        starts = [0, *torch.tensor(sizes).cumsum(0).tolist()]
        parts = [
            self._together(waveforms[start : start + len(own)], own)
            for start, own in zip(starts[:-1], counts, strict=True)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _together(self, waveforms: Sequence[Tensor], num_samples: Tensor) -> Tensor:
        slots = self.slots(num_samples)
        own = Layout(frames.num_frames(num_samples, self.config.conv_layers), self.device)
        signal = torch.cat(self.pieces(waveforms, slots))
        first = self.first(signal, num_samples.to(self.device, non_blocking=True), slots)
        return self.convolve(signal, first, slots, own)

    def slots(self, num_samples: Tensor) -> Layout:
        """How many slots each utterance takes, (B,) samples on the CPU."""
        samples = SLOT * self.config.frame_hop
        return Layout((num_samples + samples - 1) // samples, self.device)

    def pieces(self, waveforms: Sequence[Tensor], slots: Layout) -> list[Tensor]:
        """What makes the sequence: waveforms (N_b,), each to the end of its slots, and a kernel of zeros."""
        samples, silence = SLOT * self.config.frame_hop, self.silence
        pairs = zip(waveforms, slots.lengths, strict=True)
        pieces = [piece for own, count in pairs for piece in (own, silence[: count * samples - len(own)])]
        return [*pieces, silence[: self.kernel]]

    def first(self, signal: Tensor, num_samples: Tensor, slots: Layout) -> Tensor:
        """The first convolution's weights, with each utterance's group norm over time in them.

        Here and in `convolve` nothing looks at a number on the device, or waits for one.

        Args:
            signal: samples of all slots and a kernel more, float32.
            num_samples: (B,) on the device.
            slots: of the utterances.

        Returns:
            (B, C, K) of `_precise_weight`; (1, C, K) where no norm is over time.
        """
        if not isinstance(self.norms[0], nn.GroupNorm):
            bias = self.weight.new_zeros(len(self.weight)) if self.bias is None else self.bias
            return _precise_weight(self.weight, bias, self.dtype)[None]
        windows = self._windows(signal, slots)
        counts = (num_samples - self.kernel) // self.stride + 1
        ends = (slots.offsets[:-1] * SLOT * self.per_frame + counts)[slots.owners]  # (slots,)
        own = torch.arange(len(windows), device=self.device).view(slots.total, -1) < ends[:, None]
        seen = F.pad(windows, (0, 1), value=1.0).double().unflatten(0, own.shape)
        seen = torch.where(own[..., None], seen, 0.0)  # a product with 0 would let pass what is no number
        moments = seen.new_zeros(len(slots), seen.shape[2], seen.shape[2])
        moments.index_add_(0, slots.owners, seen.transpose(1, 2) @ seen)
        return _precise_weight(*self._folded(moments), self.dtype)

    def convolve(self, signal: Tensor, first: Tensor, slots: Layout, own: Layout) -> Tensor:
        """The sequence to features (F, C).

        Args:
            signal: as in `first`.
            first: its result.
            slots: of the utterances.
            own: their frames.
        """
        seen = _precise(self._windows(signal, slots), self.dtype)  # (windows, K)
        if len(first) == 1:
            x = seen @ first[0].T
        else:
            x = (seen.unflatten(0, (slots.total, -1)) @ first.transpose(1, 2)[slots.owners]).flatten(0, 1)
        x = self._after(0, x)
        with _as_convolutions(self.dtype):
            for index, (taps, bias, (_, _, stride)) in enumerate(
                zip(self.taps, self.biases, self.shapes, strict=True), start=1
            ):
                x = self._after(index, _convolved(x, taps, bias, stride))
        return x[own.placed(slots.offsets[:-1] * SLOT).clamp(max=len(x) - 1)]

    def _windows(self, signal: Tensor, slots: Layout) -> Tensor:
        """What the first convolution sees, (windows, kernel)."""
        windows = under_kernel(signal[:, None], self.kernel, self.stride)
        return windows[: slots.total * SLOT * self.per_frame]


def _convolved(x: Tensor, taps: Sequence[Tensor], bias: Tensor | None, stride: int) -> Tensor:
    """(T, C) to (T / stride, M), of which those that see past the end mean nothing.

    Args:
        x: a whole number of strides.
        taps: (M, stride C) weights of every ``stride`` taps, the last perhaps of fewer.
        bias: (M,), or None.
        stride: of the convolution.
    """
    rows, (weight, *others) = x.view(len(x) // stride, -1), taps
    first = rows[:, : weight.shape[1]]
    y = first @ weight.T if bias is None else torch.addmm(bias, first, weight.T)
    for step, weight in enumerate(others, start=1):
        y[: len(y) - step].addmm_(rows[step:, : weight.shape[1]], weight.T)
    return y


def _precise(windows: Tensor, dtype: torch.dtype) -> Tensor:
    """(n, kernel) to (n, K), for products with `_precise_weight` whose result has the type but not its error.

    In bfloat16 the samples stand there as they are rounded, and what rounding took off; so do the weights. A column of
    ones is for the bias, and K a multiple of 8, which products on GPUs want.
    """
    count = len(windows)
    if dtype == torch.float32:
        parts = [windows, windows.new_ones(count, 1)]
    else:
        rounded = windows.to(dtype)
        parts = [rounded, (windows - rounded).to(dtype), rounded, rounded.new_ones(count, 2)]
    return torch.cat([*parts, parts[0].new_zeros(count, -sum(part.shape[1] for part in parts) % 8)], 1)


def _precise_weight(weight: Tensor, bias: Tensor, dtype: torch.dtype) -> Tensor:
    """Weights (..., C, kernel) and biases (..., C) to (..., C, K)."""
    bias = bias[..., None]
    if dtype == torch.float32:
        parts = [weight, bias]
    else:
        parts = [weight.to(dtype), weight.to(dtype), (weight - weight.to(dtype)).to(dtype)]
        parts += [bias.to(dtype), (bias - bias.to(dtype)).to(dtype)]
    return torch.cat([*parts, parts[0].new_zeros(*bias.shape[:-1], -sum(part.shape[-1] for part in parts) % 8)], -1)


_SETTING = threading.Lock()


@contextlib.contextmanager
def _as_convolutions(dtype: torch.dtype) -> Iterator[None]:
    """Float32 products here stand for convolutions, which torch lets use TF32 unless told otherwise, unlike products.

    The setting is the process's: products of other threads see it meanwhile.
    """
    if dtype != torch.float32 or torch.backends.cuda.matmul.allow_tf32 == torch.backends.cudnn.allow_tf32:
        yield
        return
    with _SETTING:
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high" if torch.backends.cudnn.allow_tf32 else "highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)
