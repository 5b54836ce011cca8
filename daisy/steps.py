"""A layer and its scores: what the exit loop runs between two decisions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from daisy.inference import Inference, PreparedHeads
from daisy.layout import Layout
from daisy.scores import SCORES, WITHOUT_HEADS, Reading


@dataclass(frozen=True)
class Step:
    """Of one layer."""

    states: Tensor
    """(F, D)."""
    scores: Tensor | None
    """(S, B) float32 on the device, of `Steps.names`; None where there are none."""
    units: Tensor | None
    """(F',) the likeliest, where a score compares them with the next layer's."""
    reading: Reading | None = None
    """What the scores were made from, where that is still there."""


class Steps:
    """A backbone from waveforms to layer 0, and from layer to layer with the scores that heads give.

    Args:
        inference: the backbone.
        heads: the exit heads, where a score reads any.
        names: of scores; those that need no head are left out.
        stride: of the frames that the heads look at.
    """

    def __init__(self, inference: Inference, heads: PreparedHeads | None, names: Iterable[str], stride: int = 1):
        self.inference, self.heads, self.stride = inference, heads, stride
        self.names = sorted(set(names) - WITHOUT_HEADS)
        self.apart = heads is not None and heads.config.reads == "feed_forward"

    @contextmanager
    def held(self, with_readings: bool) -> Iterator[Steps]:
        """What to run one batch with; ``with_readings``: `Step.reading` is asked for."""
        yield self

    def begin(self, waveforms: Sequence[Tensor], layout: Layout) -> Tensor:
        """Waveforms (N_b,) float32 to layer 0, (F, D)."""
        return self.inference.embed(self.inference.front_end(waveforms), layout)

    def layer(self, layer: int, states: Tensor, layout: Layout, units_before: Tensor | None) -> Step:
        """Layer ``layer - 1`` (F, D) to layer ``layer``; scores are to be read before the next call."""
        states, read = self.inference.layer(layer, states, layout, self.apart)
        reading = Reading(self.heads, layer, read, layout, units_before, stride=self.stride)
        scores = [SCORES[name](reading).float() for name in self.names]
        return Step(
            states=states,
            scores=torch.stack(scores) if scores else None,
            units=reading.units if "change" in self.names else None,
            reading=reading,
        )
