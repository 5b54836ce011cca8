"""The layout of a batch whose utterances' frames are concatenated, without padding.

Names are those of variable-length attention: ``seqlens`` is the number of frames of each utterance, ``cu_seqlens`` the
first frame of each and the end of the last, ``max_seqlen`` at least the frames of the longest.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property

import torch
from torch import Tensor


class FrameLayout(ABC):
    """What a device needs to know about B utterances with F frames in all."""

    total: int
    """Number of frames, F."""
    max_seqlen: int
    """At least the number of frames of the longest utterance."""
    segment_ids: Tensor
    """(F,) int64 on the device: index of the utterance that each frame belongs to."""
    seqlens: Tensor
    """(B,) int64 on the device: number of frames of each utterance."""
    cu_seqlens: Tensor
    """(B + 1,) int32 on the device: first frame of each utterance, and F."""

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of utterances, B."""

    @abstractmethod
    def strided(self, stride: int) -> FrameLayout:
        """Return the layout of every ``stride``-th frame of each utterance, from its first."""

    @abstractmethod
    def strided_rows(self, stride: int) -> Tensor:
        """Return the indices of those frames among all, (F',) int64 on the device."""

    def mean(self, values: Tensor) -> Tensor:
        """Average over each utterance's frames: (F, ...) to (B, ...) float32."""
        total = values.new_zeros(len(self), *values.shape[1:], dtype=torch.float64)  # sums over minutes of frames
        total.index_add_(0, self.segment_ids, values.double())
        return (total / self.seqlens.view(-1, *[1] * (values.ndim - 1))).float()

    def row_indices(self, starts: Tensor) -> Tensor:
        """Return each frame's row, (F,) int64 on the device, where utterances begin at rows ``starts``, (B,) there."""
        shift = (starts - self.cu_seqlens[:-1])[self.segment_ids]
        return torch.arange(self.total, device=self.segment_ids.device) + shift


