"""CUDA devices: the front end as one launch, and each layer with its scores, where launches are what takes the time.

A layer is some dozens of kernels, which a GPU finishes faster than its host can ask for them unless the batch is large.
A CUDA graph asks once. It has fixed shapes and addresses, so a batch goes through buffers that all graphs share, with
rows added up to one of the shared sizes (`daisy.kernels.rounded`); these rows are an utterance of their own, which
nothing else sees. Whether the host is what holds a size up is measured.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor

from daisy.front_end import SLOT, InOneSequence
from daisy.inference import Inference, PreparedHeads
from daisy.kernels import rounded
from daisy.layout import Fixed, Layout
from daisy.steps import Step, Steps

UTTERANCES = 32
"""Of a batch that there are buffers for."""
LAYER_VALUES = 2**23
"""Of a layer's states, up to which they have buffers."""
MEMORY = 256
"""What part of the device's memory the first convolution's output may take in a graph; it stays allocated."""
KEPT = 1024
"""Graphs, one for each layer and size, some 100 kB each, and a megabyte with a first convolution's weights."""
PAYS = 2.0
"""A graph pays where the device took less than so many times the host's time: it waited for the host."""


Result = TypeVar("Result")


def steps(inference: Inference, heads: PreparedHeads | None, names: Iterable[str], stride: int = 1) -> Steps:
    """The fastest there are for the device: as `daisy.steps.Steps`."""
    return (Graphs if inference.looks_at_no_length else Steps)(inference, heads, names, stride)


class Graphs(Steps):
    """Steps that are replayed where that pays: timed when a size is met again, captured when it is once more.

    One batch at a time; who comes meanwhile, from another thread, goes without graphs.
    """

    def __init__(self, inference: Inference, heads: PreparedHeads | None, names: Iterable[str], stride: int = 1):
        super().__init__(inference, heads, names, stride)
        self.plain = Steps(inference, heads, names, stride)
        self._lock = threading.Lock()
        self._buffers: _Buffers | None = None
        self._known: dict[tuple[object, ...], _Replay] = {}

    @contextmanager
    def held(self, with_readings: bool) -> Iterator[Steps]:
        """As `Steps.held`."""
        if with_readings or not self._lock.acquire(blocking=False):
            yield self.plain
            return
        try:
            with torch.cuda.device(self.inference.device):
                if self._buffers is None:
                    with torch.inference_mode(False):  # tensors made in it could not be written to outside
                        self._buffers = _Buffers(self.inference, self.stride)
                self._buffers.follow(torch.cuda.current_stream())
                yield self
        finally:
            if self._buffers is not None:
                self._buffers.release()
            self._lock.release()

    def begin(self, waveforms: Sequence[Tensor], layout: Layout) -> Tensor:
        """As `Steps.begin`."""
        buffers, front, inference = self._buffers, self.inference.front_end, self.inference
        assert buffers is not None
        assert isinstance(front, InOneSequence)
        num_samples = torch.tensor([len(waveform) for waveform in waveforms])
        slots = front.slots(num_samples)
        places, rows = rounded(slots.total), rounded(layout.total)
        if not (buffers.fits(SLOT * places, layout) and buffers.fits(rows, layout)):
            return self.plain.begin(waveforms, layout)
        values = places * SLOT * front.per_frame * len(front.weight)
        whole = None
        if values * inference.dtype.itemsize <= buffers.memory / MEMORY:
            whole = self._replay(("front end", places, *_size(layout, rows)))
        if whole is not None and whole.pays is None:
            return whole.timed(lambda: self.plain.begin(waveforms, layout))
        pieces = front.pieces(front.levelled(waveforms), slots)
        length = sum(map(len, pieces))
        torch.cat(pieces, out=buffers.signal[:length])
        signal = buffers.signal[: places * SLOT * inference.config.frame_hop + front.kernel]
        in_slots = buffers.slots.put(slots, places)
        samples = buffers.samples(num_samples)[: len(in_slots)]

        def first() -> Tensor:
            return front.first(signal, samples, in_slots)

        if whole is None or not whole.pays:
            # The convolutions keep the device busy; what comes before them are small kernels.
            weights = self._replay(("first", *_size(slots, places)[:2]))(first)
            weights = weights[: max(1, len(layout))] if len(weights) > 1 else weights
            return inference.embed(front.convolve(buffers.signal[:length], weights, slots, layout), layout)
        own = buffers.load(layout, rows)

        def run() -> None:
            features = front.convolve(signal, first(), in_slots, own)
            buffers.states[:rows].copy_(inference.embed(features, own))

        whole(run)
        return buffers.copy()

    def layer(self, layer: int, states: Tensor, layout: Layout, units_before: Tensor | None) -> Step:
        """As `Steps.layer`, without the reading."""
        buffers = self._buffers
        assert buffers is not None
        rows = rounded(layout.total)
        if not buffers.fits(rows, layout):
            return self.plain.layer(layer, states, layout, units_before)
        replay = self._replay((layer, *_size(layout, rows)))
        if not replay.pays:  # or not known yet
            return replay.timed(lambda: self.plain.layer(layer, states, layout, units_before))
        own = buffers.load(layout, rows)
        buffers.fill(states, units_before)

        def run() -> Tensor | None:
            states, units = buffers.states[:rows], buffers.units[: own.strided(self.stride).total]
            step = self.plain.layer(layer, states, own, units if layer > 1 else None)
            states.copy_(step.states)
            if step.units is not None:
                units.copy_(step.units)
            return step.scores

        scores = replay(run)
        return Step(
            states=buffers.copy(),
            scores=None if scores is None else scores[:, : len(layout)],
            units=buffers.units[: layout.strided(self.stride).total].clone() if "change" in self.names else None,
        )

    def _replay(self, what: tuple[object, ...]) -> _Replay:
        """Of a function and a size, under torch's settings as they are, which a graph keeps."""
        products, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
        key = (*what, products, convolutions, torch.are_deterministic_algorithms_enabled())
        if key not in self._known:
            assert self._buffers is not None
            self._known[key] = _Replay(self._buffers)
        return self._known[key]


