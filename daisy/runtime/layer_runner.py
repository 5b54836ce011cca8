"""A layer and its scores: what the exit loop runs between two decisions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from daisy.models import Backbone, ExitHeads
from daisy.models.packing import FrameLayout, PackedLayout
from daisy.policies.scores import SCORES, WITHOUT_HEADS, HeadOutputs
from daisy.runtime.packed_backbone import PackedBackbone
from daisy.runtime.packed_heads import PackedHeads


@dataclass(frozen=True)
class LayerOutput:
    """What one layer gives."""

    states: Tensor
    """(F, D)."""
    scores: Tensor | None
    """(S, B) float32 on the device, of `LayerRunner.score_names`; None where there are none."""
    units: Tensor | None
    """(F',) the likeliest, where a score compares them with the next layer's."""
    head_outputs: HeadOutputs | None = None
    """What the scores were made from, where that is still there."""


class LayerRunner(ABC):
    """A backbone from waveforms to layer 0, and from layer to layer with the scores that heads give.

    Args:
        heads: the exit heads, where a score reads any.
        score_names: scores; those that need no head are left out.
        score_stride: of the frames that the heads look at.
    """

    def __init__(self, heads: PackedHeads | ExitHeads | None, score_names: Iterable[str], score_stride: int):
        self.heads, self.score_stride = heads, score_stride
        self.return_feed_forward = heads is not None and heads.config.reads == "feed_forward"
        self.score_names = sorted(set(score_names) - WITHOUT_HEADS)

    @contextmanager
    def batch_session(self, with_head_outputs: bool) -> Iterator[LayerRunner]:
        """Give what runs one batch; ``with_head_outputs``: `LayerOutput.head_outputs` is asked for."""
        yield self

    @abstractmethod
    def begin(self, waveforms: Sequence[Tensor], layout: PackedLayout) -> Tensor:
        """Run the front end: waveforms (N_b,) float32 to layer 0, (F, D)."""

    @abstractmethod
    def layer(self, layer: int, states: Tensor, layout: PackedLayout, previous_units: Tensor | None) -> LayerOutput:
        """Run layer ``layer`` on the states of the layer before, (F, D).

        Scores are to be read before the next call.
        """

    def _score(
        self, layer: int, states: Tensor, features: Tensor, layout: FrameLayout, previous_units: Tensor | None
    ) -> LayerOutput:
        outputs = HeadOutputs(self.heads, layer, features, layout, previous_units, stride=self.score_stride)
        scores = [SCORES[name](outputs).float() for name in self.score_names]
        return LayerOutput(
            states=states,
            scores=torch.stack(scores) if scores else None,
            units=outputs.units if "change" in self.score_names else None,
            head_outputs=outputs,
        )


class PackedLayerRunner(LayerRunner):
    """The packed backbone, layer by layer."""

    def __init__(
        self, backbone: PackedBackbone, heads: PackedHeads | None, score_names: Iterable[str], score_stride: int = 1
    ):
        super().__init__(heads, score_names, score_stride)
        self.backbone = backbone

    @property
    def parts(self) -> tuple[object, object]:
        """What it was made of: backbone and heads."""
        return self.backbone, self.heads

    def begin(self, waveforms: Sequence[Tensor], layout: PackedLayout) -> Tensor:
        return self.backbone.embed(self.backbone.front_end(waveforms), layout)

    def layer(self, layer: int, states: Tensor, layout: FrameLayout, previous_units: Tensor | None) -> LayerOutput:
        states, features = self.backbone.layer(layer, states, layout, self.return_feed_forward)
        return self._score(layer, states, features, layout, previous_units)


class PlainLayerRunner(LayerRunner):
    """The plain modules, on padded batches: hooks on them fire, and ``torch.compile`` sees ordinary modules."""

    def __init__(self, backbone: Backbone, heads: ExitHeads | None, score_names: Iterable[str], score_stride: int = 1):
        super().__init__(heads, score_names, score_stride)
        self.backbone = backbone

    def begin(self, waveforms: Sequence[Tensor], layout: PackedLayout) -> Tensor:
        num_samples = torch.tensor([len(waveform) for waveform in waveforms])
        padded = torch.nn.utils.rnn.pad_sequence(list(waveforms), batch_first=True)
        features, num_frames = self.backbone.front_end(padded, num_samples)
        return layout.unpad(self.backbone.embed(features, num_frames))

    def layer(self, layer: int, states: Tensor, layout: PackedLayout, previous_units: Tensor | None) -> LayerOutput:
        states, feed_forward = (
            layout.unpad(padded)
            for padded in self.backbone.layer_with_feed_forward(layer, layout.pad(states), layout.num_frames)
        )
        features = feed_forward if self.return_feed_forward else states
        return self._score(layer, states, features, layout, previous_units)
