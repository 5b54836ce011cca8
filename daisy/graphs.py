"""Small batches on CUDA devices: a layer and its scores as one launch.

A layer is some forty kernels, which a GPU finishes faster than its host can ask for them unless the batch is large. A
CUDA graph asks once. It has fixed shapes and addresses, so a batch goes through buffers that all graphs share, with
rows added up to one of the shared sizes (`daisy.kernels.rounded`); these rows are an utterance of their own, which
nothing else sees.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from daisy.inference import Inference, PreparedHeads
from daisy.kernels import rounded
from daisy.layout import Layout
from daisy.steps import Run, Step, Steps

ROWS = 2048
"""Frames of a batch up to which a graph pays."""
UTTERANCES = 32
KEPT = 1024
"""Graphs, one for each layer and size, some 100 kB each."""


class Graphs(Steps):
    """Layers that are captured when a size is met for the second time, and replayed from then on.

    One batch at a time, on the stream of the first; who comes meanwhile goes without graphs.
    """

    def __init__(self, inference: Inference, heads: PreparedHeads | None, names: Iterable[str], stride: int = 1):
        super().__init__(inference, heads, names, stride)
        self._lock = threading.Lock()
        self._buffers: _Buffers | None = None
        self._met: set[tuple[int, int, int]] = set()
        self._captured: dict[tuple[int, int, int], tuple[torch.cuda.CUDAGraph, Tensor | None]] = {}

    @contextmanager
    def held(self, for_graphs: bool) -> Iterator[Run]:
        """As `Steps.held`."""
        if not (for_graphs and self._lock.acquire(blocking=False)):
            yield self.eager
            return
        try:
            if self._buffers is None:
                self._buffers = _Buffers(self.inference)
            yield self._replayed if self._buffers.stream == torch.cuda.current_stream() else self.eager
            self._buffers.empty()
        finally:
            self._lock.release()

    def _replayed(self, layer: int, states: Tensor, layout: Layout, units_before: Tensor | None) -> Step:
        """As `eager`, without the reading; scores are to be read before the next call."""
        buffers = self._buffers
        assert buffers is not None
        if layout.total > ROWS or len(layout) > UTTERANCES:
            return self.eager(layer, states, layout, units_before)
        fixed = buffers.load(states, layout, units_before)
        key = layer, fixed.total, len(fixed)
        if key not in self._captured and key in self._met and len(self._captured) < KEPT:
            self._captured[key] = self._capture(layer, fixed)
        if key in self._captured:
            graph, scores = self._captured[key]
            graph.replay()
        else:
            self._met.add(key)
            scores = self._compute(layer, fixed)
        states, units = buffers.copies(layout, "change" in self.names)
        return Step(states=states, scores=None if scores is None else scores[:, : len(layout)], units=units)

    def _compute(self, layer: int, fixed: Layout) -> Tensor | None:
        """From the buffers to the buffers."""
        assert self._buffers is not None
        states, units = self._buffers.states[: fixed.total], self._buffers.units[: fixed.total]
        step = self.eager(layer, states, fixed, units if layer > 1 else None)
        states.copy_(step.states)
        if step.units is not None:
            units.copy_(step.units)
        return step.scores

    def _capture(self, layer: int, fixed: Layout) -> tuple[torch.cuda.CUDAGraph, Tensor | None]:
        assert self._buffers is not None
        graph, stream = torch.cuda.CUDAGraph(), self._buffers.capturing
        stream.wait_stream(self._buffers.stream)
        with torch.cuda.stream(stream):
            # torch.cuda.graph would collect garbage and empty the allocator's cache each time, a tenth of a second.
            graph.capture_begin(pool=self._buffers.pool, capture_error_mode="thread_local")
            try:
                scores = self._compute(layer, fixed)
            finally:
                graph.capture_end()
        self._buffers.stream.wait_stream(stream)
        return graph, scores


class _Buffers:
    """Where graphs read and write."""

    def __init__(self, inference: Inference):
        device = inference.device
        self.stream, self.capturing = torch.cuda.current_stream(), torch.cuda.Stream()
        self.pool = torch.cuda.graph_pool_handle()
        rows = rounded(ROWS)
        self.states = torch.zeros(rows, inference.config.width, dtype=inference.dtype, device=device)
        self.units = torch.zeros(rows, dtype=torch.int64, device=device)
        self.owners = torch.zeros(rows, dtype=torch.int64, device=device)
        self.counts = torch.zeros(UTTERANCES + 1, dtype=torch.int64, device=device)
        self.offsets = torch.zeros(UTTERANCES + 2, dtype=torch.int32, device=device)
        self.empty()

    def empty(self) -> None:
        """Forget the batch."""
        self.layout: Layout | None = None
        self.fixed: Layout | None = None
        self.held: Tensor | None = None

    def load(self, states: Tensor, layout: Layout, units_before: Tensor | None) -> Layout:
        """Put a batch into the buffers, unless it is there; returns the layout that graphs see."""
        if self.fixed is None or self.layout is not layout:
            self.layout, self.fixed = layout, self._fix(layout)
        if self.held is not states:
            self.states[: len(states)].copy_(states)
            if units_before is not None:
                self.units[: len(states)].copy_(units_before)
        return self.fixed

    def _fix(self, layout: Layout) -> Layout:
        """Empty utterances up to a power of two, and one of the rows that are left over."""
        rows, size = rounded(layout.total), 1 << (len(layout) - 1).bit_length()
        added = torch.zeros(size + 1 - len(layout), dtype=torch.int64)
        added[-1] = rows - layout.total
        fixed = Layout(torch.cat([layout.num_frames, added]), self.states.device)
        for name, buffer in (("owners", self.owners), ("counts", self.counts), ("offsets", self.offsets)):
            values = getattr(fixed, name)
            setattr(fixed, name, buffer[: len(values)].copy_(values))
        fixed.longest = rows  # in a graph it stays what it was
        return fixed

    def copies(self, layout: Layout, with_units: bool) -> tuple[Tensor, Tensor | None]:
        """Of the states, and of the units, that a layer left."""
        self.held = self.states[: layout.total].clone()
        return self.held, self.units[: layout.total].clone() if with_units else None
