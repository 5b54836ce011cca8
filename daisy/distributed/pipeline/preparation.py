"""Prepare a model and recordings for a run: full runs, exit levels, the full model's output, times of layers."""

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
"""Loss of an exit, by the kind of heads that decide."""
REPEATS = 3
"""Passes over all utterances, of which the median counts. A pass runs all utterances because a worker, too, changes
between them; a repeated one would be found in the caches."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Utterances that are ready for a real or simulated system."""

    waveforms: list[Tensor]
    """Waveforms, (N_b,) each."""
    traces: Traces
    heads: HeadsKind
    """Kind of heads whose scores decide."""
    units: list[Tensor]
    """Units (T_b,) of the full model; empty with CTC exits."""
    texts: list[str]
    """Texts of the last CTC exit; empty with heads on units."""
    settings: ExitSettings

    @property
    def loss(self) -> str:
        """Name of the loss; fidelity is 1 minus this loss."""
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
    """Run every layer on every utterance once, and set the exit levels.

    Args:
        model: model with exit heads on units, or a recogniser.
        waveforms: waveforms, (N_b,) each, at the model's sample rate.
        names: names of the utterances.
        heads: kind of heads whose scores decide: those on units, or CTC exits.
        policy: policy that is set to ``depths`` on these same utterances.
        depths: mean fractions of the layers to execute, one for each level.
        levels: policies to use instead, latest exits first.
        wire: format of states on links.
        progress: called with the number of utterances just run.

    Raises:
        PolicyError, CheckpointError: as `daisy.calibration.trace` and `daisy.calibration.calibrate_depth` do.
        UsageError: if the model's sample rate is not the one by which a pipeline counts seconds.
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
    """Measure the processor time of the front end and each layer, including the scores that the levels read.

    Args:
        model: model to run.
        prepared: the utterances.
        progress: called with 1 after each of `REPEATS` runs of each recording.

    Returns:
        Seconds of one thread, (n, L + 1), the front end first; an emulated speed divides them.

    Raises:
        UsageError: if the model is not on the CPU, whose time is measured.
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
    """Return the processor seconds of the front end and of each layer."""
    marks = [time.thread_time()]
    encoder([waveform], on_layer=lambda layer: marks.append(time.thread_time()))
    return [end - begin for begin, end in itertools.pairwise(marks)]


def make_measured_workload(model: Model, prepared: Prepared, seconds: Sequence[Sequence[float]]) -> Workload:
    """Create the simulator's workload from prepared utterances and measured times."""
    return make_workload(
        prepared.traces,
        prepared.settings.levels,
        width=model.backbone.config.width,
        layer_seconds=seconds,
        num_samples=[len(waveform) for waveform in prepared.waveforms],
        loss=prepared.loss,
    )
