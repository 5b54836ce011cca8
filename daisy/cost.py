"""What each part costs: multiply-accumulates, exact for the shapes and blind to memory; or seconds on this machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from daisy.backbone import Backbone, BackboneConfig
from daisy.heads import ExitHeads, HeadsConfig
from daisy.scores import SCORES, Reading


class Cost(NamedTuple):
    """Cost of an utterance of T frames: constant + linear T + quadratic T^2."""

    constant: float
    linear: float
    quadratic: float

    def of(self, num_frames: float) -> float:
        """Cost of an utterance."""
        return self.constant + num_frames * (self.linear + num_frames * self.quadratic)


def front_end(config: BackboneConfig) -> Cost:
    """Convolutions, projection to the layers' width, and positional convolution, in multiply-accumulates.

    A convolution is counted at T times its outputs a frame; the few more that the recording's ends need are left out.
    """
    channels, macs, outputs = 1, 0.0, config.frame_hop
    for width, kernel, stride in config.conv_layers:
        outputs //= stride
        macs += outputs * kernel * channels * width
        channels = width
    macs += channels * config.width
    macs += config.pos_kernel * config.width * config.width / config.pos_groups
    return Cost(0.0, macs, 0.0)


def layer(config: BackboneConfig) -> Cost:
    """One transformer layer: four projections, attention over all frames, feed-forward."""
    projections = 4 * config.width**2 + 2 * config.width * config.ffn_width
    return Cost(0.0, float(projections), 2.0 * config.width)


def head(config: HeadsConfig, stride: int = 1) -> Cost:
    """One layer's unit classifier, at every ``stride``-th frame."""
    return Cost(0.0, config.width * config.num_units / stride, 0.0)


@torch.no_grad()
def seconds_by_layer(
    backbone: Backbone, heads: ExitHeads, waveforms: Sequence[Tensor], scores: Iterable[str], repeats: int = 3
) -> Tensor:
    """(L,) seconds of running the front end and layers 1 to l with their scores, utterance by utterance.

    The median over ``repeats`` of the sum over the utterances, so that what else the machine did hardly shows.
    """
    names = sorted(set(scores) - {"draw"})
    runs = [_timed(backbone, heads, waveforms, names) for _ in range(repeats)]
    return torch.tensor([statistics.median(times) for times in zip(*runs, strict=True)])


def _timed(backbone: Backbone, heads: ExitHeads, waveforms: Sequence[Tensor], names: list[str]) -> list[float]:
    num_layers = backbone.config.num_layers
    marks = [0.0] * num_layers
    for waveform in waveforms:
        start = time.perf_counter()
        features, num_frames = backbone.front_end(waveform[None].to(backbone.device), torch.tensor([len(waveform)]))
        states, before = backbone.embed(features, num_frames), None
        for layer in range(1, num_layers + 1):
            states, feed_forward = backbone.layer_with_feed_forward(layer, states, num_frames)
            read = feed_forward if heads.config.reads == "feed_forward" else states
            reading = Reading(heads, layer, read, num_frames, before)
            for name in names:
                SCORES[name](reading).cpu()
            before = reading.units if "change" in names else None
            marks[layer - 1] += time.perf_counter() - start
    return marks