class PackedLayout(FrameLayout):
    """The layout of a batch, known to the host. It is copied to the device once, without synchronisation.

    Args:
        num_frames: (B,) int64 on the CPU, number of frames of each utterance.
        device: device of the frames.
        members: (B,) int64 on the CPU, indices of the utterances in a larger batch; None: this is the whole batch.

    Example:
        >>> import torch
        >>> from daisy.models import PackedLayout
        >>> layout = PackedLayout(torch.tensor([2, 3]))
        >>> layout.cu_seqlens.tolist(), layout.segment_ids.tolist()
        ([0, 2, 5], [0, 0, 1, 1, 1])
        >>> layout.mean(torch.tensor([1.0, 3.0, 0.0, 0.0, 6.0]))
        tensor([2., 2.])
    """

    def __init__(self, num_frames: Tensor, device: torch.device | str = "cpu", members: Tensor | None = None):
        self.num_frames, self.device = num_frames, torch.device(device)
        self._members = members
        self._strided: dict[int, PackedLayout] = {}
        self._strided_rows: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self.num_frames)

    @property
    def members(self) -> Tensor:
        """(B,) int64 on the CPU: indices of the utterances in the batch that they were selected from, rising."""
        return torch.arange(len(self)) if self._members is None else self._members

    @cached_property
    def seqlens_list(self) -> list[int]:
        """Number of frames of each utterance, as Python integers."""
        lengths: list[int] = self.num_frames.tolist()
        return lengths

    @cached_property
    def total(self) -> int:  # type: ignore[override]
        """Number of frames, F."""
        return sum(self.seqlens_list)

    @cached_property
    def max_seqlen(self) -> int:  # type: ignore[override]
        """Number of frames of the longest utterance."""
        return max(self.seqlens_list)

    @cached_property
    def segment_ids(self) -> Tensor:  # type: ignore[override]
        """See `FrameLayout`."""
        return torch.repeat_interleave(self.num_frames).to(self.device, non_blocking=True)

    @cached_property
    def seqlens(self) -> Tensor:  # type: ignore[override]
        """See `FrameLayout`."""
        return self.num_frames.to(self.device, non_blocking=True)

    @cached_property
    def cu_seqlens(self) -> Tensor:  # type: ignore[override]
        """See `FrameLayout`."""
        ends = self.num_frames.cumsum(0)
        return torch.cat([ends.new_zeros(1), ends]).int().to(self.device, non_blocking=True)

    def strided(self, stride: int) -> PackedLayout:
        """See `FrameLayout.strided`; computed once."""
        if stride == 1:
            return self
        if stride not in self._strided:
            self._strided[stride] = PackedLayout((self.num_frames + stride - 1) // stride, self.device)
        return self._strided[stride]

    def strided_rows(self, stride: int) -> Tensor:
        """See `FrameLayout.strided_rows`; computed once."""
        if stride not in self._strided_rows:
            self._strided_rows[stride] = self._make_strided_rows(stride)
        return self._strided_rows[stride]

    def _make_strided_rows(self, stride: int) -> Tensor:
        counts = self.strided(stride).num_frames
        starts, firsts = self.num_frames.cumsum(0) - self.num_frames, counts.cumsum(0) - counts
        within = torch.arange(int(counts.sum())) - torch.repeat_interleave(firsts, counts)
        rows = torch.repeat_interleave(starts, counts) + stride * within
        return rows.to(self.device, non_blocking=True)

    def select(self, stay: Tensor) -> PackedLayout:
        """Return the layout of the utterances selected by ``stay``, (B,) bool on the CPU."""
        return PackedLayout(self.num_frames[stay], self.device, self.members[stay])

    def select_rows(self, rows: Tensor, stay: Tensor) -> Tensor:
        """Copy the rows (F, ...) of the utterances selected by ``stay``, (B,) bool on the CPU."""
        pairs = zip(rows.split(self.seqlens_list), stay.tolist(), strict=True)
        kept = [utterance for utterance, stays in pairs if stays]
        return torch.cat(kept) if kept else rows[:0]

    def pad(self, rows: Tensor) -> Tensor:
        """Pad to a batch with one row of frames per utterance: (F, ...) to (B, T, ...), with zeros past its end."""
        return torch.nn.utils.rnn.pad_sequence(list(rows.split(self.seqlens_list)), batch_first=True)

    def unpad(self, padded: Tensor) -> Tensor:
        """Undo `pad`: (B, T, ...) to (F, ...)."""
        return torch.cat([row[:count] for row, count in zip(padded, self.seqlens_list, strict=True)])


class StaticLayout(FrameLayout):
    """A layout whose tensors stay in place while their contents change, for CUDA graphs.

    The host does not know the batch's lengths, only the sizes that graphs were made for.

    Args:
        segment_ids: (F,), see `FrameLayout`.
        seqlens: (B,), likewise.
        cu_seqlens: (B + 1,), likewise.
        max_seqlen: at least the number of frames of the longest utterance.
        stride: stride of the frames that heads look at.
        strided: layout and rows of these frames, where they are not all frames.
    """

    def __init__(
        self,
        segment_ids: Tensor,
        seqlens: Tensor,
        cu_seqlens: Tensor,
        max_seqlen: int,
        stride: int = 1,
        strided: tuple[StaticLayout, Tensor] | None = None,
    ):
        self.segment_ids, self.seqlens, self.cu_seqlens = segment_ids, seqlens, cu_seqlens
        self.total, self.max_seqlen = len(segment_ids), max_seqlen
        self._stride, self._strided = stride, strided

    def __len__(self) -> int:
        return len(self.seqlens)

    def strided(self, stride: int) -> StaticLayout:
        """See `FrameLayout.strided`; only for the stride that this layout was made for."""
        assert stride == self._stride
        return self if self._strided is None else self._strided[0]

    def strided_rows(self, stride: int) -> Tensor:
        """See `FrameLayout.strided_rows`; only for the stride that this layout was made for."""
        assert stride == self._stride
        assert self._strided is not None
        return self._strided[1]
