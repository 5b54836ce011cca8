"""Where the time goes, and what exits save: measurements of our own encoder.

    python benchmarks/speed.py                       # all of them; results/speed.json
    python benchmarks/speed.py --only deciding mixed # some; the others' rows stay
    python benchmarks/speed.py --quick               # a few recordings, no results file
    python benchmarks/speed.py --device cuda         # all but stages and shapes; results/speed_cuda.json

precision   bfloat16 and int8 against float32: time, exit layers, states
deciding    scores at every layer without ever leaving, against no heads; Base with 504 units
stride      heads that look at every 2nd or 4th frame against all: time, exit layers, units
mixed       exits spread over layers 3 to 12 in one batch, against the sum of its parts
stages      the front end's share before and after, and multiply-accumulates a second against a matrix product's
shapes      recordings of 200 lengths, with rows added so that they share the products' shapes, and without
end-to-end  test recordings, clean and in noise, with the default policy, against stock s3prl and our own full depth

Ratios are medians over turns that follow one another, with quartiles. Needs the shared recordings for precision,
stride, mixed and end-to-end; without them: --only deciding stages shapes.
"""

from __future__ import annotations

import argparse
import logging
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar
from unittest import mock

import paired
import peers
import torch
from approximations import entire, fidelity, leaving, precision, stride
from common import SNRS_DB, guarded, kept, noises, positive, write
from latency import RATE, backbone_of
from measures import DTYPES, over, ratio_of, repeated, row, spoken
from stage_calls import Stages
from torch import Tensor

import daisy
from daisy import audio
from daisy.calibration import tracing
from daisy.cli.console import DEFAULT_POLICY, checked_device
from daisy.encoder import EarlyExitEncoder
from daisy.errors import DaisyError
from daisy.models import Backbone
from daisy.models.heads import ExitHeads, HeadsConfig
from daisy.policies import Fixed, Never, Policy

UNITS = 504


def seconds_of(waveforms: list[Tensor]) -> float:
    """Of audio."""
    return sum(map(len, waveforms)) / RATE


def heads_for(backbone: Backbone) -> ExitHeads:
    """Random ones, of `UNITS`."""
    config = backbone.config
    return ExitHeads(HeadsConfig(num_layers=config.num_layers, width=config.width, num_units=UNITS))


def deciding(quick: bool, device: str) -> list[dict]:
    """Scores at all layers against none."""
    backbone = backbone_of("base").to(device)
    heads = heads_for(backbone).to(device)
    waveform = 0.1 * torch.randn(3 * RATE if quick else 10 * RATE, device=device)
    variants = {
        "none": ((), 1),
        "entropy": (("entropy",), 1),
        "entropy, every 2nd frame": (("entropy",), 2),
        "entropy, every 4th frame": (("entropy",), 4),
        "regressed": (("regressed",), 1),
        "entropy, confidence, margin, change": (("entropy", "confidence", "margin", "change"), 1),
    }
    rows = []
    for dtype in DTYPES[:2]:
        systems = {}
        for name, (scores, every) in variants.items():
            encoder = EarlyExitEncoder(backbone, heads, Never(), scores=scores, score_stride=every, dtype=dtype)
            systems[name] = lambda encoder=encoder: encoder([waveform])
        times = paired.turns(systems, repeated(3 if quick else 45, device), budget_sec=900.0)
        for name in variants:
            found = ratio_of(times, name, "none")
            rows.append(row("deciding", size="base", precision=dtype, units=UNITS, scores=name, **found))
    return rows


@dataclass(frozen=True, kw_only=True)
class Spread(Policy):
    """Leave at one of the layers 3 to 12, which the number of frames names: it costs nothing to know."""

    name: ClassVar[str] = "spread"
    scores: ClassVar[tuple[str, ...]] = ("num_frames",)

    def decide(self, trajectories: Mapping[str, Tensor], layer: int) -> Tensor:
        return 3 + trajectories["num_frames"][:, -1].long() * 7 % 10 <= layer


