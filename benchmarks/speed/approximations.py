"""Effects of approximations, measured by speed.py: lower precision, and heads that read fewer frames."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

from torch import Tensor
from torch.nn import functional as F

import daisy
from benchmarks.shared.paired import time_in_turns
from benchmarks.shared.results import Row
from benchmarks.speed.measures import (
    FLOAT_PRECISIONS,
    PRECISIONS,
    SIZES,
    compare_times,
    count_repeats,
    make_backbone,
    make_row,
    read_test_waveforms,
    run_over,
)
from daisy.cli.options import DEFAULT_POLICY
from daisy.encoder import EarlyExitEncoder
from daisy.policies import Never
from daisy.runtime.dtypes import Precision
from daisy.runtime.exit_output import ExitOutput

DRIFTING = ("entropy", "regressed")
"""Scores whose change is measured, in nats."""
STRIDES = (1, 2, 4)


def measure_precision(quick: bool, device: str) -> list[Row]:
    """Measure lower precision against float32, on real recordings one by one; Base has random weights."""
    return [row for size in SIZES for row in _measure_precision(size, quick, device)]


def _measure_precision(size: str, quick: bool, device: str) -> list[Row]:
    backbone = make_backbone(size).to(device)
    waveforms = read_test_waveforms(2 if quick or size == "base" else 100 if device == "cpu" else 20, device)
    timed = waveforms[: 4 if quick else 24 if size == "mini" else 6]
    precisions = PRECISIONS if device == "cpu" else FLOAT_PRECISIONS
    encoders = {name: EarlyExitEncoder(backbone, None, Never(), dtype=name) for name in precisions}
    calls: dict[str, Callable[[], object]] = {
        name: run_over(encoder, [[waveform] for waveform in timed]) for name, encoder in encoders.items()
    }
    times = time_in_turns(calls, count_repeats(3 if quick else 7, device))
    model = daisy.load("daisy-mini", device=device)
    exact = run_default_policy(model, waveforms) if size == "mini" else []
    rows = []
    for precision in precisions[1:]:
        cosines = [
            mean_cosine(encoders["float32"]([waveform]).states[0], encoders[precision]([waveform]).states[0])
            for waveform in waveforms
        ]
        median, low, high = times["float32"].over(times[precision])
        changes = compare_exits(exact, run_default_policy(model, waveforms, precision)) if exact else {}
        rows.append(
            make_row(
                "precision",
                size=size,
                precision=precision,
                seconds=times[precision].median,
                faster=median,
                faster_low=low,
                faster_high=high,
                cosine=statistics.mean(cosines),
                least_cosine=min(cosines),
                num_utterances=len(waveforms),
                num_timed=len(timed),
                **changes,
            )
        )
    return rows


def measure_stride(quick: bool, device: str) -> list[Row]:
    """Measure the default policy with scores of every n-th frame, on real recordings one by one."""
    model = daisy.load("daisy-mini", device=device)
    waveforms = read_test_waveforms(2 if quick else 100 if device == "cpu" else 20, device)
    timed = waveforms[: 4 if quick else 24]
    encoders = {stride: model.encoder(DEFAULT_POLICY, score_stride=stride) for stride in STRIDES}
    calls = {str(stride): run_over(encoder, [[waveform] for waveform in timed]) for stride, encoder in encoders.items()}
    times = time_in_turns(calls, count_repeats(3 if quick else 15, device))
    full, exact = run_full_depth(model, waveforms), run_default_policy(model, waveforms)
    rows = []
    for stride in STRIDES:
        outputs = exact if stride == 1 else run_default_policy(model, waveforms, stride=stride)
        depth, agreement = measure_fidelity(model, outputs, full)
        rows.append(
            make_row(
                "stride",
                size="mini",
                every=stride,
                num_utterances=len(waveforms),
                num_timed=len(timed),
                **compare_times(times, str(stride), "1"),
                depth=depth,
                unit_agreement=agreement,
                **({} if stride == 1 else compare_exits(exact, outputs)),
            )
        )
    return rows


def run_default_policy(
    model: daisy.Model, waveforms: Sequence[Tensor], precision: Precision = "float32", stride: int = 1
) -> list[ExitOutput]:
    """Run each recording with the default policy, for exit layers and the scores whose change is measured."""
    encoder = model.encoder(DEFAULT_POLICY, scores=DRIFTING, dtype=precision, score_stride=stride, keep="last")
    return [encoder([waveform]) for waveform in waveforms]


def run_full_depth(model: daisy.Model, waveforms: Sequence[Tensor]) -> list[ExitOutput]:
    """Run each recording to the last layer, and keep only that layer."""
    encoder = EarlyExitEncoder(model.backbone, None, Never(), keep="last")
    return [encoder([waveform]) for waveform in waveforms]


def mean_cosine(states: Tensor, others: Tensor) -> float:
    """Compute the mean cosine similarity over layers and frames."""
    return float(F.cosine_similarity(states, others.float(), dim=-1).mean())


def compare_exits(exact: Sequence[ExitOutput], approximate: Sequence[ExitOutput]) -> dict[str, object]:
    """Compare the default policy's exits, and the scores of layers that both ran; return the fields of a row."""
    pairs = list(zip(exact, approximate, strict=True))
    apart = [abs(int(one.exit_layer) - int(other.exit_layer)) for one, other in pairs]
    drift = {
        f"{name}_drift": max(
            float((one.scores[name] - other.scores[name]).abs().nan_to_num(0.0).max()) for one, other in pairs
        )
        for name in DRIFTING
    }
    return {
        "policy": DEFAULT_POLICY,
        "same_exit": statistics.mean(layers == 0 for layers in apart),
        "within_one_layer": statistics.mean(layers <= 1 for layers in apart),
        **drift,
    }


def measure_fidelity(
    model: daisy.Model, outputs: Sequence[ExitOutput], full: Sequence[ExitOutput]
) -> tuple[float, float]:
    """Compute the mean share of layers run, and the share of frames whose unit at the exit is the full model's."""
    assert model.final_head is not None
    assert model.heads is not None
    depths, agreements = [], []
    for output, full_output in zip(outputs, full, strict=True):
        layer = int(output.exit_layer)
        units = model.heads.unit_logits(layer, output.states[0][-1]).argmax(-1)
        full_units = model.final_head(full_output.states[0][-1]).argmax(-1)
        agreements.append(float((units == full_units).float().mean()))
        depths.append(layer / model.backbone.config.num_layers)
    return statistics.mean(depths), statistics.mean(agreements)
