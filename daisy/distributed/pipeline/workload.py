"""The utterances that a system processes, with their exits, fidelity, sizes and times as plain numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from daisy.distributed.pipeline.rules import RUN_ALL
from daisy.errors import UsageError

if TYPE_CHECKING:
    from daisy.calibration.traces import Traces
    from daisy.policies import Policy

Wire = Literal["float32", "bfloat16", "int8"]
"""Format of states on links; see `daisy.distributed.pipeline.wire`."""
BYTES_PER_SAMPLE: dict[Wire, int] = {"float32": 4, "bfloat16": 2, "int8": 2}
BYTES_PER_VALUE: dict[Wire, int] = {"float32": 4, "bfloat16": 2, "int8": 1}
BYTES_PER_FRAME: dict[Wire, int] = {"float32": 0, "bfloat16": 0, "int8": 4}
"""Bytes per frame in addition to the values: int8 has a scale."""
SAMPLE_RATE = 16000


@dataclass(frozen=True, kw_only=True)
class Workload:
    """n utterances under V exit levels, for a model with L layers."""

    names: tuple[str, ...]
    exit_layers: tuple[tuple[int, ...], ...]
    """Layer at which each utterance exits, (V, n)."""
    fidelity: tuple[tuple[float, ...], ...]
    """How much of the full model's output an exit after each layer keeps, (n, L), from 0 to 1."""
    num_frames: tuple[int, ...]
    """Frames, (n,)."""
    num_samples: tuple[int, ...]
    """Samples of the waveforms, (n,)."""
    seconds: tuple[tuple[float, ...], ...]
    """Seconds of the front end and of each layer on a worker of speed 1, (n, L + 1)."""
    width: int
    """Width of the states."""

    def __post_init__(self) -> None:
        n, num_layers = len(self.names), self.num_layers
        sizes = {len(self.fidelity), len(self.num_frames), len(self.num_samples), len(self.seconds)}
        if not n or sizes != {n} or any(len(row) != n for row in self.exit_layers) or not self.exit_layers:
            raise UsageError("a workload has the same utterances in all its tables, and at least one")
        if any(len(row) != num_layers for row in self.fidelity):
            raise UsageError("a workload's times are of the front end and each layer, its fidelity of each layer")
        if any(not 1 <= layer <= num_layers for row in self.exit_layers for layer in row):
            raise UsageError(f"a workload's exits are layers from 1 to {num_layers}")

    @property
    def num_layers(self) -> int:
        """L."""
        return len(self.seconds[0]) - 1

    @property
    def num_levels(self) -> int:
        """V."""
        return len(self.exit_layers)

    def exit_layer(self, level: int, utterance: int) -> int:
        """Return the layer at which an utterance exits."""
        return self.num_layers if level == RUN_ALL else self.exit_layers[level][utterance]

    def work(self, utterance: int) -> float:
        """Return an utterance's size, in seconds of audio."""
        return self.num_samples[utterance] / SAMPLE_RATE

    def wire_bytes(self, utterance: int, stage: int, wire: Wire) -> int:
        """Return an utterance's bytes on a link before a stage: those of its waveform, or of its states."""
        if stage == 0:
            return BYTES_PER_SAMPLE[wire] * self.num_samples[utterance]
        return self.num_frames[utterance] * (BYTES_PER_VALUE[wire] * self.width + BYTES_PER_FRAME[wire])

    def stage_seconds(self, utterance: int, layers: range, exit_layer: int) -> float:
        """Return the seconds of a stage, of which only the layers up to the exit are run."""
        row = self.seconds[utterance]
        front = row[0] if layers[0] == 1 else 0.0
        return front + sum(row[layers[0] : min(layers[-1], exit_layer) + 1])

    def mean_seconds(self, stages: Sequence[range]) -> list[float]:
        """Return the average seconds of each whole stage per unit of work."""
        everyone = range(len(self.names))
        work = sum(map(self.work, everyone))
        return [sum(self.stage_seconds(i, layers, layers[-1]) for i in everyone) / work for layers in stages]

    def mean_fidelity(self, level: int) -> float:
        """Return the average fidelity at a level."""
        kept = [row[self.exit_layer(level, i) - 1] for i, row in enumerate(self.fidelity)]
        return sum(kept) / len(kept)

    def survival(self, level: int, layer: int) -> float:
        """Return the fraction of utterances that run beyond a layer."""
        return sum(self.exit_layer(level, i) > layer for i in range(len(self.names))) / len(self.names)


