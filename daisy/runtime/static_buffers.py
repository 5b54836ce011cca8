"""Keep the buffers that all CUDA graphs read and write."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from daisy.models.packing import PackedLayout, StaticLayout
from daisy.runtime.cuda_front_end import SLOT_HOPS
from daisy.runtime.packed_backbone import PackedBackbone

MAX_UTTERANCES = 32
"""Largest number of utterances in a batch that uses the buffers."""
MAX_STATE_VALUES = 2**23
"""Largest number of values in a layer's states that the buffers hold."""


def graph_size(layout: PackedLayout, rows: int) -> tuple[int, int, int]:
    """Return the size that a graph is made for: rows, utterances, and frames of the longest utterance.

    The utterances are a power of two, plus one that has the left-over rows; the frames are a power of two.
    """
    longest = max(layout.max_seqlen, rows - layout.total)
    return rows, (1 << (len(layout) - 1).bit_length()) + 1, 1 << (longest - 1).bit_length()


class StaticBuffers:
    """Holds samples, layouts, states and units at fixed addresses.

    Args:
        backbone: backbone that runs.
        stride: stride of the frames that heads look at.
    """

    def __init__(self, backbone: PackedBackbone, stride: int):
        width, device, hop = backbone.config.width, backbone.device, backbone.config.frame_hop
        self.max_rows = MAX_STATE_VALUES // width
        self.states = torch.zeros(self.max_rows, width, dtype=backbone.dtype, device=device)
        self.units = torch.zeros(self.max_rows, dtype=torch.int64, device=device)
        self._signal = torch.zeros((self.max_rows + 1) * hop, device=device)
        self._slot_samples, self._more_samples = SLOT_HOPS * hop, backbone.front_end.kernel
        self._num_samples = torch.zeros(MAX_UTTERANCES + 1, dtype=torch.int64, device=device)
        self._loaded_samples = [0]
        self._slots, self._frames = _LayoutBuffer(self.max_rows, device), _LayoutBuffer(self.max_rows, device, stride)
        self.forget_batch()

    def forget_batch(self) -> None:
        """Release the batch."""
        self._layout: PackedLayout | None = None
        self._static: StaticLayout | None = None
        self._last_copy: Tensor | None = None

    def fits(self, rows: int, layout: PackedLayout) -> bool:
        """Tell whether the buffers have room."""
        return rows <= self.max_rows and len(layout) <= MAX_UTTERANCES

    def load_audio(
        self, pieces: Sequence[Tensor], num_samples: Tensor, slots: PackedLayout, num_slots: int
    ) -> tuple[Tensor, Tensor, StaticLayout]:
        """Load the samples of a batch.

        Args:
            pieces: pieces from `CudaFrontEnd.cut_pieces`.
            num_samples: (B,) on the CPU.
            slots: layout of the utterances' slots.
            num_slots: number of slots that the graph was made for.

        Returns:
            The signal; the numbers of samples on the device, with further entries to be ignored; and the slots' layout.
        """
        torch.cat(list(pieces), out=self._signal[: sum(map(len, pieces))])
        if (lengths := num_samples.tolist()) != self._loaded_samples:
            self._num_samples[: len(lengths)].copy_(num_samples, non_blocking=True)
            self._loaded_samples = lengths
        static = self._slots.update(slots, num_slots)
        signal = self._signal[: num_slots * self._slot_samples + self._more_samples]
        return signal, self._num_samples[: len(static)], static

    def load(
        self, layout: PackedLayout, rows: int, states: Tensor | None = None, units: Tensor | None = None
    ) -> StaticLayout:
        """Load a batch's layout, states (F, D) and units (F',), unless they are there already.

        Args:
            layout: layout of the utterances' frames.
            rows: number of rows that the graph was made for.
            states: states of the layer before; None if there is none yet.
            units: likewise.

        Returns:
            The layout that graphs see.
        """
        if self._static is None or layout is not self._layout:
            self._layout, self._static = layout, self._frames.update(layout, rows)
        if states is not None and states is not self._last_copy:
            self.states[: len(states)].copy_(states)
            if units is not None:
                self.units[: len(units)].copy_(units)
        return self._static

    def copy_states(self) -> Tensor:
        """Copy the batch's states, (F, D)."""
        assert self._layout is not None
        self._last_copy = self.states[: self._layout.total].clone()
        return self._last_copy


class _LayoutBuffer:
    """A layout whose tensors keep their addresses.

    Args:
        max_rows: largest number of rows.
        device: device of the tensors.
        stride: stride of the frames that heads look at.
    """

    def __init__(self, max_rows: int, device: torch.device, stride: int = 1):
        self.stride = stride
        self._numbers = torch.zeros(3 * (max_rows + 2 * MAX_UTTERANCES + 3), dtype=torch.int64, device=device)
        self._cu_seqlens = torch.zeros(MAX_UTTERANCES + 2, dtype=torch.int32, device=device)
        self._loaded_lengths: list[int] = []

    def update(self, layout: PackedLayout, rows: int) -> StaticLayout:
        """Load the layout's utterances, empty ones up to a `graph_size`, and one with the left-over rows."""
        _, size, longest = graph_size(layout, rows)
        added = torch.zeros(size - len(layout), dtype=torch.int64)
        added[-1] = rows - layout.total
        host = PackedLayout(torch.cat([layout.num_frames, added]))
        num_strided = rows // self.stride + size if self.stride > 1 else 0  # at least the frames that heads look at
        lengths = [rows, size, size + 1] + ([num_strided, size, num_strided] if num_strided else [])
        changed = host.seqlens_list != self._loaded_lengths
        if changed:
            numbers = torch.cat(self._to_numbers(host, num_strided))
            self._numbers[: len(numbers)].copy_(numbers, non_blocking=True)
        segment_ids, seqlens, cu_seqlens, *strided = self._numbers[: sum(lengths)].split(lengths)
        if changed:
            self._cu_seqlens[: size + 1].copy_(cu_seqlens)
            self._loaded_lengths = host.seqlens_list
        cu_seqlens = self._cu_seqlens[: size + 1]
        if not strided:
            return StaticLayout(segment_ids, seqlens, cu_seqlens, longest)
        ids, counts, strided_rows = strided
        of_strided = StaticLayout(ids, counts, cu_seqlens, longest)
        return StaticLayout(segment_ids, seqlens, cu_seqlens, longest, self.stride, (of_strided, strided_rows))

    def _to_numbers(self, host: PackedLayout, num_strided: int) -> list[Tensor]:
        """List a layout's numbers for the device; the last utterance also takes left-over strided frames."""
        numbers = [host.segment_ids, host.seqlens, host.cu_seqlens]
        if num_strided:
            left_over = num_strided - host.strided(self.stride).total
            counts = host.strided(self.stride).num_frames.clone()
            counts[-1] += left_over
            strided = PackedLayout(counts)
            rows = torch.cat([host.strided_rows(self.stride), torch.full((left_over,), host.total - 1)])
            numbers += [strided.segment_ids, strided.seqlens, rows]
        return numbers
