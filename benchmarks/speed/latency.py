"""Full depth, our time beside that of other people's HuBERT on the same weights.

    python benchmarks/latency.py --quick                   # within a minute on two cores; no results file
    python benchmarks/latency.py                           # everything, an hour or two; results/latency.json
                                                           # (with --device cuda, latency_cuda.json)
    python benchmarks/latency.py --sizes mini --batches 16 # a part; the other settings' rows stay

Sizes: base with random weights, mini with daisy-mini's. Every system gives the same states for a recording by itself,
which is checked before anything is timed. ``ratio`` is a system's time over ours, above 1 where we are faster: the
median over turns in which the systems follow one another, with its quartiles. Ours and the peers that can return the
states of all layers; fairseq gives the last one's only. In bfloat16 a peer runs as its users have it, under autocast or
with weights in bfloat16, whichever is the faster in that setting and computes the same (``form``). Shapes were met
before: no system's first call is timed, but where a turn takes a minute. "mixed" is real recordings of the shared test
splits, or 1 to 15 s where they are absent.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import paired
import peers
import speed_figures
import torch
from common import DATA, guarded, kept, positive, utterances, write
from rendering import SETTING, by_setting, ratio
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

import daisy
from daisy import _files
from daisy.cli.console import checked_device
from daisy.encoder import EarlyExitEncoder
from daisy.errors import DaisyError
from daisy.models import Backbone, BackboneConfig
from daisy.policies import Never

RATE = 16000
FIXED_SEC = 10.0
WIDTH = 140
"""Columns of the table, where the output is no terminal."""
OURS = "daisy"
LEAST_COSINE = {"float32": 0.99999, "bfloat16": 0.99}
"""Of the last layer's states to ours, below which a peer computes something else."""


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="mini, and two turns of few settings")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there, and no results file")
    parser.add_argument("--sizes", nargs="+", default=["mini", "base"], choices=("mini", "base"))
    parser.add_argument("--precisions", nargs="+", default=["float32", "bfloat16"], choices=("float32", "bfloat16"))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 16])
    parser.add_argument("--lengths", nargs="+", default=["fixed", "mixed"], choices=("fixed", "mixed"))
    parser.add_argument("--threads", nargs="+", type=positive, help="1 and 2; 1 where a GPU computes")
    parser.add_argument("--systems", nargs="+", default=list(peers.PEERS), choices=list(peers.PEERS))
    parser.add_argument("--repeats", type=positive, help="turns: 5, three where they take minutes; 101 on a GPU")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    arguments = parser.parse_args()
    on_cpu = arguments.device == "cpu"
    arguments.threads = arguments.threads or sorted({1, min(2, os.cpu_count() or 1) if on_cpu else 1})
    arguments.repeats = arguments.repeats or (5 if on_cpu else 101)
    return arguments


def backbone_of(size: str) -> Backbone:
    """daisy-mini's, or HuBERT Base with random weights."""
    if size == "mini":
        return daisy.load("daisy-mini").backbone
    torch.manual_seed(0)
    return Backbone(BackboneConfig.base())