def mixed(quick: bool, device: str) -> list[dict]:
    """One batch whose utterances leave at layers 3 to 12, against each part at the full batch's speed."""
    return [_mixed(size, 3 if quick else 9, device) for size in (("mini",) if quick else ("mini", "base"))]


def _mixed(size: str, repeats: int, device: str) -> dict:
    backbone = backbone_of(size).to(device)
    waveforms = spoken(7, device)[:32]
    layers = backbone.config.num_layers
    encoder = EarlyExitEncoder(backbone, None, Spread())
    out = encoder(waveforms)
    share = [
        float(out.num_frames[out.exit_layer >= layer].sum() / out.num_frames.sum()) for layer in range(1, layers + 1)
    ]
    depth = round(sum(share))
    encoders = {"mixed": encoder}
    for name, layer in (("one exit", depth), ("first layer", 1), ("full", layers)):
        encoders[name] = EarlyExitEncoder(backbone, None, Fixed(layer=layer))
    times = paired.turns({name: partial(each, waveforms) for name, each in encoders.items()}, repeated(repeats, device))
    ratios = []
    for seconds, first, full in zip(*(times[name].seconds for name in ("mixed", "first layer", "full")), strict=True):
        a_layer = (full - first) / (layers - 1)
        ratios.append(seconds / (first - a_layer + a_layer * sum(share)))
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    against = ratio_of(times, "mixed", "one exit")
    return row(
        "mixed",
        size=size,
        batch=len(waveforms),
        audio_sec=seconds_of(waveforms),
        mean_layers=sum(share),
        exits=sorted(set(out.exit_layer.tolist())),
        over_ideal=middle,
        over_ideal_low=low,
        over_ideal_high=high,
        one_exit_layer=depth,
        over_one_exit=against["ratio"],
        seconds=against["seconds"],
    )


def stages(quick: bool, device: str) -> list[dict]:
    """Front end and layers, torchaudio's modules and ours; and the machine's matrix product in the same turns."""
    return [
        each
        for size in ("mini", "base")
        for dtype in ("float32", "bfloat16")
        for each in _stages(size, dtype, 3 if quick else 10, 3 if quick else 9)
    ]


def _stages(size: str, dtype: str, seconds: int, repeats: int) -> list[dict]:
    timed = Stages(size, dtype, seconds)
    calls = {
        "front end before": timed.front_end_before,
        "layers before": timed.layers_before,
        "front end": timed.front_end,
        "layers": timed.layers,
        "product": timed.product,
    }
    times = paired.turns(calls, repeats)
    rate = {name: timed.macs(name) / times[name].median for name in ("front end", "layers", "product")}
    rows = []
    for stage, other in (("front end", "layers"), ("layers", "front end")):
        shares = [
            statistics.median(x / (x + y) for x, y in zip(times[one].seconds, times[two].seconds, strict=True))
            for one, two in ((f"{stage} before", f"{other} before"), (stage, other))
        ]
        faster, low, high = times[f"{stage} before"].over(times[stage])
        rows.append(
            row(
                "stages",
                size=size,
                precision=dtype,
                stage=stage,
                seconds=times[stage].median,
                faster=faster,
                faster_low=low,
                faster_high=high,
                share_before=shares[0],
                share=shares[1],
                macs_per_sec=rate[stage],
                of_product=rate[stage] / rate["product"],
            )
        )
    return rows


def shapes(quick: bool, device: str) -> list[dict]:
    """One recording of each of many numbers of frames, one by one; a turn of one evicts the other's compiled code."""
    backbone, rows = backbone_of("mini"), []
    generator = torch.Generator().manual_seed(0)
    counts = (100 + torch.randperm(10 if quick else 200, generator=generator)).tolist()
    config = backbone.config
    waveforms = [0.1 * torch.randn(config.frame_span + (n - 1) * config.frame_hop, generator=generator) for n in counts]
    for dtype in DTYPES[:2]:
        encoder = EarlyExitEncoder(backbone, None, Never(), dtype=dtype)

        def shared(encoder: EarlyExitEncoder = encoder) -> None:
            for waveform in waveforms:
                encoder([waveform])

        def own(shared: Callable[[], None] = shared) -> None:
            with mock.patch("daisy.runtime.linear.round_up_rows", int):
                shared()

        times = paired.turns({"shared": shared, "own": own}, 3)
        rows.append(row("shapes", precision=dtype, lengths=len(counts), **ratio_of(times, "own", "shared")))
    return rows


