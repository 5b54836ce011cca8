"""Cost of stages and shapes, measured by speed.py: front end and layers against a matrix product; many lengths."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Iterator
from unittest import mock

import torch
from torch import Tensor

from benchmarks.shared.paired import Times, time_in_turns
from benchmarks.shared.recordings import SAMPLE_RATE, make_noise
from benchmarks.shared.results import Row
from benchmarks.speed.measures import FLOAT_PRECISIONS, SIZES, compare_times, make_backbone, make_row, run_over
from daisy.calibration import cost
from daisy.encoder import EarlyExitEncoder
from daisy.models.packing import PackedLayout
from daisy.policies import Never
from daisy.runtime import attention, cpu_front_end, cuda_graphs, linear
from daisy.runtime.dtypes import Precision
from daisy.runtime.packing_cache import pack_backbone

PRODUCTS = 20
"""Number of matrix products in a call: one takes too little time."""


def measure_stages(quick: bool, device: str) -> list[Row]:
    """Measure front end and layers, plain modules and ours, and the machine's matrix product in the same turns."""
    return [
        row
        for size in SIZES
        for precision in FLOAT_PRECISIONS
        for row in _measure_stages(size, precision, 3 if quick else 10, 3 if quick else 9)
    ]


def _measure_stages(size: str, precision: Precision, seconds: int, repeats: int) -> list[Row]:
    stages = Stages(size, precision, seconds)
    calls = {
        "front end before": stages.run_plain_front_end,
        "layers before": stages.run_plain_layers,
        "front end": stages.run_front_end,
        "layers": stages.run_layers,
        "product": stages.run_products,
    }
    times = time_in_turns(calls, repeats)
    rates = {name: stages.count_macs(name) / times[name].median for name in ("front end", "layers", "product")}
    rows = []
    for stage, other in (("front end", "layers"), ("layers", "front end")):
        faster, low, high = times[f"{stage} before"].over(times[stage])
        rows.append(
            make_row(
                "stages",
                size=size,
                precision=precision,
                stage=stage,
                seconds=times[stage].median,
                faster=faster,
                faster_low=low,
                faster_high=high,
                share_before=_median_share(times[f"{stage} before"], times[f"{other} before"]),
                share=_median_share(times[stage], times[other]),
                macs_per_sec=rates[stage],
                of_product=rates[stage] / rates["product"],
            )
        )
    return rows


def _median_share(stage: Times, other: Times) -> float:
    """Return the median over turns of a stage's share of the time of both stages."""
    return statistics.median(x / (x + y) for x, y in zip(stage.seconds, other.seconds, strict=True))


class Stages:
    """The stages to time, in one size and precision, on noise of a given length in seconds.

    Plain stages are the modules of `daisy.models`, with the same operations as torchaudio's; bfloat16 is by autocast.
    """

    def __init__(self, size: str, precision: Precision, seconds: int):
        self.backbone, self.precision = make_backbone(size), precision
        self.waveform = make_noise(seconds * SAMPLE_RATE)
        self.num_samples = torch.tensor([len(self.waveform)])
        self.packed = pack_backbone(self.backbone, precision)
        self.plain_states, self.num_frames = self.run_plain_front_end()
        self.layout = PackedLayout(self.num_frames)
        self.states = self.run_front_end()
        config, dtype = self.backbone.config, self.packed.dtype
        self.inputs = torch.randn(self.layout.total, config.width).to(dtype)
        self.weights = torch.randn(config.width, config.ffn_width).to(dtype)

    def _autocast(self) -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16, enabled=self.precision == "bfloat16")

    @torch.no_grad()
    def run_plain_front_end(self) -> tuple[Tensor, Tensor]:
        """Run the plain front end: layer 0 (1, T, D), and its number of frames (1,)."""
        with self._autocast():
            features, num_frames = self.backbone.front_end(self.waveform[None], self.num_samples)
            return self.backbone.embed(features, num_frames), num_frames

    @torch.no_grad()
    def run_front_end(self) -> Tensor:
        """Run the packed front end: layer 0 (T, D)."""
        return self.packed.embed(self.packed.front_end([self.waveform]), self.layout)

    @torch.no_grad()
    def run_plain_layers(self) -> None:
        """Run all plain layers."""
        states = self.plain_states
        with self._autocast():
            for layer in range(1, self.backbone.config.num_layers + 1):
                states = self.backbone.layer(layer, states, self.num_frames)

    @torch.no_grad()
    def run_layers(self) -> None:
        """Run all packed layers."""
        states = self.states
        for layer in range(1, self.backbone.config.num_layers + 1):
            states, _ = self.packed.layer(layer, states, self.layout)

    def run_products(self) -> None:
        """Run `PRODUCTS` products with the shape of a layer's first feed-forward projection."""
        for _ in range(PRODUCTS):
            torch.mm(self.inputs, self.weights)

    def count_macs(self, stage: str) -> float:
        """Count a stage's multiply-accumulates with `daisy.calibration.cost`, or those of the products."""
        config, frames = self.backbone.config, self.layout.total
        if stage == "product":
            return float(PRODUCTS * frames * config.width * config.ffn_width)
        times, macs = (
            (1, cost.count_front_end_macs) if stage == "front end" else (config.num_layers, cost.count_layer_macs)
        )
        return times * sum(c * frames**power for power, c in enumerate(macs(config)))


@contextlib.contextmanager
def exact_row_counts() -> Iterator[None]:
    """Run products with exactly as many rows as there are frames, without added rows."""
    with contextlib.ExitStack() as patches:
        for module in (attention, cpu_front_end, cuda_graphs, linear):
            patches.enter_context(mock.patch.object(module, "round_up_rows", int))
        yield


def measure_shapes(quick: bool, device: str) -> list[Row]:
    """Measure recordings of many lengths one by one; a turn of one system evicts the compiled code of the other."""
    backbone, rows = make_backbone("mini"), []
    generator = torch.Generator().manual_seed(0)
    counts = (100 + torch.randperm(10 if quick else 200, generator=generator)).tolist()
    span, hop = backbone.config.frame_span, backbone.config.frame_hop
    waveforms = [make_noise(span + (count - 1) * hop, generator) for count in counts]
    for precision in FLOAT_PRECISIONS:
        encoder = EarlyExitEncoder(backbone, None, Never(), dtype=precision)
        run_shared = run_over(encoder, [[waveform] for waveform in waveforms])
        run_exact = exact_row_counts()(run_shared)
        times = time_in_turns({"shared": run_shared, "own": run_exact}, 3)
        comparison = compare_times(times, "own", "shared")
        rows.append(make_row("shapes", precision=precision, lengths=len(counts), **comparison))
    return rows
