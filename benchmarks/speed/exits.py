"""Costs and savings of exits, measured by speed.py: scores, exits spread over a batch, and recordings end to end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from torch import Tensor

import daisy
from benchmarks.shared.paired import Times, summarise, time_in_turns
from benchmarks.shared.peers import NUM_UNITS, build_peers
from benchmarks.shared.recordings import SAMPLE_RATE, count_seconds, make_noise, read_noises
from benchmarks.shared.results import Row
from benchmarks.speed.approximations import measure_fidelity, run_default_policy, run_full_depth
from benchmarks.speed.measures import (
    FLOAT_PRECISIONS,
    SIZES,
    compare_times,
    count_repeats,
    make_backbone,
    make_row,
    read_test_waveforms,
    run_over,
)
from daisy import audio
from daisy.calibration import tracing
from daisy.cli.options import DEFAULT_POLICY, SNRS_DB
from daisy.encoder import EarlyExitEncoder
from daisy.models.heads import ExitHeads, HeadsConfig
from daisy.policies import Fixed, Never, Policy

SCORES_AND_STRIDES: dict[str, tuple[tuple[str, ...], int]] = {
    "none": ((), 1),
    "entropy": (("entropy",), 1),
    "entropy, every 2nd frame": (("entropy",), 2),
    "entropy, every 4th frame": (("entropy",), 4),
    "regressed": (("regressed",), 1),
    "entropy, confidence, margin, change": (("entropy", "confidence", "margin", "change"), 1),
}
BATCH_SEC = 30.0


def measure_deciding(quick: bool, device: str) -> list[Row]:
    """Measure scores at all layers against none; the heads have random weights."""
    backbone = make_backbone("base").to(device)
    config = backbone.config
    heads = ExitHeads(HeadsConfig(num_layers=config.num_layers, width=config.width, num_units=NUM_UNITS)).to(device)
    waveform = make_noise((3 if quick else 10) * SAMPLE_RATE).to(device)
    rows = []
    for precision in FLOAT_PRECISIONS:
        systems = {}
        for name, (scores, stride) in SCORES_AND_STRIDES.items():
            encoder = EarlyExitEncoder(backbone, heads, Never(), scores=scores, score_stride=stride, dtype=precision)
            systems[name] = partial(encoder, [waveform])
        times = time_in_turns(systems, count_repeats(3 if quick else 45, device), budget_sec=900.0)
        for name in systems:
            setting = {"size": "base", "precision": precision, "units": NUM_UNITS, "scores": name}
            rows.append(make_row("deciding", **setting, **compare_times(times, name, "none")))
    return rows


@dataclass(frozen=True, kw_only=True)
class Spread(Policy):
    """Exits at one of the layers 3 to 12, computed from the number of frames, which costs nothing."""

    name: ClassVar[str] = "spread"
    scores: ClassVar[tuple[str, ...]] = ("num_frames",)

    def decide(self, trajectories: Mapping[str, Tensor], layer: int) -> Tensor:
        return 3 + trajectories["num_frames"][:, -1].long() * 7 % 10 <= layer


def measure_mixed(quick: bool, device: str) -> list[Row]:
    """Measure one batch whose utterances exit at layers 3 to 12, against the sum of its parts at full batch size."""
    return [_measure_mixed(size, 3 if quick else 9, device) for size in (SIZES[:1] if quick else SIZES)]


def _measure_mixed(size: str, repeats: int, device: str) -> Row:
    backbone = make_backbone(size).to(device)
    waveforms = read_test_waveforms(7, device)[:32]
    num_layers = backbone.config.num_layers
    encoder = EarlyExitEncoder(backbone, None, Spread())
    out = encoder(waveforms)
    mean_layers = float((out.exit_layer * out.num_frames).sum() / out.num_frames.sum())
    depth = round(mean_layers)
    encoders = {"mixed": encoder}
    for name, layer in (("one exit", depth), ("first layer", 1), ("full", num_layers)):
        encoders[name] = EarlyExitEncoder(backbone, None, Fixed(layer=layer))
    calls = {name: partial(encoder, waveforms) for name, encoder in encoders.items()}
    times = time_in_turns(calls, count_repeats(repeats, device))
    median, low, high = summarise(_over_ideal(times, num_layers, mean_layers))
    against_one_exit = compare_times(times, "mixed", "one exit")
    return make_row(
        "mixed",
        size=size,
        batch=len(waveforms),
        audio_sec=count_seconds(waveforms),
        mean_layers=mean_layers,
        exits=sorted(set(out.exit_layer.tolist())),
        over_ideal=median,
        over_ideal_low=low,
        over_ideal_high=high,
        one_exit_layer=depth,
        over_one_exit=against_one_exit["ratio"],
        seconds=against_one_exit["seconds"],
    )


def _over_ideal(times: Mapping[str, Times], num_layers: int, mean_layers: float) -> list[float]:
    """Return, for each turn, the time of mixed exits over that of the front end and the layers that ran."""
    ratios = []
    turns = zip(*(times[name].seconds for name in ("mixed", "first layer", "full")), strict=True)
    for mixed, first, full in turns:
        layer = (full - first) / (num_layers - 1)
        ratios.append(mixed / (first - layer + layer * mean_layers))
    return ratios


def measure_end_to_end(quick: bool, device: str) -> list[Row]:
    """Measure test recordings from waveforms to states: all clean, and each either clean or noisy."""
    clean = read_test_waveforms(3 if quick else 40)
    bank = read_noises("test")
    by_snr = [tracing.mix_noise(clean, bank, snr_db) for snr_db in SNRS_DB]
    by_turns = [by_snr[index % len(by_snr)][index] for index in range(len(clean))]
    return [
        row
        for kind, waveforms in (("clean", clean), ("clean and noisy", by_turns))
        for row in _measure_end_to_end(kind, [waveform.to(device) for waveform in waveforms], quick, device)
    ]


def _measure_end_to_end(kind: str, waveforms: list[Tensor], quick: bool, device: str) -> list[Row]:
    """Measure one by one and in batches, with the default policy, at full depth, and with stock s3prl."""
    model = daisy.load("daisy-mini", device=device)
    systems: dict[str, Callable[[list[Tensor]], object]] = {
        DEFAULT_POLICY: model.encoder(DEFAULT_POLICY),
        "never": EarlyExitEncoder(model.backbone, None, Never()),
        **build_peers(["s3prl"], model.backbone),
    }
    outputs, full = run_default_policy(model, waveforms), run_full_depth(model, waveforms)
    depth, agreement = measure_fidelity(model, outputs, full)
    rows = []
    for batch_sec in (0.0, BATCH_SEC):
        lengths = [len(waveform) for waveform in waveforms]
        batches = [
            [waveforms[index] for index in indices]
            for indices in audio.batch_by_length(lengths, int(batch_sec * SAMPLE_RATE) or 1)
        ]
        calls = {name: run_over(system, batches) for name, system in systems.items()}
        times = time_in_turns(calls, count_repeats(2 if quick else 5, device))
        for name in systems:
            rows.append(
                make_row(
                    "end-to-end",
                    size="mini",
                    recordings=kind,
                    system=name,
                    batches="one by one" if not batch_sec else f"{batch_sec:g} s",
                    num_utterances=len(waveforms),
                    audio_sec=count_seconds(waveforms),
                    **compare_times(times, name, DEFAULT_POLICY),
                    depth=depth if name == DEFAULT_POLICY else 1.0,
                    unit_agreement=agreement if name == DEFAULT_POLICY else None,
                )
            )
    return rows
