"""Where the frames of a batch's utterances stand: one after the other, without padding."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor


class Layout:
    """Utterances of so many frames, F in all. What a GPU needs of it is copied there once; its host does not wait.

    Args:
        num_frames: (B,) int64 on the CPU.
        device: of the frames.
    """

    def __init__(self, num_frames: Tensor, device: torch.device | str = "cpu"):
        self.num_frames, self.device = num_frames, torch.device(device)
        self._strided: dict[int, Layout] = {}
        self._strided_rows: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self.num_frames)

    @cached_property
    def lengths(self) -> list[int]:
        """Frames of each utterance."""
        return self.num_frames.tolist()

    @cached_property
    def total(self) -> int:
        """F."""
        return sum(self.lengths)

    @cached_property
    def longest(self) -> int:
        """At least the frames of any."""
        return max(self.lengths)

    @cached_property
    def owners(self) -> Tensor:
        """(F,) which utterance each frame is of, on the device."""
        return torch.repeat_interleave(self.num_frames).to(self.device, non_blocking=True)

    @cached_property
    def counts(self) -> Tensor:
        """(B,) frames of each, on the device."""
        return self.num_frames.to(self.device, non_blocking=True)

    @cached_property
    def offsets(self) -> Tensor:
        """(B + 1,) int32 on the device: the first frame of each, and F."""
        ends = self.num_frames.cumsum(0)
        return torch.cat([ends.new_zeros(1), ends]).int().to(self.device, non_blocking=True)

    def mean(self, values: Tensor) -> Tensor:
        """Means over each utterance's frames: (F, ...) to (B, ...) float32."""
        total = values.new_zeros(len(self), *values.shape[1:], dtype=torch.float64)  # sums of minutes of frames
        total.index_add_(0, self.owners, values.double())
        return (total / self.counts.view(-1, *[1] * (values.ndim - 1))).float()

    def strided(self, stride: int) -> Layout:
        """Of every ``stride``-th frame of each utterance, its first on."""
        if stride == 1:
            return self
        if stride not in self._strided:
            self._strided[stride] = Layout((self.num_frames + stride - 1) // stride, self.device)
        return self._strided[stride]

    def strided_rows(self, stride: int) -> Tensor:
        """(F',) int64 on the device: where those stand among all frames."""
        if stride not in self._strided_rows:
            self._strided_rows[stride] = self._rows_of_stride(stride)
        return self._strided_rows[stride]

    def _rows_of_stride(self, stride: int) -> Tensor:
        counts = self.strided(stride).num_frames
        starts, firsts = self.num_frames.cumsum(0) - self.num_frames, counts.cumsum(0) - counts
        within = torch.arange(int(counts.sum())) - torch.repeat_interleave(firsts, counts)
        rows = torch.repeat_interleave(starts, counts) + stride * within
        return rows.to(self.device, non_blocking=True)

    def placed(self, starts: Tensor) -> Tensor:
        """(F,) int64 on the device: rows of frames whose utterances begin at these rows, (B,) on the device."""
        return torch.arange(self.total, device=self.device) + (starts - self.offsets[:-1])[self.owners]

    def of(self, stay: Tensor) -> Layout:
        """Of some of the utterances, (B,) bool on the CPU."""
        return Layout(self.num_frames[stay], self.device)

    def rows_of(self, rows: Tensor, stay: Tensor) -> Tensor:
        """(F, ...) to the rows of some of the utterances, (B,) bool on the CPU."""
        kept = [own for own, stays in zip(rows.split(self.lengths), stay.tolist(), strict=True) if stays]
        return torch.cat(kept) if kept else rows[:0]


class Fixed(Layout):
    """One whose tensors stay where they are while what is in them changes, for a CUDA graph.

    Args:
        owners: (F,) of `Layout`.
        counts: (B,) likewise.
        offsets: (B + 1,) likewise.
        longest: at least the frames of any.
        read: the strided layout and its rows, where heads do not look at every frame.
    """

    def __init__(
        self,
        owners: Tensor,
        counts: Tensor,
        offsets: Tensor,
        longest: int,
        read: tuple[Layout, Tensor] | None = None,
    ):
        super().__init__(torch.empty(0, dtype=torch.int64), counts.device)  # the host has no numbers
        self.owners, self.counts, self.offsets = owners, counts, offsets
        self.total, self.longest, self._read = len(owners), longest, read

    def __len__(self) -> int:
        return len(self.counts)

    def strided(self, stride: int) -> Layout:
        """As `Layout.strided`, of the one stride it was made for."""
        return self if self._read is None else self._read[0]

    def strided_rows(self, stride: int) -> Tensor:
        """As `Layout.strided_rows`, likewise."""
        assert self._read is not None
        return self._read[1]
