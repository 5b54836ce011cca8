"""What a run needs of a model and recordings: full runs, exit levels, what the full model says, times of layers."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from daisy.calibration.text_tracing import TextTask, trace_texts
from daisy.calibration.traces import Traces
from daisy.calibration.tracing import trace
from daisy.checkpoints import Model
from daisy.checkpoints.model import HeadsKind
from daisy.distributed.pipeline.stages import ExitSettings, make_exit_settings
from daisy.distributed.pipeline.workload import SAMPLE_RATE, Wire, Workload, make_levels, make_workload
from daisy.encoder import EarlyExitEncoder
from daisy.errors import UsageError
from daisy.policies import Never, Policy

LOSSES: dict[HeadsKind, str] = {"units": "disagreement", "ctc": "text_disagreement"}
"""What exits cost, by the heads that decide."""
REPEATS = 3
"""Passes over all utterances, of which the median counts: a worker too comes to each from another one, and what was
run a moment ago would be found in the caches."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Utterances that are ready to be put through a system, real or simulated."""

    waveforms: list[Tensor]
    """(N_b,) each."""
    traces: Traces
    heads: HeadsKind
    """Whose scores decide."""
    units: list[Tensor]
    """(T_b,) of the full model; none with CTC exits."""
    texts: list[str]
    """Of the last CTC exit; none with heads on units."""
    settings: ExitSettings

    @property
    def loss(self) -> str:
        """What fidelity is 1 less of."""
        return LOSSES[self.heads]


@torch.no_grad()
def prepare(
    model: Model,
    waveforms: Sequence[Tensor],
    names: Sequence[str],
    *,
    heads: HeadsKind = "units",
    policy: str = "forecast",
    depths: Sequence[float] = (0.8, 0.6, 0.4),
    levels: Sequence[Policy] = (),
    wire: Wire = "float32",
    progress: Callable[[int], None] = lambda count: None,
) -> Prepared:
    """Run every layer of every utterance once, and set the exit levels.

    Args:
        model: with exit heads on units, or a recogniser.
        waveforms: (N_b,) each, at the model's rate.
        names: of the utterances.
        heads: whose scores decide: those on units, or CTC exits.
        policy: that is set to ``depths`` on these very utterances.
        depths: mean executed shares of the layers, one for each level.
        levels: policies in their place, from the one that leaves least early on.
        wire: how states are to travel.
        progress: called with the number of utterances just run.

    Raises:
        PolicyError, CheckpointError: as `daisy.calibration.trace` and `daisy.calibration.calibrate_depth`.
        UsageError: where the model hears another rate than a pipeline counts seconds by.
    """
    if model.backbone.config.sample_rate != SAMPLE_RATE:
        raise UsageError(f"pipelines are for {SAMPLE_RATE} Hz; the model hears {model.backbone.config.sample_rate} Hz")
    units: list[Tensor] = []
    texts: list[str] = []
    if heads == "units":
        traces, units = trace(model, waveforms, names, progress=progress)
    else:
        traces, texts = trace_texts(model, waveforms, names, task=TextTask(), progress=progress)
    settings = make_exit_settings(
        model,
        list(levels) or make_levels(policy, traces, depths, LOSSES[heads]),
        heads=heads,
        wire=wire,
        exits=traces.layers,
    )
    return Prepared(waveforms=list(waveforms), traces=traces, heads=heads, units=units, texts=texts, settings=settings)


def measure_seconds(
    model: Model, prepared: Prepared, progress: Callable[[int], None] = lambda count: None
) -> list[list[float]]:
    """Measure the processor time of front end and layers, with the scores that the levels read.

    Args:
        model: what runs.
        prepared: its recordings.
        progress: called with 1 after each of `REPEATS` runs of each recording.

    Returns:
        (n, L + 1) seconds of one thread, the front end first: what an emulated speed divides.

    Raises:
        UsageError: where the model is not on the CPU, whose time this is.
    """
    if model.backbone.device.type != "cpu":
        raise UsageError("layer times for simulating and joint routing are measured on the CPU: put the model there")
    settings = prepared.settings
    encoder = EarlyExitEncoder(
        model.backbone,
        model.exit_heads(prepared.heads),
        Never(),
        keep="last",
        scores=settings.score_names,
        score_stride=settings.score_stride,
        exits=settings.exits,
        dtype=settings.precision,
    )
    passes: list[list[list[float]]] = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for number in range(REPEATS):
            passes.append([])
            for waveform in prepared.waveforms:
                passes[number].append(_time_layers(encoder, waveform))
                progress(1)
    finally:
        torch.set_num_threads(threads)
    return [[statistics.median(times) for times in zip(*runs, strict=True)] for runs in zip(*passes, strict=True)]


def _time_layers(encoder: EarlyExitEncoder, waveform: Tensor) -> list[float]:
    """Processor seconds of the front end and of each layer."""
    marks = [time.thread_time()]
    encoder([waveform], on_layer=lambda layer: marks.append(time.thread_time()))
    return [end - begin for begin, end in itertools.pairwise(marks)]


def make_measured_workload(model: Model, prepared: Prepared, seconds: Sequence[Sequence[float]]) -> Workload:
    """Make the simulator's workload of what was prepared and measured."""
    return make_workload(
        prepared.traces,
        prepared.settings.levels,
        width=model.backbone.config.width,
        layer_seconds=seconds,
        num_samples=[len(waveform) for waveform in prepared.waveforms],
        loss=prepared.loss,
    )
