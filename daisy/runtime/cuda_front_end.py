"""Run the front end on GPUs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from daisy.models import Backbone
from daisy.models.lengths import count_frames
from daisy.models.packing import FrameLayout, PackedLayout
from daisy.runtime.bf16_products import split_inputs, split_weights
from daisy.runtime.convolution import gather_windows
from daisy.runtime.dtypes import Precision
from daisy.runtime.front_end import FrontEnd
from daisy.runtime.tf32 import allow_tf32_as_convolutions

SLOT_HOPS = 4
"""Number of hops in a slot; in `CudaFrontEnd`'s sequence each utterance begins with a new slot."""
MAX_VALUES_PER_PASS = 2**29
"""Values of the first convolution's output up to which utterances run together: five minutes of HuBERT Base."""


class CudaFrontEnd(FrontEnd):
    """Convolves all utterances at once, as one sequence of slots, on devices other than CPUs.

    A frame sees samples of its own utterance only, so padding takes only a few hops per utterance, whose frames are
    dropped. A convolution is a product for every ``stride`` taps, over rows that are views of its input.
    """

    def __init__(self, backbone: Backbone, precision: Precision):
        super().__init__(backbone, precision)
        self.taps = [
            [
                conv.weight.detach()[:, :, first : first + stride].transpose(1, 2).flatten(1).to(self.dtype)
                for first in range(0, kernel, stride)
            ]
            for conv, (_, kernel, stride) in zip(self.others, self.shapes, strict=True)
        ]
        self.silence = torch.zeros(SLOT_HOPS * self.config.frame_hop + self.kernel, device=self.device)
        self.biases = [None if conv.bias is None else conv.bias.detach().to(self.dtype) for conv in self.others]

    def _convolve(self, waveforms: Sequence[Tensor]) -> Tensor:
        num_samples = torch.tensor([len(waveform) for waveform in waveforms])
        groups = (num_samples.cumsum(0) - num_samples) // (MAX_VALUES_PER_PASS // len(self.weight) * self.stride)
        sizes = torch.unique_consecutive(groups, return_counts=True)[1].tolist()
        counts = num_samples.split(sizes)
        starts = [0, *torch.tensor(sizes).cumsum(0).tolist()]
        parts = [
            self._convolve_pass(waveforms[start : start + len(lengths)], lengths)
            for start, lengths in zip(starts[:-1], counts, strict=True)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _convolve_pass(self, waveforms: Sequence[Tensor], num_samples: Tensor) -> Tensor:
        slots = self.lay_out_slots(num_samples)
        layout = PackedLayout(count_frames(num_samples, self.config.conv_layers), self.device)
        signal = torch.cat(self.cut_pieces(waveforms, slots))
        first = self.make_first(signal, num_samples.to(self.device, non_blocking=True), slots)
        return self.convolve(signal, first, slots, layout)

    def lay_out_slots(self, num_samples: Tensor) -> PackedLayout:
        """Count the slots of each utterance from (B,) samples on the CPU, and return their layout."""
        samples = SLOT_HOPS * self.config.frame_hop
        return PackedLayout((num_samples + samples - 1) // samples, self.device)

    def cut_pieces(self, waveforms: Sequence[Tensor], slots: PackedLayout) -> list[Tensor]:
        """Cut the sequence: waveforms (N_b,), each with zeros to the end of its slots, and a kernel of zeros."""
        samples, silence = SLOT_HOPS * self.config.frame_hop, self.silence
        pairs = zip(waveforms, slots.seqlens_list, strict=True)
        pieces = [
            piece for waveform, count in pairs for piece in (waveform, silence[: count * samples - len(waveform)])
        ]
        return [*pieces, silence[: self.kernel]]

    def make_first(self, signal: Tensor, num_samples: Tensor, slots: FrameLayout) -> Tensor:
        """Make the first convolution's weights, with each utterance's group norm over time folded in.

        Neither this nor `convolve` reads a number on the device, or waits for one.

        Args:
            signal: samples of all slots and one kernel more, float32.
            num_samples: (B,) on the device.
            slots: layout of the utterances' slots.

        Returns:
            (B, C, K) from `split_weights`; (1, C, K) if no norm is over time.
        """
        if not isinstance(self.norms[0], nn.GroupNorm):
            bias = self.weight.new_zeros(len(self.weight)) if self.bias is None else self.bias
            return split_weights(self.weight, bias, self.dtype)[None]
        windows = self._windows(signal, slots)
        counts = (num_samples - self.kernel) // self.stride + 1
        ends = (slots.cu_seqlens[:-1] * SLOT_HOPS * self.windows_per_hop + counts)[slots.segment_ids]  # (slots,)
        valid = torch.arange(len(windows), device=self.device).view(slots.total, -1) < ends[:, None]
        padded = F.pad(windows, (0, 1), value=1.0).double().unflatten(0, valid.shape)
        padded = torch.where(valid[..., None], padded, 0.0)  # 0 times NaN or infinity is NaN
        moments = padded.new_zeros(len(slots), padded.shape[2], padded.shape[2])
        moments.index_add_(0, slots.segment_ids, padded.transpose(1, 2) @ padded)
        return split_weights(*self._fold_group_norm(moments), self.dtype)

    def convolve(self, signal: Tensor, first: Tensor, slots: FrameLayout, layout: FrameLayout) -> Tensor:
        """Convolve the sequence to features (F, C).

        Args:
            signal: as in `make_first`.
            first: result of `make_first`.
            slots: layout of the utterances' slots.
            layout: layout of their frames.
        """
        inputs = split_inputs(self._windows(signal, slots), self.dtype)  # (windows, K)
        if len(first) == 1:
            x = inputs @ first[0].T
        else:
            x = (inputs.unflatten(0, (slots.total, -1)) @ first.transpose(1, 2)[slots.segment_ids]).flatten(0, 1)
        x = self._norm_and_gelu(0, x)
        with allow_tf32_as_convolutions(self.dtype):
            for index, (taps, bias, (_, _, stride)) in enumerate(
                zip(self.taps, self.biases, self.shapes, strict=True), start=1
            ):
                x = self._norm_and_gelu(index, _convolve_by_taps(x, taps, bias, stride))
        return x[layout.row_indices(slots.cu_seqlens[:-1] * SLOT_HOPS).clamp(max=len(x) - 1)]

    def _windows(self, signal: Tensor, slots: FrameLayout) -> Tensor:
        """Gather the inputs of the first convolution, (windows, kernel)."""
        windows = gather_windows(signal[:, None], self.kernel, self.stride)
        return windows[: slots.total * SLOT_HOPS * self.windows_per_hop]


def _convolve_by_taps(x: Tensor, taps: Sequence[Tensor], bias: Tensor | None, stride: int) -> Tensor:
    """Convolve (T, C) to (T / stride, M); rows that see past the end are to be ignored.

    Args:
        x: (T, C), with T a multiple of the stride.
        taps: (M, stride C) weights of every ``stride`` taps, the last perhaps with fewer taps.
        bias: (M,), or None.
        stride: stride of the convolution.
    """
    rows, (weight, *others) = x.view(len(x) // stride, -1), taps
    first = rows[:, : weight.shape[1]]
    y = first @ weight.T if bias is None else torch.addmm(bias, first, weight.T)
    for step, weight in enumerate(others, start=1):
        y[: len(y) - step].addmm_(rows[step:, : weight.shape[1]], weight.T)
    return y
