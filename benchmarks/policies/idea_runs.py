"""Full runs with more content than existing policies read: `benchmarks.policies.ideas` learns and judges from them.

In addition to the scores and losses of `daisy.calibration.trace`, there are scores at other time scales, and the mean
and standard deviation over time of every layer's states, including layer 0. Runs are kept in runs/ideas.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy
import torch
from numpy.typing import NDArray
from rich.progress import Progress
from torch import Tensor
from torch.nn import functional as F

import daisy
from benchmarks.shared.recordings import SAMPLE_RATE, TRAINING_SETS, Utterance, read_noises, read_utterances
from benchmarks.shared.script import RUNS
from daisy import _files, calibration, checkpoints
from daisy.audio.conditions import GENERATED, Condition, apply_condition, make_conditions
from daisy.calibration import tracing
from daisy.calibration.traces import Traces
from daisy.checkpoints import Model
from daisy.models.heads import mean_and_std
from daisy.models.packing import PackedLayout
from daisy.policies.scores import HeadOutputs
from daisy.runtime.exit_output import ExitOutput

MORE_SETS = ("an4", "speechocean762")
"""Sets with named speakers and three splits."""
SETS = {
    "dev": (*TRAINING_SETS, *MORE_SETS),
    "test": (*TRAINING_SETS, *MORE_SETS, "digits", "mboshi"),
}
"""Sets of each split."""
LIMIT = 40
"""Maximum number of recordings per set and split, chosen by `spread_evenly`."""
SNRS_DB = (20.0, 10.0, 0.0)
NOISE_KINDS = ("recorded", *GENERATED)
CONDITIONS = make_conditions(NOISE_KINDS, (None, *SNRS_DB))
WINDOW = 25
"""Number of frames: half a second."""
CACHE = RUNS / "ideas"
LOSSES = ("disagreement", "clean_disagreement")
MORE_SCORES = ("entropy_worst_window", "entropy_upper_tenth", "entropy_spread", "step_nats")


@dataclass(frozen=True)
class Runs:
    """A batch of B full runs."""

    traces: Traces
    """Scores and the losses `LOSSES`, against the full model's units on the same input and on the clean recording."""
    states: NDArray[numpy.float16]
    """(B, L + 1, 2 D) mean and standard deviation over time of the states of layers 0 to L."""

    def __len__(self) -> int:
        return len(self.traces)

    def select(self, rows: Sequence[int] | NDArray[numpy.int64]) -> Runs:
        """Return some of the runs."""
        index = numpy.asarray(rows, dtype=numpy.int64)
        return Runs(self.traces.select(torch.from_numpy(index)), self.states[index])


def load_runs(model: Path | str, split: str, limit: int = LIMIT) -> Runs:
    """Load the runs of a split, or make them if they do not exist.

    Args:
        model: network to run.
        split: "dev", with recorded noise of the train split, or "test", with that of the test split.
        limit: maximum number of recordings per set.
    """
    made_of = zlib.crc32(repr((SETS[split], CONDITIONS, MORE_SCORES, WINDOW)).encode())
    path = CACHE / f"{checkpoints.digest(model)[:12]}-{split}-{limit}-{made_of:08x}.npz"
    if path.is_file():
        return _read(path)
    utterances = read_utterances(SETS[split], split, limit)
    bank = {"recorded": read_noises("train" if split == "dev" else "test")}
    waveforms = [utterance.waveform for utterance in utterances]
    loaded = daisy.load(model)
    parts: list[Runs] = []
    with Progress() as bar:
        task = bar.add_task(f"{split} runs", total=len(CONDITIONS))
        clean: list[Tensor] | None = None
        for condition in CONDITIONS:
            mixed = apply_condition(condition, waveforms, bank, 0, SAMPLE_RATE)
            runs, units = run_layers(loaded, mixed, utterances, condition, clean)
            clean = clean or units
            parts.append(runs)
            bar.advance(task)
    joined = Runs(
        calibration.join_traces([part.traces for part in parts]), numpy.concatenate([p.states for p in parts])
    )
    _write(path, joined)
    return joined


