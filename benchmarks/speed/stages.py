"""What `speed.py` times of the network's stages: the front end, the layers, and a matrix product."""

from __future__ import annotations

import torch
from latency import RATE, backbone_of
from torch import Tensor

from daisy.calibration import cost
from daisy.models.packing import PackedLayout
from daisy.runtime.packing_cache import pack_backbone


class Stages:
    """Of one size and precision, on noise of so many seconds; "before" is the plain modules."""

    def __init__(self, size: str, dtype: str, seconds: int):
        self.backbone, self.dtype = backbone_of(size), dtype
        self.waveform = 0.1 * torch.randn(seconds * RATE)
        self.num_samples = torch.tensor([len(self.waveform)])
        self.packed = pack_backbone(self.backbone, dtype)
        self.states, self.num_frames = self.front_end_before()
        self.layout = PackedLayout(self.num_frames)
        self.embedded = self.front_end()
        config, kind = self.backbone.config, self.packed.dtype
        self.a = torch.randn(self.layout.total, config.width).to(kind)
        self.b = torch.randn(config.width, config.ffn_width).to(kind)

    def _cast(self) -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16, enabled=self.dtype == "bfloat16")

    @torch.no_grad()
    def front_end_before(self) -> tuple[Tensor, Tensor]:
        with self._cast():
            features, num_frames = self.backbone.front_end(self.waveform[None], self.num_samples)
            return self.backbone.embed(features, num_frames), num_frames

    @torch.no_grad()
    def front_end(self) -> Tensor:
        return self.packed.embed(self.packed.front_end([self.waveform]), self.layout)

    def layers_before(self) -> None:
        states = self.states
        with self._cast():
            for layer in range(1, self.backbone.config.num_layers + 1):
                states = self.backbone.layer(layer, states, self.num_frames)

    def layers(self) -> None:
        states = self.embedded
        for layer in range(1, self.backbone.config.num_layers + 1):
            states, _ = self.packed.layer(layer, states, self.layout)

    def product(self) -> None:
        for _ in range(20):
            torch.mm(self.a, self.b)

    def macs(self, stage: str) -> float:
        """Of a stage, by `daisy.calibration.cost`; of 20 products."""
        config, frames = self.backbone.config, self.layout.total
        if stage == "product":
            return 20.0 * frames * config.width * config.ffn_width
        times, each = (1, cost.front_end_macs) if stage == "front end" else (config.num_layers, cost.layer_macs)
        return times * sum(c * frames**power for power, c in enumerate(each(config)))