def make_levels(policy: str, traces: Traces, depths: Sequence[float], loss: str = "disagreement") -> list[Policy]:
    """Set a policy to mean depths on full runs, and return these exit levels, the deepest first.

    Args:
        policy: name of the policy; see `daisy.calibration.calibrate_depth`.
        traces: full runs.
        depths: fractions of the layers to execute.
        loss: name of the loss; see there.

    Raises:
        PolicyError: as `daisy.calibration.calibrate_depth` does.
    """
    from daisy.calibration.depth import calibrate_depth

    return [calibrate_depth(policy, traces, depth, loss).policy for depth in sorted(depths, reverse=True)]


def make_workload(
    traces: Traces,
    levels: Sequence[Policy],
    *,
    width: int,
    layer_seconds: Sequence[float] | Sequence[Sequence[float]] = (),
    num_samples: Sequence[int] | None = None,
    samples_per_frame: int = 320,
    loss: str = "disagreement",
) -> Workload:
    """Create a workload from full runs.

    Args:
        traces: full runs, with the score ``num_frames`` if lengths matter; otherwise each has as many frames as one
            second.
        levels: exit policies, latest exits first.
        width: width of the states.
        layer_seconds: seconds of the front end and each layer: (L + 1) per second of audio, scaled to each utterance's
            length, or (n, L + 1) per utterance. If empty, each layer takes 1 ms per second of audio, and the front end
            as long as four layers.
        num_samples: samples of the waveforms, (n,); None: computed from the frames.
        samples_per_frame: hop of the model, in samples.
        loss: name of the loss; fidelity is 1 minus this loss, at least 0.

    Raises:
        UsageError: if the full runs do not have that loss.
    """
    from daisy.calibration.families import readable_scores

    if loss not in traces.losses:
        raise UsageError(f"these full runs have no loss {loss!r}; they have {', '.join(traces.losses)}")
    frames = [SAMPLE_RATE // samples_per_frame] * len(traces)
    if "num_frames" in traces.scores:
        frames = [int(count) for count in traces.scores["num_frames"][:, -1].tolist()]
    samples = list(num_samples or [count * samples_per_frame for count in frames])
    num_layers = traces.layers[-1]
    given = list(layer_seconds) or [4e-3, *[1e-3] * num_layers]
    rows: list[tuple[float, ...]] = []
    for index, count in enumerate(samples):
        first = given[0]
        if isinstance(first, int | float):
            rows.append(tuple(float(value) * count / SAMPLE_RATE for value in given))  # type: ignore[arg-type]
        else:
            rows.append(tuple(given[index]))  # type: ignore[arg-type]
    scores = readable_scores(traces)
    return Workload(
        names=traces.utterances,
        exit_layers=tuple(
            tuple(traces.layers[number - 1] for number in level.exit_layers(scores).tolist()) for level in levels
        ),
        fidelity=tuple(tuple(row) for row in _spread(1 - traces.losses[loss].double().clamp(max=1), traces.layers)),
        num_frames=tuple(frames),
        num_samples=tuple(samples),
        seconds=tuple(rows),
        width=width,
    )


def _spread(of_exits: Tensor, layers: Sequence[int]) -> list[list[float]]:
    """Expand values (n, E) of exits to (n, L): a layer without an exit has the value of the exit before it, or 0."""
    columns = torch.zeros(len(of_exits), layers[-1], dtype=of_exits.dtype)
    for place, layer in enumerate(layers):
        columns[:, layer - 1 :] = of_exits[:, place : place + 1]
    rows: list[list[float]] = columns.tolist()
    return rows
