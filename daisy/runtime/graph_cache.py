"""Cache CUDA graphs by function and size: timed when a size comes again, captured when it comes once more."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from daisy.runtime.tf32 import convolutions_may_use_tf32, hold_tf32, products_may_use_tf32

MAX_GRAPHS = 1024
"""Largest number of graphs: one for each layer and size, some 100 kB each, a megabyte with a first convolution."""
LAUNCH_BOUND_RATIO = 2.0
"""A graph pays if the device took less than this many times the host's time: it waited for the host."""

Result = TypeVar("Result")


def is_launch_bound(host_ms: float, device_ms: float) -> bool:
    """Tell from the times of device and host whether the device waits for the host, so that a graph pays."""
    return device_ms < LAUNCH_BOUND_RATIO * host_ms


class GraphCache:
    """Replays by function and size, with streams and pool for capturing them. To be made with their device selected."""

    def __init__(self) -> None:
        self.stream, self.capture_stream = torch.cuda.current_stream(), torch.cuda.Stream()
        self.pool, self.num_graphs = torch.cuda.graph_pool_handle(), 0
        self._replays: dict[tuple[object, ...], Replay] = {}

    def follow(self, stream: torch.cuda.Stream) -> None:
        """Continue on a stream, another one perhaps, after the work queued on the previous stream."""
        if stream != self.stream:
            stream.wait_stream(self.stream)
            self.stream = stream

    def get(self, *what: object) -> Replay:
        """Return the replay of a function and a size, for torch's current settings, which a graph keeps."""
        with hold_tf32():
            tf32 = products_may_use_tf32(), convolutions_may_use_tf32()
        key = (*what, *tf32, torch.are_deterministic_algorithms_enabled())
        if key not in self._replays:
            self._replays[key] = Replay(self)
        return self._replays[key]

    def capture(self, run: Callable[[], Result]) -> tuple[torch.cuda.CUDAGraph, Result] | None:
        """Capture a function, and return the graph and the function's result; None if there is no memory."""
        graph = torch.cuda.CUDAGraph()
        self.capture_stream.wait_stream(self.stream)
        try:
            with hold_tf32(), torch.cuda.stream(self.capture_stream):
                # torch.cuda.graph would collect garbage and empty the allocator's cache, a tenth of a second each time.
                graph.capture_begin(pool=self.pool, capture_error_mode="thread_local")
                try:
                    result = run()
                finally:
                    graph.capture_end()
        except RuntimeError as error:  # from torch's allocator, or from CUDA when it makes the graph
            if "out of memory" not in str(error):
                raise
            return None  # without a graph there is memory for it, in torch's cache
        self.stream.wait_stream(self.capture_stream)
        self.num_graphs += 1
        return graph, result


class Replay:
    """A function from buffers to buffers, for one size."""

    def __init__(self, graphs: GraphCache):
        self._graphs = graphs
        self._captured: tuple[torch.cuda.CUDAGraph, Any] | None = None
        self._may_capture = True
        self._launch_bound: bool | None = None
        self._num_eager = 0
        self._host_ms = 0.0
        self._marks: tuple[torch.cuda.Event, torch.cuda.Event] | None = None

    def is_launch_bound(self) -> bool | None:
        """Tell whether to use buffers and a graph; None until two calls ran without.

        Waits for the device once, if the second of these calls has just been timed.
        """
        if self._launch_bound is None and self._marks is not None:
            start, end = self._marks
            end.synchronize()
            self._launch_bound, self._marks = is_launch_bound(self._host_ms, start.elapsed_time(end)), None
        return self._launch_bound

    def run_eager_timed(self, run: Callable[[], Result]) -> Result:
        """Call a function without buffers. Its second call is timed: the first one loads what is not loaded yet."""
        self._num_eager += 1
        if self._num_eager < 2 or self._launch_bound is not None:
            return run()
        marks = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begun = time.perf_counter()
        marks[0].record()
        result = run()
        marks[1].record()
        self._host_ms, self._marks = 1000 * (time.perf_counter() - begun), marks
        return result

    def __call__(self, run: Callable[[], Result]) -> Result:
        """Replay the function; the first time, run and then capture it. The next call overwrites the result."""
        if self._captured is not None:
            graph, replayed = self._captured
            graph.replay()
            result: Result = replayed
            return result
        result = run()
        if self._may_capture and self._graphs.num_graphs < MAX_GRAPHS:
            self._captured = self._graphs.capture(run)
            if self._captured is None:
                self._launch_bound = self._may_capture = False
        return result
