"""Run the front end as one launch on CUDA devices, and each layer with its scores, where launches take the time.

A layer is some dozens of kernels, which a GPU finishes faster than its host can launch them unless the batch is large.
A CUDA graph takes one launch. It has fixed shapes and addresses, so a batch goes through buffers that all graphs share,
with rows added up to one of the shared sizes (`daisy.runtime.linear.round_up_rows`); these rows form an utterance of
their own, which the others do not see. Whether the host is the bottleneck at a size is measured.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from daisy.models.packing import PackedLayout
from daisy.policies.scores import ON_HOST
from daisy.runtime.cuda_front_end import SLOT_HOPS, CudaFrontEnd
from daisy.runtime.graph_cache import GraphCache
from daisy.runtime.layer_runner import LayerOutput, LayerRunner, PackedLayerRunner
from daisy.runtime.linear import round_up_rows
from daisy.runtime.packed_backbone import PackedBackbone
from daisy.runtime.packed_heads import PackedCTCHeads, PackedHeads
from daisy.runtime.static_buffers import StaticBuffers, graph_size

MEMORY_FRACTION = 1 / 256
"""Share of the device's memory that the first convolution's output may take in a graph; it stays allocated."""


def make_layer_runner(
    backbone: PackedBackbone,
    heads: PackedHeads | PackedCTCHeads | None,
    score_names: Iterable[str],
    score_stride: int = 1,
    exits: Sequence[int] | None = None,
) -> PackedLayerRunner:
    """Make the fastest runner for the device, the heads and the scores."""
    capturable = (heads is None or heads.capturable) and ON_HOST.isdisjoint(score_names)
    kind = GraphLayerRunner if backbone.supports_varlen and capturable else PackedLayerRunner
    return kind(backbone, heads, score_names, score_stride, exits)


class GraphLayerRunner(PackedLayerRunner):
    """Runs stages, and replays them as CUDA graphs where that is faster.

    Only one batch at a time uses graphs; a batch that comes meanwhile, from another thread, runs without them.
    """

    def __init__(
        self,
        backbone: PackedBackbone,
        heads: PackedHeads | PackedCTCHeads | None,
        score_names: Iterable[str],
        score_stride: int = 1,
        exits: Sequence[int] | None = None,
    ):
        super().__init__(backbone, heads, score_names, score_stride, exits)
        self._eager = PackedLayerRunner(backbone, heads, score_names, score_stride, exits)
        self._lock = threading.Lock()
        self._stages: _Stages | None = None

    @contextmanager
    def batch_session(self, with_head_outputs: bool) -> Iterator[LayerRunner]:
        """See `LayerRunner.batch_session`."""
        if with_head_outputs or not self._lock.acquire(blocking=False):
            yield self._eager
            return
        try:
            with torch.cuda.device(self.backbone.device):
                if self._stages is None:
                    with torch.inference_mode(False):  # tensors made in inference mode could not be written to outside
                        self._stages = _Stages(self._eager)
                self._stages.graphs.follow(torch.cuda.current_stream())
                yield self
        finally:
            if self._stages is not None:
                self._stages.buffers.forget_batch()
            self._lock.release()

    def begin(self, waveforms: Sequence[Tensor], layout: PackedLayout) -> Tensor:
        """See `LayerRunner.begin`."""
        assert self._stages is not None
        return self._stages.front_end(waveforms, layout)

    def layer(  # type: ignore[override]
        self, layer: int, states: Tensor, layout: PackedLayout, previous_units: Tensor | None
    ) -> LayerOutput:
        """See `LayerRunner.layer`; without the head outputs."""
        assert self._stages is not None
        return self._stages.layer(layer, states, layout, previous_units)


class _Stages:
    """The two kinds of stages, with the buffers and graphs that they share."""

    def __init__(self, eager: PackedLayerRunner):
        self.buffers, self.graphs = StaticBuffers(eager.backbone, eager.score_stride), GraphCache()
        self.front_end = _FrontEndStage(eager, self.buffers, self.graphs)
        self.layer = _LayerStage(eager, self.buffers, self.graphs)


class _FrontEndStage:
    """Runs from waveforms to layer 0.

    It runs in one graph; if that is too large or not faster, in a graph up to the first convolution's weights, because
    the steps before the convolutions are small kernels; or without a graph.
    """

    def __init__(self, eager: PackedLayerRunner, buffers: StaticBuffers, graphs: GraphCache):
        backbone = eager.backbone
        assert isinstance(backbone.front_end, CudaFrontEnd)
        self._eager, self._buffers, self._graphs = eager, buffers, graphs
        self._backbone, self._front_end = backbone, backbone.front_end
        memory = torch.cuda.get_device_properties(backbone.device).total_memory * MEMORY_FRACTION
        slot_bytes = SLOT_HOPS * self._front_end.windows_per_hop * len(self._front_end.weight) * backbone.dtype.itemsize
        self._max_slots = int(memory / slot_bytes)

    def __call__(self, waveforms: Sequence[Tensor], layout: PackedLayout) -> Tensor:
        num_samples = torch.tensor([len(waveform) for waveform in waveforms])
        slots = self._front_end.lay_out_slots(num_samples)
        num_slots, rows = round_up_rows(slots.total), round_up_rows(layout.total)
        if not (self._buffers.fits(SLOT_HOPS * num_slots, layout) and self._buffers.fits(rows, layout)):
            return self._eager.begin(waveforms, layout)
        pays: bool | None = False
        if num_slots <= self._max_slots:
            whole = self._graphs.get("front end", num_slots, *graph_size(layout, rows))
            pays = whole.is_launch_bound()
            if pays is None:
                return whole.run_eager_timed(lambda: self._eager.begin(waveforms, layout))
        pieces = self._front_end.cut_pieces(self._front_end.normalize(waveforms), slots)
        signal, samples, static_slots = self._buffers.load_audio(pieces, num_samples, slots, num_slots)
        if not pays:
            first = self._graphs.get("first", *graph_size(slots, num_slots)[:2])
            weights = first(lambda: self._front_end.make_first(signal, samples, static_slots))
            weights = weights[: max(1, len(layout))] if len(weights) > 1 else weights
            features = self._front_end.convolve(signal[: sum(map(len, pieces))], weights, slots, layout)
            return self._backbone.embed(features, layout)
        static = self._buffers.load(layout, rows)

        def run() -> None:
            weights = self._front_end.make_first(signal, samples, static_slots)
            features = self._front_end.convolve(signal, weights, static_slots, static)
            self._buffers.states[:rows].copy_(self._backbone.embed(features, static))

        whole(run)
        return self._buffers.copy_states()


class _LayerStage:
    """Runs one layer and its scores."""

    def __init__(self, eager: PackedLayerRunner, buffers: StaticBuffers, graphs: GraphCache):
        self._eager, self._buffers, self._graphs = eager, buffers, graphs
        self._first_exit = min(eager.exits or [1])

    def __call__(self, layer: int, states: Tensor, layout: PackedLayout, previous_units: Tensor | None) -> LayerOutput:
        rows = round_up_rows(layout.total)
        if not self._buffers.fits(rows, layout):
            return self._eager.layer(layer, states, layout, previous_units)
        replay = self._graphs.get(layer, *graph_size(layout, rows))
        if not replay.is_launch_bound():  # or not known yet
            return replay.run_eager_timed(lambda: self._eager.layer(layer, states, layout, previous_units))
        static = self._buffers.load(layout, rows, states, previous_units)
        stride, is_first = self._eager.score_stride, layer == self._first_exit

        def run() -> Tensor | None:
            states, units = self._buffers.states[:rows], self._buffers.units[: static.strided(stride).total]
            output = self._eager.layer(layer, states, static, None if is_first else units)
            states.copy_(output.states)
            if output.units is not None:
                units.copy_(output.units)
            return output.scores

        scores = replay(run)
        keeps_units = self._eager.keeps_units and self._eager.is_exit(layer)
        return LayerOutput(
            states=self._buffers.copy_states(),
            scores=None if scores is None else scores[:, : len(layout)],
            units=self._buffers.units[: layout.strided(stride).total].clone() if keeps_units else None,
        )