def _size(layout: Layout, rows: int) -> tuple[int, int, int]:
    """What graphs are made for: rows, utterances, and frames of the longest.

    A power of two of utterances, and one that has the rows which are left over; of frames likewise.
    """
    longest = max(layout.longest, rows - layout.total)
    return rows, (1 << (len(layout) - 1).bit_length()) + 1, 1 << (longest - 1).bit_length()


class _Replay:
    """A function from buffers to buffers, for one size."""

    def __init__(self, buffers: _Buffers):
        self._buffers = buffers
        self._graph: torch.cuda.CUDAGraph | None = None
        self._result: Any = None
        self._pays: bool | None = None
        self._calls = 0
        self._host_ms = 0.0
        self._marks: tuple[torch.cuda.Event, torch.cuda.Event] | None = None

    @property
    def pays(self) -> bool | None:
        """Whether to go by way of buffers; None until two calls went without."""
        if self._pays is None and self._marks is not None:
            start, end = self._marks
            end.synchronize()
            self._pays, self._marks = start.elapsed_time(end) < PAYS * self._host_ms, None
        return self._pays

    def timed(self, run: Callable[[], Result]) -> Result:
        """Call it without buffers; the second time counts, as the first meets what is not loaded yet."""
        self._calls += 1
        if self._calls < 2 or self._pays is not None:
            return run()
        marks = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begun = time.perf_counter()
        marks[0].record()
        result = run()
        marks[1].record()
        self._host_ms, self._marks = 1000 * (time.perf_counter() - begun), marks
        return result

    def __call__(self, run: Callable[[], Result]) -> Result:
        """Replay it; the first time, run it and then capture it. What it gives is overwritten by the next call."""
        if self._graph is not None:
            self._graph.replay()
            return self._result
        result = run()
        if self._buffers.num_graphs < KEPT and self._pays is not False:
            self._capture(run)
        return result

    def _capture(self, run: Callable[[], object]) -> None:
        graph, stream = torch.cuda.CUDAGraph(), self._buffers.capturing
        stream.wait_stream(self._buffers.stream)
        try:
            with torch.cuda.stream(stream):
                # torch.cuda.graph would collect garbage and empty the allocator's cache, a tenth of a second each time.
                graph.capture_begin(pool=self._buffers.pool, capture_error_mode="thread_local")
                try:
                    result = run()
                finally:
                    graph.capture_end()
        except RuntimeError as error:  # of torch's allocator, or CUDA's own when it makes the graph
            if "out of memory" not in str(error):
                raise
            self._pays = False  # there is memory for it without, in torch's cache
            return
        self._buffers.stream.wait_stream(stream)
        self._graph, self._result = graph, result
        self._buffers.num_graphs += 1


