"""What is put through a system: utterances with their exits, fidelity, size and times, as plain numbers."""

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
"""How states travel: see `daisy.distributed.pipeline.wire`."""
BYTES_PER_SAMPLE: dict[Wire, int] = {"float32": 4, "bfloat16": 2, "int8": 2}
BYTES_PER_VALUE: dict[Wire, int] = {"float32": 4, "bfloat16": 2, "int8": 1}
BYTES_PER_FRAME: dict[Wire, int] = {"float32": 0, "bfloat16": 0, "int8": 4}
"""Beside the values: int8 has a scale."""
SAMPLE_RATE = 16000


@dataclass(frozen=True, kw_only=True)
class Workload:
    """n utterances under V exit levels, of a model with L layers."""

    names: tuple[str, ...]
    exit_layers: tuple[tuple[int, ...], ...]
    """(V, n): where each would leave."""
    fidelity: tuple[tuple[float, ...], ...]
    """(n, L): what an exit after each layer keeps of the full model's output, 0 to 1."""
    num_frames: tuple[int, ...]
    """(n,)"""
    num_samples: tuple[int, ...]
    """(n,), of the waveforms."""
    seconds: tuple[tuple[float, ...], ...]
    """(n, L + 1): what the front end and each layer take on a worker of speed 1."""
    width: int
    """Of the states."""

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
        """Tell where an utterance leaves."""
        return self.num_layers if level == RUN_ALL else self.exit_layers[level][utterance]

    def work(self, utterance: int) -> float:
        """Return an utterance's size: its seconds of audio."""
        return self.num_samples[utterance] / SAMPLE_RATE

    def wire_bytes(self, utterance: int, stage: int, wire: Wire) -> int:
        """Count what an utterance takes on a link before a stage: its waveform, or states."""
        if stage == 0:
            return BYTES_PER_SAMPLE[wire] * self.num_samples[utterance]
        return self.num_frames[utterance] * (BYTES_PER_VALUE[wire] * self.width + BYTES_PER_FRAME[wire])

    def stage_seconds(self, utterance: int, layers: range, exit_layer: int) -> float:
        """Return what a stage takes, of which only the layers up to the exit are run."""
        row = self.seconds[utterance]
        front = row[0] if layers[0] == 1 else 0.0
        return front + sum(row[layers[0] : min(layers[-1], exit_layer) + 1])

    def mean_seconds(self, stages: Sequence[range]) -> list[float]:
        """Return what each whole stage takes for a unit of work, as an average."""
        everyone = range(len(self.names))
        work = sum(map(self.work, everyone))
        return [sum(self.stage_seconds(i, layers, layers[-1]) for i in everyone) / work for layers in stages]

    def mean_fidelity(self, level: int) -> float:
        """Average what is kept at a level."""
        kept = [row[self.exit_layer(level, i) - 1] for i, row in enumerate(self.fidelity)]
        return sum(kept) / len(kept)

    def survival(self, level: int, layer: int) -> float:
        """Return the share of utterances that run beyond a layer."""
        return sum(self.exit_layer(level, i) > layer for i in range(len(self.names))) / len(self.names)


def make_levels(policy: str, traces: Traces, depths: Sequence[float], loss: str = "disagreement") -> list[Policy]:
    """Set a policy to mean depths on full runs: the exit levels, from the deepest on.

    Args:
        policy: as in `daisy.calibration.calibrate_depth`.
        traces: full runs.
        depths: executed shares of the layers.
        loss: see there.

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
    """Make a workload of full runs.

    Args:
        traces: full runs, with the score ``num_frames`` if lengths matter; else each has as many frames as one second.
        levels: exit policies, from the one that leaves least early on.
        width: of the states.
        layer_seconds: of front end and layers, (L + 1): for a second of audio, which is what they take of each
            utterance in proportion to its length; or (n, L + 1): of each utterance. Where empty, each layer takes 1 ms
            a second of audio, and the front end as long as four layers.
        num_samples: (n,) of the waveforms; where None from the frames.
        samples_per_frame: of the model's hop.
        loss: what fidelity is 1 less of, 0 at least.

    Raises:
        UsageError: where the loss is not there.
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
    """Values (n, E) of exits as (n, L): a layer without an exit has the one before's, or 0."""
    columns = torch.zeros(len(of_exits), layers[-1], dtype=of_exits.dtype)
    for place, layer in enumerate(layers):
        columns[:, layer - 1 :] = of_exits[:, place : place + 1]
    rows: list[list[float]] = columns.tolist()
    return rows
