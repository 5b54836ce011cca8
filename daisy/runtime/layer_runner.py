"""Run a layer and its scores, as the exit loop does between two decisions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from daisy.models import Backbone, Conformer, Whisper
from daisy.models.kinds import AnyBackbone, AnyHeads
from daisy.models.packing import FrameLayout, PackedLayout
from daisy.policies.scores import COMPARING, WITHOUT_HEADS, HeadOutputs, Heads, compute_scores
from daisy.runtime.packed_backbone import PackedBackbone
from daisy.runtime.packed_heads import PackedCTCHeads, PackedHeads

MAX_GROUP_FRAMES, MAX_PADDED_FRAMES = 256, 24
"""Limits for a Conformer's utterances that run together on a CPU: frames in all, and padding of the shortest. A single
utterance takes as long as one with 30 frames more, and from some hundred frames on larger products save nothing
(31.5 M parameters, one thread)."""


@dataclass(frozen=True)
class LayerOutput:
    """Output of one layer."""

    states: Tensor
    """States, (F, D)."""
    scores: Tensor | None
    """(S, B) float32 on the device, for `LayerRunner.score_names`; None if there are none."""
    units: Tensor | None
    """The likeliest units, (F',), if a score compares them with the next exit's."""
    head_outputs: HeadOutputs | None = None
    """Head outputs that the scores were computed from, if still available."""


class LayerRunner(ABC):
    """Runs a backbone from waveforms to layer 0, and from layer to layer with the scores of the heads.

    Args:
        heads: exit heads, if a score reads any.
        score_names: names of scores; those that need no head are left out.
        score_stride: stride of the frames that the heads look at.
        exits: layers whose scores are computed; None: all.
    """

    def __init__(
        self,
        heads: Heads | None,
        score_names: Iterable[str],
        score_stride: int,
        exits: Sequence[int] | None = None,
    ):
        self.heads, self.score_stride = heads, score_stride
        self.exits = None if exits is None else frozenset(exits)
        self.return_feed_forward = heads is not None and heads.config.reads == "feed_forward"
        self.score_names = sorted(set(score_names) - WITHOUT_HEADS)

    @contextmanager
    def batch_session(self, with_head_outputs: bool) -> Iterator[LayerRunner]:
        """Yield the runner for one batch; ``with_head_outputs``: whether `LayerOutput.head_outputs` is asked for."""
        yield self

    @abstractmethod
    def begin(self, waveforms: Sequence[Tensor], layout: PackedLayout) -> Tensor:
        """Run the front end: waveforms (N_b,) float32 to layer 0, (F, D)."""

    @abstractmethod
    def layer(self, layer: int, states: Tensor, layout: PackedLayout, previous_units: Tensor | None) -> LayerOutput:
        """Run layer ``layer`` on the states of the layer before, (F, D).

        Scores must be read before the next call.
        """

    def is_exit(self, layer: int) -> bool:
        """Tell whether scores are computed at a layer."""
        return self.exits is None or layer in self.exits

    @property
    def keeps_units(self) -> bool:
        """Whether a score compares an exit's units with those of the exit before."""
        return not COMPARING.isdisjoint(self.score_names)

    def _score(
        self, layer: int, states: Tensor, features: Tensor, layout: FrameLayout, previous_units: Tensor | None
    ) -> LayerOutput:
        if not self.is_exit(layer):
            return LayerOutput(states=states, scores=None, units=None)
        outputs = HeadOutputs(self.heads, layer, features, layout, previous_units, stride=self.score_stride)
        return LayerOutput(
            states=states,
            scores=compute_scores(self.score_names, outputs) if self.score_names else None,
            units=outputs.units if self.keeps_units else None,
            head_outputs=outputs,
        )


class PackedLayerRunner(LayerRunner):
    """Runs the packed backbone, layer by layer."""

    def __init__(
        self,
        backbone: PackedBackbone,
        heads: PackedHeads | PackedCTCHeads | None,
        score_names: Iterable[str],
        score_stride: int = 1,
        exits: Sequence[int] | None = None,
    ):
        super().__init__(heads, score_names, score_stride, exits)
        self.backbone = backbone

    @property
    def parts(self) -> tuple[object, object]:
        """The packed backbone and heads that this runner was made with."""
        return self.backbone, self.heads

    def begin(self, waveforms: Sequence[Tensor], layout: PackedLayout) -> Tensor:
        return self.backbone.embed(self.backbone.front_end(waveforms), layout)

    def layer(self, layer: int, states: Tensor, layout: FrameLayout, previous_units: Tensor | None) -> LayerOutput:
        states, features = self.backbone.layer(layer, states, layout, self.return_feed_forward)
        return self._score(layer, states, features, layout, previous_units)


class PlainLayerRunner(LayerRunner):
    """Runs the plain modules on padded batches: hooks on them fire, and ``torch.compile`` sees ordinary modules."""

    def __init__(
        self,
        backbone: AnyBackbone,
        heads: AnyHeads | None,
        score_names: Iterable[str],
        score_stride: int = 1,
        exits: Sequence[int] | None = None,
    ):
        super().__init__(heads, score_names, score_stride, exits)
        self.backbone = backbone

    def begin(self, waveforms: Sequence[Tensor], layout: PackedLayout) -> Tensor:
        num_samples = torch.tensor([len(waveform) for waveform in waveforms])
        padded = torch.nn.utils.rnn.pad_sequence(list(waveforms), batch_first=True)
        features, num_frames = self.backbone.front_end(padded, num_samples)
        return layout.unpad(self.backbone.embed(features, num_frames))

    def layer(self, layer: int, states: Tensor, layout: PackedLayout, previous_units: Tensor | None) -> LayerOutput:
        assert isinstance(self.backbone, Backbone)
        states, feed_forward = (
            layout.unpad(padded)
            for padded in self.backbone.layer_with_feed_forward(layer, layout.pad(states), layout.num_frames)
        )
        features = feed_forward if self.return_feed_forward else states
        return self._score(layer, states, features, layout, previous_units)


class ConformerLayerRunner(PlainLayerRunner):
    """Runs a Conformer's layers, and Splitformer's half-rate layers, which need the input of their block.

    On CPUs short utterances of about the same length run together, and longer ones alone: padding would cost more than
    larger products save. If padding changes results (``mask_padding=False``), each utterance runs alone, without any.
    No utterance leaves inside a block with a half-rate layer (`daisy.encoder`), so its batch stays the same.
    """

    _block_input: Tensor | None = None

    def layer(self, layer: int, states: Tensor, layout: PackedLayout, previous_units: Tensor | None) -> LayerOutput:
        assert isinstance(self.backbone, Conformer)
        entered = self._find_block_input(layer, states)
        rows, entered_rows = states.split(layout.seqlens_list), entered.split(layout.seqlens_list)
        outputs: dict[int, Tensor] = {}
        for group in self._group(layout):
            padded, padded_entered = (
                torch.nn.utils.rnn.pad_sequence([of[index] for index in group], batch_first=True)
                for of in (rows, entered_rows)
            )
            run = self.backbone.layer(layer, padded, layout.num_frames[group], padded_entered)
            outputs |= {index: of[: len(rows[index])] for index, of in zip(group, run, strict=True)}
        states = torch.cat([outputs[index] for index in range(len(layout))])
        return self._score(layer, states, states, layout, previous_units)

    def _find_block_input(self, layer: int, states: Tensor) -> Tensor:
        """Return the input of a layer's block, and drop it at the end of the block."""
        assert isinstance(self.backbone, Conformer)
        config = self.backbone.config
        if not config.split_blocks:
            return states
        entered = states if (layer - 1) % config.block_layers == 0 else self._block_input
        assert entered is not None, f"layer {layer} is run without those before it in its block"
        self._block_input = None if layer % config.block_layers == 0 else entered
        return entered

    def _group(self, layout: PackedLayout) -> list[list[int]]:
        """Return groups of utterances to run together, by index."""
        assert isinstance(self.backbone, Conformer)
        if not self.backbone.config.mask_padding:
            return [[index] for index in range(len(layout))]
        if layout.device.type != "cpu":
            return [list(range(len(layout)))]
        return group_by_length(layout.seqlens_list)


class WhisperLayerRunner(PlainLayerRunner):
    """Runs Whisper's layers, which attend to the silence after an utterance too; nothing else sees it.

    Whole windows are kept from layer to layer, for the utterances that have not left.
    """

    _windows: Tensor
    _members: Tensor

    def begin(self, waveforms: Sequence[Tensor], layout: PackedLayout) -> Tensor:
        assert isinstance(self.backbone, Whisper)
        num_samples = torch.tensor([len(waveform) for waveform in waveforms])
        padded = torch.nn.utils.rnn.pad_sequence(list(waveforms), batch_first=True)
        features, num_frames = self.backbone.front_end(padded, num_samples)
        self._windows, self._members = self.backbone.embed(features, num_frames), layout.members
        return layout.unpad(self._windows)

    def layer(self, layer: int, states: Tensor, layout: PackedLayout, previous_units: Tensor | None) -> LayerOutput:
        assert isinstance(self.backbone, Whisper)
        if len(layout) < len(self._members):
            kept = torch.isin(self._members, layout.members)
            self._windows, self._members = self._windows[kept.to(self._windows.device)], layout.members
        self._windows = self.backbone.layer(layer, self._windows, layout.num_frames)
        states = layout.unpad(self._windows)
        return self._score(layer, states, states, layout, previous_units)


def group_by_length(lengths: Sequence[int]) -> list[list[int]]:
    """Group utterances of these lengths in frames so that padding is small, the longest first."""
    groups: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        longest = lengths[groups[-1][0]] if groups else 0
        fits = groups and longest - lengths[index] <= MAX_PADDED_FRAMES
        if fits and longest * (len(groups[-1]) + 1) <= MAX_GROUP_FRAMES:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups
