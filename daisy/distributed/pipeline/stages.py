"""Run a worker's share of the model on one utterance at a time, until the utterance exits or the layers end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor

from daisy.checkpoints import Model
from daisy.checkpoints.model import HeadsKind
from daisy.distributed.pipeline.model_parts import ModelPart, build_part
from daisy.distributed.pipeline.rules import RUN_ALL
from daisy.distributed.pipeline.wire import PackedStates, pack_states, unpack_states, unpack_waveform
from daisy.distributed.pipeline.workload import Wire
from daisy.encoder import EarlyExitEncoder
from daisy.errors import UsageError
from daisy.models import Backbone, CTCHeads
from daisy.models.lengths import count_frames
from daisy.models.packing import PackedLayout
from daisy.policies import Never, Policy
from daisy.policies.scores import HeadOutputs, make_draws
from daisy.runtime.batch_state import BatchState
from daisy.runtime.dtypes import Precision
from daisy.runtime.exit_loop import run_layers
from daisy.runtime.layer_runner import ConformerLayerRunner, LayerRunner, PackedLayerRunner
from daisy.runtime.packed_backbone import PackedBackbone
from daisy.runtime.packed_heads import PackedCTCHeads, PackedHeads


@dataclass(frozen=True, kw_only=True)
class ExitSettings:
    """Settings of exits, the same for all parts of a system."""

    levels: tuple[Policy, ...]
    """Policies, latest exits first."""
    exits: tuple[int, ...]
    """Layers at which utterances may exit."""
    score_stride: int = 1
    precision: Precision = "float32"
    """Precision in which layers compute."""
    wire: Wire = "float32"
    """Format of states on links."""

    @property
    def score_names(self) -> list[str]:
        """Names of the scores that at least one level reads."""
        return sorted({name for level in self.levels for name in level.reads})

    def policy(self, level: int) -> Policy:
        """Return a level's policy."""
        return Never() if level == RUN_ALL else self.levels[level]


@dataclass(frozen=True, kw_only=True)
class Package:
    """An utterance on its way: its waveform, or states with the scores so far."""

    waveform: NDArray[Any] | None = None
    """Waveform (N,), by `daisy.distributed.pipeline.wire.pack_waveform`."""
    states: PackedStates | None = None
    """States (T, D) after the last executed layer."""
    scores: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    """Scores at the exits so far."""
    previous_units: NDArray[numpy.int32] | None = None
    """Units (T',) of the last exit, if a score compares with them."""
    draw: float | None = None

    @property
    def num_bytes(self) -> int:
        """Bytes that go over the link, except names and lengths."""
        arrays = (self.waveform, self.previous_units)
        size = sum(array.nbytes for array in arrays if array is not None)
        size += 0 if self.states is None else self.states.num_bytes
        return size + 4 * sum(map(len, self.scores.values())) + (0 if self.draw is None else 4)


@dataclass(frozen=True, kw_only=True)
class Left:
    """An utterance that has exited."""

    exit_layer: int
    units: NDArray[numpy.int32] | None
    """Most likely units (T',) at the exit, of the frames that heads look at; None without heads."""
    states: NDArray[Any] | None = None
    """States (T, D) of the exit layer, if wanted."""

    @property
    def num_bytes(self) -> int:
        """Bytes of the answer: two per unit, and the states."""
        units = 0 if self.units is None else 2 * self.units.size
        return units + (0 if self.states is None else self.states.nbytes)


def make_exit_settings(
    model: Model, levels: Sequence[Policy], *, heads: HeadsKind | None = None, wire: Wire = "float32", **settings: Any
) -> ExitSettings:
    """Check that policies fit a model, and collect the settings that its parts need.

    Args:
        model: model that is cut into parts.
        levels: policies, latest exits first.
        heads: kind of heads whose scores they read; see `daisy.checkpoints.Model.exit_heads`.
        wire: format of states on links.
        settings: ``exits``, ``score_stride`` and ``dtype`` of `daisy.EarlyExitEncoder`.

    Raises:
        UsageError: if there are no levels.
        PolicyError, CheckpointError: as `daisy.EarlyExitEncoder` does.
    """
    if not levels:
        raise UsageError("a pipeline needs at least one exit policy")
    encoders = [EarlyExitEncoder(model.backbone, model.exit_heads(heads), level, **settings) for level in levels]
    first = encoders[0]
    return ExitSettings(
        levels=tuple(levels),
        exits=first.exits,
        score_stride=first.score_stride,
        precision=first.dtype,
        wire=wire,
    )


class StageModel:
    """Run some layers on one utterance at a time, until the utterance exits or the layers end.

    Args:
        part: the layers.
        settings: settings of exits.
        device: device to compute on.
        keep_states: whether answers include the exit layer's states.
    """

    def __init__(self, part: ModelPart, settings: ExitSettings, device: str = "cpu", *, keep_states: bool = False):
        self.part, self.settings, self.keep_states = part, settings, keep_states
        self.backbone, self.heads = build_part(part, device)
        self._runner = self._make_runner()

    @property
    def num_bytes(self) -> int:
        """Bytes of the weights that this part really has."""
        modules = [self.backbone, *([] if self.heads is None else [self.heads])]
        tensors = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors if not tensor.is_meta)

    @torch.no_grad()
    def run(self, package: Package, layers: range, level: int) -> Package | Left:
        """Run layers of this part on an utterance.

        Args:
            package: utterance before these layers.
            layers: consecutive layers.
            level: exit level.

        Returns:
            The utterance after these layers or, if it exited, the result.
        """
        batch, states = self._begin(package)
        observed: list[HeadOutputs] = []
        last = run_layers(
            self._runner, batch, states, layers, self.settings.policy(level), observe=lambda seen: _note(observed, seen)
        )
        if len(batch.active):
            return self._pack(batch, last)
        units = observed[-1].units.int().cpu().numpy() if observed and self.heads is not None else None
        kept = batch.kept[0][-1].float().cpu().numpy() if self.keep_states else None
        return Left(exit_layer=int(batch.exit_layer[0]), units=units, states=kept)

    def _begin(self, package: Package) -> tuple[BatchState, Tensor]:
        """Restore the exit loop's state."""
        config, settings, device = self.backbone.config, self.settings, self.backbone.device
        if package.waveform is not None:
            waveform = unpack_waveform(package.waveform).to(device)
            frames = int(count_frames(len(waveform), config.conv_layers))
        else:
            assert package.states is not None
            received = unpack_states(package.states).to(device)
            frames = len(received)
        layout = PackedLayout(torch.tensor([frames]), device)
        batch = BatchState(
            layout, settings.exits, settings.score_names, keep_all=False, score_stride=settings.score_stride
        )
        for name, values in package.scores.items():
            batch.scores[name][0, : len(values)] = torch.tensor(values)
        if package.previous_units is not None:
            batch.previous_units = torch.from_numpy(numpy.array(package.previous_units)).long().to(device)
        if package.draw is not None:
            batch.draws = torch.tensor([package.draw])
        if package.waveform is not None:
            if "draw" in settings.score_names:
                batch.draws = make_draws([waveform])
            states = self._runner.begin([waveform], layout)
        else:
            states = received.to(torch.bfloat16 if settings.precision == "bfloat16" else torch.float32)
        batch.record_states(states)
        return batch, states

    def _pack(self, batch: BatchState, states: Tensor) -> Package:
        scores = {}
        for name, values in batch.scores.items():
            row = values[0].tolist()
            while row and row[-1] != row[-1]:  # exits that were not reached
                row.pop()
            scores[name] = tuple(row)
        units = batch.previous_units
        return Package(
            states=pack_states(states, self.settings.wire),
            scores=scores,
            previous_units=None if units is None else units.int().cpu().numpy(),
            draw=None if batch.draws is None else float(batch.draws[0]),
        )

    def _make_runner(self) -> LayerRunner:
        settings, layers = self.settings, range(self.part.first, self.part.last + 1)
        rest = (settings.score_names, settings.score_stride, settings.exits)
        if not isinstance(self.backbone, Backbone):
            return ConformerLayerRunner(self.backbone, self.heads, *rest)
        packed_heads: PackedHeads | PackedCTCHeads | None = None
        if isinstance(self.heads, CTCHeads):
            packed_heads = PackedCTCHeads(self.heads, settings.precision, layers)
        elif self.heads is not None:
            packed_heads = PackedHeads(self.heads, settings.precision, layers)
        return PackedLayerRunner(PackedBackbone(self.backbone, settings.precision, layers), packed_heads, *rest)


def _note(observed: list[HeadOutputs], seen: HeadOutputs) -> None:
    """Keep only the last exit's outputs."""
    observed[:] = [seen]