def end_to_end(quick: bool, device: str) -> list[dict]:
    """Test recordings from waveforms to states, clean, and each clean or in noise."""
    clean = spoken(3 if quick else 40)
    bank = noises("test")
    heard = [tracing.mix_noise(clean, bank, snr_db) for snr_db in SNRS_DB]
    turned = [heard[i % len(heard)][i] for i in range(len(clean))]
    sets = {"clean": clean, "clean and noisy": turned}
    there = {kind: [waveform.to(device) for waveform in found] for kind, found in sets.items()}
    return [row for kind, found in there.items() for row in _end_to_end(kind, found, quick, device)]


def _end_to_end(kind: str, waveforms: list[Tensor], quick: bool, device: str) -> list[dict]:
    """One by one and in batches, with the default policy, at full depth, and by stock s3prl."""
    model = daisy.load("daisy-mini", device=device)
    exiting = EarlyExitEncoder(model.backbone, model.heads, model.policy(DEFAULT_POLICY))
    full = EarlyExitEncoder(model.backbone, None, Never())
    stock = peers.build(["s3prl"], model.backbone)
    depth, agreement = fidelity(model, leaving(model, waveforms), entire(model, waveforms))
    rows = []
    for batch_sec in (0.0, 30.0):
        groups = [
            [waveforms[i] for i in indices]
            for indices in audio.batch_by_length([len(w) for w in waveforms], int(batch_sec * RATE) or 1)
        ]
        systems = {DEFAULT_POLICY: exiting, "never": full, **stock}
        calls = {name: over(system, groups) for name, system in systems.items()}
        times = paired.turns(calls, repeated(2 if quick else 5, device))
        for name in systems:
            rows.append(
                row(
                    "end-to-end",
                    size="mini",
                    recordings=kind,
                    system=name,
                    batches="one by one" if not batch_sec else f"{batch_sec:g} s",
                    num_utterances=len(waveforms),
                    audio_sec=seconds_of(waveforms),
                    **ratio_of(times, name, DEFAULT_POLICY),
                    depth=depth if name == DEFAULT_POLICY else 1.0,
                    unit_agreement=agreement if name == DEFAULT_POLICY else None,
                )
            )
    return rows


MEASURES = {
    "precision": precision,
    "deciding": deciding,
    "stride": stride,
    "mixed": mixed,
    "stages": stages,
    "shapes": shapes,
    "end-to-end": end_to_end,
}


ON_CPUS = ("stages", "shapes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(MEASURES))
    parser.add_argument("--threads", type=positive, default=1, help="with others than 1 nothing is written")
    parser.add_argument("--quick", action="store_true", help="a few recordings and turns; nothing is written")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    arguments = parser.parse_args()
    device = checked_device(arguments.device)
    able = list(MEASURES) if device == "cpu" else [name for name in MEASURES if name not in ON_CPUS]
    if wrong := set(arguments.only or ()) - set(able):
        raise DaisyError(f"{', '.join(sorted(wrong))}: on CPUs only")
    name = "speed" if device == "cpu" else f"speed_{device}"
    torch.set_num_threads(arguments.threads)
    logging.disable(logging.INFO)  # s3prl prints its whole configuration
    writes = not arguments.quick and arguments.threads == 1
    rows = kept(name) if writes else []
    for measure in arguments.only or able:
        rows = [each for each in rows if each["measure"] != measure] + MEASURES[measure](arguments.quick, device)
        if writes:
            write(name, rows, arguments=() if device == "cpu" else ("--device", device))


if __name__ == "__main__":
    guarded(main)