def run_layers(
    model: Model,
    waveforms: Sequence[Tensor],
    utterances: Sequence[Utterance],
    condition: Condition,
    reference: Sequence[Tensor] | None = None,
) -> tuple[Runs, list[Tensor]]:
    """Run every layer on recordings (N_b,) in one condition.

    Args:
        model: model with exit heads.
        waveforms: the audio in this condition.
        utterances: the same recordings, for their names.
        condition: name of the condition.
        reference: units (T_b,) of the clean recordings; if None, those on the same input.

    Returns:
        The runs, and the full model's units (T_b,) for each.
    """
    num_layers, width = model.backbone.config.num_layers, model.backbone.config.width
    more = {name: torch.zeros(len(waveforms), num_layers) for name in MORE_SCORES}
    states = torch.zeros(len(waveforms), num_layers + 1, 2 * width)

    def observe(indices: list[int], out: ExitOutput, layers: list[HeadOutputs]) -> None:
        layout = PackedLayout(out.num_frames)
        for layer in range(num_layers + 1):
            states[indices, layer] = mean_and_std(torch.cat([of[layer] for of in out.states]), layout)
        for place, outputs in enumerate(layers):
            for name, values in measure_time_scales(outputs, layers[place - 1] if place else None).items():
                more[name][indices, place] = values

    traces, units = tracing.trace(
        model,
        waveforms,
        [f"{utterance.set}/{index}" for index, utterance in enumerate(utterances)],
        [utterance.speaker for utterance in utterances],
        condition=condition.name,
        reference=reference,
        observe=observe,
        keep="all",
    )
    kept = {name: traces.losses[name] for name in LOSSES}
    return Runs(replace(traces, scores={**traces.scores, **more}, losses=kept), states.half().numpy()), units


def measure_time_scales(outputs: HeadOutputs, previous: HeadOutputs | None) -> dict[str, Tensor]:
    """Compute `MORE_SCORES` of a layer, (B,) each, in nats.

    Args:
        outputs: head outputs of the layer.
        previous: head outputs of the layer before; without it ``step_nats``, the divergence of its units from this
            layer's, is 0.
    """
    log_probs = outputs.log_probs
    entropies = -(log_probs.exp() * log_probs).sum(-1)
    by_utterance = entropies.split(outputs.strided_layout.seqlens.tolist())
    step = 0 * entropies
    if previous is not None:
        step = (log_probs.exp() * (log_probs - previous.log_probs)).sum(-1)
    return {
        "entropy_worst_window": torch.stack([_smooth(of).max() for of in by_utterance]),
        "entropy_upper_tenth": torch.stack([of.quantile(0.9) for of in by_utterance]),
        "entropy_spread": torch.stack([of.std(correction=0) for of in by_utterance]),
        "step_nats": outputs.mean(step),
    }


def _smooth(values: Tensor) -> Tensor:
    """Average all windows of `WINDOW` frames, or all frames if there are fewer: (T',)."""
    return F.avg_pool1d(values[None], min(WINDOW, len(values)), 1)[0]


def _write(path: Path, runs: Runs) -> None:
    traces, columns = runs.traces, {**runs.traces.scores, **runs.traces.losses}
    content: dict[str, Any] = {
        "states": runs.states,
        "columns": numpy.array(list(columns)),
        "values": numpy.stack([values.numpy() for values in columns.values()]),
        **{name: numpy.array(getattr(traces, name)) for name in ("utterances", "groups", "conditions")},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    _files.write(path, lambda stream: numpy.savez(stream, **content))


def _read(path: Path) -> Runs:
    with numpy.load(path) as content:
        columns = dict(zip(content["columns"].tolist(), torch.from_numpy(content["values"]), strict=True))
        num_layers = content["values"].shape[2]
        traces = Traces(
            **{name: tuple(content[name].tolist()) for name in ("utterances", "groups", "conditions")},
            scores={name: values for name, values in columns.items() if name not in LOSSES},
            losses={name: columns[name] for name in LOSSES},
            weights=torch.ones(len(content["utterances"])),
            costs=torch.arange(1, num_layers + 1).float(),
            layers=tuple(range(1, num_layers + 1)),
        )
        return Runs(traces, content["states"])