def recordings(lengths: str, batch: int) -> list[Tensor]:
    """A batch of waveforms, of the shortest to the longest where lengths are mixed."""
    generator = torch.Generator().manual_seed(0)
    if lengths == "fixed":
        return [0.1 * torch.randn(int(FIXED_SEC * RATE), generator=generator) for _ in range(batch)]
    if DATA.is_dir():
        found = [
            each.waveform
            for each in utterances(("librispeech", "commands", "keywords", "mboshi"), "test", -(-batch // 4))
        ]
    else:
        found = [0.1 * torch.randn(RATE * (1 + i % 15), generator=generator) for i in range(batch)]
    found.sort(key=len)
    return found[:: max(1, len(found) // batch)][:batch]


def ours(backbone: Backbone, precision: str) -> peers.System:
    """All layers' states, no scores."""
    encoder = EarlyExitEncoder(backbone, None, Never(), dtype=precision)
    return lambda waveforms: [states[-1] for states in encoder(waveforms).states]


def casting(system: peers.System, device: str) -> peers.System:
    """A peer in bfloat16 by autocast."""

    def run(waveforms: list[Tensor]) -> list[Tensor]:
        with torch.autocast(device, torch.bfloat16):
            return system(waveforms)

    return run


Forms = dict[str, peers.System]
"""Ways to run a system in a precision."""


def forms_of(names: Sequence[str], backbone: Backbone, precision: str, waveform: Tensor) -> dict[str, Forms]:
    """All systems, each in the ways that give our states.

    Raises:
        DaisyError: naming a peer that has no such way: what computes something else is not timed.
    """
    mine = ours(backbone, precision)
    others = {name: {precision: system} for name, system in peers.build(names, backbone).items()}
    if precision == "bfloat16":
        halved = peers.build(list(others), backbone, torch.bfloat16)
        device = backbone.device.type
        others = {
            name: {"autocast": casting(forms[precision], device), "weights": halved[name]}
            for name, forms in others.items()
        }
    (expected,) = mine([waveform])
    found = {name: _same(forms, waveform, expected.float(), precision) for name, forms in others.items()}
    if wrong := [name for name, forms in found.items() if not forms]:
        raise DaisyError(f"the states of {', '.join(wrong)} are not ours in {precision}")
    return {OURS: {precision: mine}, **found}


@torch.no_grad()
def _same(forms: Forms, waveform: Tensor, expected: Tensor, precision: str) -> Forms:
    """Those whose mean cosine to ours is high enough; a peer may be unable to run in one."""
    found = {}
    for form, system in forms.items():
        try:
            (states,) = system([waveform])
        except RuntimeError:
            continue
        cosine = F.cosine_similarity(states.float()[: len(expected)], expected, dim=-1).mean()
        if float(cosine) > LEAST_COSINE[precision]:
            found[form] = system
    return found


def fastest(forms: Forms, waveforms: list[Tensor]) -> str:
    """Of a run each, after a warm-up as in `paired.turns`."""
    if len(forms) == 1:
        return next(iter(forms))
    times = paired.turns({form: partial(system, waveforms) for form, system in forms.items()}, 1)
    return min(times, key=lambda form: times[form].median)


def batches(arguments: argparse.Namespace) -> list[tuple[int, str]]:
    """Sizes and lengths; a single recording has one length."""
    return [
        (batch, lengths) for batch in arguments.batches for lengths in (["fixed"] if batch == 1 else arguments.lengths)
    ]


def measure(size: str, arguments: argparse.Namespace, advance: Callable[[str], None]) -> Iterator[list[dict]]:
    """The rows of one setting after the other."""
    backbone = backbone_of(size).to(arguments.device)
    for precision in arguments.precisions:
        three_sec = recordings("fixed", 1)[0][: 3 * RATE].to(arguments.device)
        systems = forms_of(arguments.systems, backbone, precision, three_sec)
        for (batch, lengths), threads in itertools.product(batches(arguments), arguments.threads):
            advance(f"{size} {precision} batch {batch} {lengths} {threads} thread(s)")
            waveforms = [each.to(arguments.device) for each in recordings(lengths, batch)]
            torch.set_num_threads(threads)
            chosen = {name: fastest(forms, waveforms) for name, forms in systems.items()}
            times = paired.turns(
                {name: partial(systems[name][form], waveforms) for name, form in chosen.items()}, arguments.repeats
            )
            rows = []
            for name, seconds in times.items():
                middle, low, high = seconds.over(times[OURS])
                rows.append(
                    {
                        "size": size,
                        "precision": precision,
                        "batch": batch,
                        "lengths": lengths,
                        "threads": threads,
                        "device": arguments.device,
                        "system": name,
                        "form": chosen[name],
                        "audio_sec": round(sum(map(len, waveforms)) / RATE, 3),
                        "seconds": round(seconds.median, 5),
                        "ratio": round(middle, 3),
                        "ratio_low": round(low, 3),
                        "ratio_high": round(high, 3),
                    }
                )
            yield rows


def keep(rows: list[dict], name: str) -> None:
    """Put rows into results/NAME.json, in place of those of the same settings; parts may come in any order."""
    measured = {tuple(row[key] for key in SETTING) for row in rows}
    others = [row for row in kept(name) if tuple(row[key] for key in SETTING) not in measured]
    ordered = sorted([*others, *rows], key=_place)
    write(name, ordered, arguments=() if name == "latency" else ("--device", name.removeprefix("latency_")))
    speed_figures.latency(ordered, name)


def _place(row: dict) -> tuple:
    return row["size"] != "mini", row["precision"] != "float32", *(row[key] for key in SETTING[2:])


def show(rows: list[dict], console: Console) -> None:
    """A line for each setting."""
    names = list(dict.fromkeys(row["system"] for row in rows if row["system"] != OURS))
    title = "a system's time over ours (above 1: we are faster), median of the turns, and their quartiles"
    table = Table(*SETTING, "ours, s", *names, box=None, title=title)
    for setting, found in by_setting(rows).items():
        cells = [ratio(found[name]) if name in found else "" for name in names]
        table.add_row(*map(str, setting), f"{found[OURS]['seconds']:.3f}", *cells)
    console.print(table)


def main() -> None:
    arguments = parse()
    if arguments.quick:
        arguments.sizes, arguments.batches, arguments.lengths, arguments.repeats = ["mini"], [1, 2], ["mixed"], 2
        arguments.threads = arguments.threads[-1:]
    name = "latency" if arguments.device == "cpu" else f"latency_{arguments.device}"
    writes = not (arguments.json or arguments.quick)
    if writes:
        kept(name)  # refuses before anything is measured
    checked_device(arguments.device)
    console = Console() if sys.stdout.isatty() else Console(width=WIDTH)
    logging.disable(logging.INFO)  # fairseq and s3prl print their whole configurations
    settings = len(arguments.precisions) * len(arguments.threads) * len(arguments.sizes) * len(batches(arguments))
    rows: list[dict] = []
    with Progress(console=console) as progress:
        bar = progress.add_task("preparing", total=settings)

        def advance(what: str) -> None:
            progress.update(bar, description=what, advance=1)

        for size in arguments.sizes:
            for measured in measure(size, arguments, advance):
                rows += measured
                if arguments.json:
                    _files.write_json(arguments.json, rows)
                elif writes:
                    keep(measured, name)
    show(rows, console)


if __name__ == "__main__":
    guarded(main)