class _Buffers:
    """Where graphs read and write."""

    def __init__(self, inference: Inference, stride: int):
        width, device = inference.config.width, inference.device
        self.most = LAYER_VALUES // width
        self.memory = torch.cuda.get_device_properties(device).total_memory
        self.stream, self.capturing = torch.cuda.current_stream(), torch.cuda.Stream()
        self.pool, self.num_graphs = torch.cuda.graph_pool_handle(), 0
        self.signal = torch.zeros((self.most + 1) * inference.config.frame_hop, device=device)
        self.num_samples, self._samples = torch.zeros(UTTERANCES + 1, dtype=torch.int64, device=device), [0]
        self.slots, self.frames = _Places(self.most, device), _Places(self.most, device, stride)
        self.states = torch.zeros(self.most, width, dtype=inference.dtype, device=device)
        self.units = torch.zeros(self.most, dtype=torch.int64, device=device)
        self.release()

    def follow(self, stream: torch.cuda.Stream) -> None:
        """Go on, on another stream perhaps, after what was asked for on the one before."""
        if stream != self.stream:
            stream.wait_stream(self.stream)
            self.stream = stream

    def release(self) -> None:
        """Forget the batch."""
        self._layout: Layout | None = None
        self._fixed: Layout | None = None
        self._held: Tensor | None = None

    def fits(self, rows: int, layout: Layout) -> bool:
        """Whether there is room."""
        return rows <= self.most and len(layout) <= UTTERANCES

    def samples(self, num_samples: Tensor) -> Tensor:
        """These (B,), and room for more, whose numbers mean nothing."""
        if num_samples.tolist() != self._samples:
            self.num_samples[: len(num_samples)].copy_(num_samples, non_blocking=True)
            self._samples = num_samples.tolist()
        return self.num_samples

    def load(self, layout: Layout, rows: int) -> Layout:
        """Take up a batch, unless it is there; returns what graphs see of it."""
        if self._fixed is None or layout is not self._layout:
            self._layout, self._fixed = layout, self.frames.put(layout, rows)
        return self._fixed

    def fill(self, states: Tensor, units: Tensor | None) -> None:
        """Take states (F, D) and units (F,), unless they are there."""
        if states is not self._held:
            self.states[: len(states)].copy_(states)
            if units is not None:
                self.units[: len(units)].copy_(units)

    def copy(self) -> Tensor:
        """Of the states, (F, D)."""
        assert self._layout is not None
        self._held = self.states[: self._layout.total].clone()
        return self._held


class _Places:
    """A layout whose tensors stay where they are.

    Args:
        most: rows at most.
        device: of the tensors.
        stride: of the frames that heads look at.
    """

    def __init__(self, most: int, device: torch.device, stride: int = 1):
        self.stride = stride
        self._numbers = torch.zeros(3 * (most + 2 * UTTERANCES + 3), dtype=torch.int64, device=device)
        self._offsets = torch.zeros(UTTERANCES + 2, dtype=torch.int32, device=device)
        self._there: list[int] = []

    def put(self, layout: Layout, rows: int) -> Layout:
        """Its utterances, empty ones up to a `_size`, and one of the rows that are left over."""
        _, size, longest = _size(layout, rows)
        added = torch.zeros(size - len(layout), dtype=torch.int64)
        added[-1] = rows - layout.total
        host = Layout(torch.cat([layout.num_frames, added]))
        changed = host.lengths != self._there
        numbers = [host.owners, host.counts, host.offsets] if changed else []
        lengths = [rows, size, size + 1]
        if self.stride > 1:
            # Their number is not fixed; the last utterance takes those that are left over here too.
            count = rows // self.stride + size
            lengths += [count, size, count]
            if changed:
                read = host.strided(self.stride)
                over = count - read.total
                found = host.strided_rows(self.stride), torch.full((over,), rows - 1)
                with_these = read.num_frames.clone()
                with_these[-1] += over
                read = Layout(with_these)
                numbers += [read.owners, read.counts, torch.cat(found)]
        if changed:
            together = torch.cat(numbers)
            self._numbers[: len(together)].copy_(together, non_blocking=True)
        owners, counts, offsets, *others = self._numbers[: sum(lengths)].split(lengths)
        if changed:
            self._offsets[: size + 1].copy_(offsets)
            self._there = host.lengths
        offsets = self._offsets[: size + 1]
        if not others:
            return Fixed(owners, counts, offsets, longest)
        read_owners, read_counts, read_rows = others
        return Fixed(owners, counts, offsets, longest, (Fixed(read_owners, read_counts, offsets, longest), read_rows))
