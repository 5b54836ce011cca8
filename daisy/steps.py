"""A layer and its scores: what the exit loop runs between two decisions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
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


Run = Callable[[int, Tensor, Layout, Tensor | None], Step]
"""A layer, the states before it, whose they are, and the units before it."""


class Steps:
    """The layers of a backbone with the scores that heads give.

    Args:
        inference: the layers.
        heads: the exit heads, where a score reads any.
        names: of scores; those that need no head are left out.
        stride: of the frames that the heads look at.
    """

    def __init__(self, inference: Inference, heads: PreparedHeads | None, names: Iterable[str], stride: int = 1):
        self.inference, self.heads, self.stride = inference, heads, stride
        self.names = sorted(set(names) - WITHOUT_HEADS)
        self.apart = heads is not None and heads.config.reads == "feed_forward"

    @contextmanager
    def held(self, for_graphs: bool) -> Iterator[Run]:
        """What to call for the layers of one batch; ``for_graphs``: nobody asks for the readings."""
        yield self.eager

    def eager(self, layer: int, states: Tensor, layout: Layout, units_before: Tensor | None) -> Step:
        """Layer ``layer - 1`` (F, D) to layer ``layer``."""
        states, read = self.inference.layer(layer, states, layout, self.apart)
        reading = Reading(self.heads, layer, read, layout, units_before, stride=self.stride)
        scores = [SCORES[name](reading).float() for name in self.names]
        return Step(
            states=states,
            scores=torch.stack(scores) if scores else None,
            units=reading.units if "change" in self.names else None,
            reading=reading,
        )
