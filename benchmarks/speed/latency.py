"""Times HuBERT at full depth, ours against other libraries' with the same weights.

    python -m benchmarks.speed.latency --quick                   # under a minute on two cores; no results file
    python -m benchmarks.speed.latency                           # everything, an hour or two; results/latency.json
                                                                 # (with --device cuda, latency_cuda.json)
    python -m benchmarks.speed.latency --sizes mini --batches 16 # a part; the other settings' rows stay
    python -m benchmarks.speed.latency --systems s3prl --json a.json # with some systems, or with other --repeats

Sizes: base with random weights, mini with daisy-mini's. Before the timing, every system is checked to give the same
states for a single recording. ``ratio`` is a system's time over ours, above 1 where we are faster: the median over
turns in which the systems follow one another, with its quartiles. Our encoder and those peers that can do so return the
states of all layers; fairseq returns only the last layer's. In bfloat16 a peer runs as its users run it, under autocast
or with weights in bfloat16, whichever is faster in that setting among those that give the same states (``form``). All
shapes have been seen before: no system's first call is timed, except where a turn takes a minute. "mixed" is real
recordings of the shared test splits, or 1 to 15 s of noise if they are absent.
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
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from benchmarks.shared.paired import time_in_turns
from benchmarks.shared.peers import PEERS, System, build_peers
from benchmarks.shared.recordings import (
    DATA,
    SAMPLE_RATE,
    TEST_SETS,
    count_seconds,
    make_noise,
    read_utterances,
)
from benchmarks.shared.rendering import format_ratio
from benchmarks.shared.results import Row, read_rows_beside, replace_rows, write_result
from benchmarks.shared.script import make_parser, parse_positive, run_script
from benchmarks.speed.figures import draw_latency
from benchmarks.speed.measures import (
    FLOAT_PRECISIONS,
    SETTING,
    SIZES,
    group_by_setting,
    make_backbone,
)
from daisy import _files
from daisy.cli.options import check_device
from daisy.encoder import EarlyExitEncoder
from daisy.errors import DaisyError, UsageError
from daisy.models import Backbone
from daisy.policies import Never
from daisy.runtime.dtypes import Precision

FIXED_SEC = 10.0
MIXED_SETS = tuple(name for name in TEST_SETS if name != "digits")
"""Sets whose recordings last 1 s or more."""
WIDTH = 140
"""Width of the table in columns if the output is not a terminal."""
OURS = "daisy"
MIN_COSINE = {"float32": 0.99999, "bfloat16": 0.99}
"""Minimum mean cosine of the last layer's states to ours; below it a peer computes something else."""
CPU_REPEATS, CUDA_REPEATS = 5, 101


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser(__doc__, quick="mini, and two turns of few settings; no results file")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows to this file, and no results file")
    parser.add_argument("--sizes", nargs="+", default=list(SIZES), choices=SIZES)
    parser.add_argument("--precisions", nargs="+", default=list(FLOAT_PRECISIONS), choices=FLOAT_PRECISIONS)
    parser.add_argument("--batches", nargs="+", type=parse_positive, default=[1, 16])
    parser.add_argument("--lengths", nargs="+", default=["fixed", "mixed"], choices=("fixed", "mixed"))
    parser.add_argument("--threads", nargs="+", type=parse_positive, help="1 and 2; 1 where a GPU computes")
    parser.add_argument("--systems", nargs="+", default=list(PEERS), choices=list(PEERS))
    parser.add_argument(
        "--repeats",
        type=parse_positive,
        help=f"turns: {CPU_REPEATS}, three where they take minutes; {CUDA_REPEATS} on a GPU",
    )
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    arguments = parser.parse_args()
    on_cpu = arguments.device == "cpu"
    arguments.threads = arguments.threads or sorted({1, min(2, os.cpu_count() or 1) if on_cpu else 1})
    arguments.repeats = arguments.repeats or (CPU_REPEATS if on_cpu else CUDA_REPEATS)
    if arguments.quick:
        arguments.sizes, arguments.batches, arguments.lengths, arguments.repeats = ["mini"], [1, 2], ["mixed"], 2
        arguments.threads = arguments.threads[-1:]
    return arguments


def make_batch(lengths: str, batch: int) -> list[Tensor]:
    """Make a batch of waveforms, from the shortest to the longest if lengths are mixed.

    A mixed batch may be smaller than requested, because recordings are spread evenly over each set.
    """
    generator = torch.Generator().manual_seed(0)
    if lengths == "fixed":
        return [make_noise(int(FIXED_SEC * SAMPLE_RATE), generator) for _ in range(batch)]
    if DATA.is_dir():
        waveforms = [utterance.waveform for utterance in read_utterances(MIXED_SETS, "test", -(-batch // 4))]
    else:
        waveforms = [make_noise(SAMPLE_RATE * (1 + index % 15), generator) for index in range(batch)]
    waveforms.sort(key=len)
    return waveforms[:: max(1, len(waveforms) // batch)][:batch]


def build_ours(backbone: Backbone, precision: Precision) -> System:
    """Build our encoder: states of all layers, no scores."""
    encoder = EarlyExitEncoder(backbone, None, Never(), dtype=precision)
    return lambda waveforms: [states[-1] for states in encoder(waveforms).states]


def add_autocast(system: System, device: str) -> System:
    """Return a peer that runs in bfloat16 under autocast."""

    def run(waveforms: Sequence[Tensor]) -> list[Tensor]:
        with torch.autocast(device, torch.bfloat16):
            return system(waveforms)

    return run


Forms = dict[str, System]
"""Forms of a system in a precision, by name."""


def build_forms(names: Sequence[str], backbone: Backbone, precision: Precision, waveform: Tensor) -> dict[str, Forms]:
    """Build all systems, each in the forms that give our states.

    Args:
        names: names of the peers.
        backbone: backbone whose weights all of them have.
        precision: one of `FLOAT_PRECISIONS`.
        waveform: (N,) for comparing states.

    Raises:
        DaisyError: if a peer has no such form; it is named, and not timed.
    """
    ours = build_ours(backbone, precision)
    peers: dict[str, Forms] = {name: {precision: system} for name, system in build_peers(names, backbone).items()}
    if precision == "bfloat16":
        halved = build_peers(list(peers), backbone, torch.bfloat16)
        device = backbone.device.type
        peers = {
            name: {"autocast": add_autocast(forms[precision], device), "weights": halved[name]}
            for name, forms in peers.items()
        }
    (expected,) = ours([waveform])
    peers = {name: keep_alike(forms, waveform, expected.float(), precision) for name, forms in peers.items()}
    if wrong := [name for name, forms in peers.items() if not forms]:
        raise DaisyError(f"the states of {', '.join(wrong)} are not ours in {precision}")
    return {OURS: {precision: ours}, **peers}


@torch.no_grad()
def keep_alike(forms: Forms, waveform: Tensor, expected: Tensor, precision: str) -> Forms:
    """Keep the forms whose mean cosine to our states (T, D) is high enough; some may not run at all."""
    alike = {}
    for form, system in forms.items():
        try:
            (states,) = system([waveform])
        except RuntimeError:
            continue
        cosine = F.cosine_similarity(states.float()[: len(expected)], expected, dim=-1).mean()
        if float(cosine) > MIN_COSINE[precision]:
            alike[form] = system
    return alike


def choose_fastest(forms: Forms, waveforms: list[Tensor]) -> str:
    """Choose the fastest form from one run each, after a warm-up as in `time_in_turns`."""
    if len(forms) == 1:
        return next(iter(forms))
    times = time_in_turns({form: partial(system, waveforms) for form, system in forms.items()}, 1)
    return min(times, key=lambda form: times[form].median)


def list_batches(arguments: argparse.Namespace) -> list[tuple[int, str]]:
    """List sizes and lengths of the batches; a single recording has one length."""
    return [
        (batch, lengths) for batch in arguments.batches for lengths in (["fixed"] if batch == 1 else arguments.lengths)
    ]


def measure(size: str, arguments: argparse.Namespace, advance: Callable[[str], None]) -> Iterator[list[Row]]:
    """Measure the settings one by one.

    Args:
        size: name of a size in `SIZES`.
        arguments: parsed command line.
        advance: called with the setting that begins.

    Yields:
        The rows of a setting, one per system.
    """
    backbone = make_backbone(size).to(arguments.device)
    for precision in arguments.precisions:
        three_sec = make_batch("fixed", 1)[0][: 3 * SAMPLE_RATE].to(arguments.device)
        systems = build_forms(arguments.systems, backbone, precision, three_sec)
        for (batch, lengths), threads in itertools.product(list_batches(arguments), arguments.threads):
            advance(f"{size} {precision} batch {batch} {lengths} {threads} thread(s)")
            waveforms = [waveform.to(arguments.device) for waveform in make_batch(lengths, batch)]
            torch.set_num_threads(threads)
            setting = dict(zip(SETTING, (size, precision, len(waveforms), lengths, threads), strict=True))
            yield measure_setting(setting, systems, waveforms, arguments.repeats)


def measure_setting(
    setting: dict[str, Any], systems: dict[str, Forms], waveforms: list[Tensor], repeats: int
) -> list[Row]:
    """Time all systems on a batch in turns, each in its fastest form; return one row each."""
    forms = {name: choose_fastest(by_form, waveforms) for name, by_form in systems.items()}
    times = time_in_turns({name: partial(systems[name][form], waveforms) for name, form in forms.items()}, repeats)
    rows = []
    for name, seconds in times.items():
        median, low, high = seconds.over(times[OURS])
        rows.append(
            {
                **setting,
                "device": waveforms[0].device.type,
                "system": name,
                "form": forms[name],
                "audio_sec": round(count_seconds(waveforms), 3),
                "seconds": round(seconds.median, 5),
                "ratio": round(median, 3),
                "ratio_low": round(low, 3),
                "ratio_high": round(high, 3),
            }
        )
    return rows


def merge_result(rows: list[Row], name: str) -> None:
    """Write rows to results/NAME.json, replacing those of the same settings; parts can come in any order."""
    ordered = sorted(replace_rows(rows, name, SETTING), key=_order)
    write_result(name, ordered, arguments=() if name == "latency" else ("--device", name.removeprefix("latency_")))
    draw_latency(ordered, name)


def _order(row: Row) -> tuple[Any, ...]:
    return row["size"] != "mini", row["precision"] != "float32", *(row[key] for key in SETTING[2:])


def show(rows: list[Row], console: Console, fields: Sequence[str] = SETTING) -> None:
    """Print a line for each setting, which is defined by these fields."""
    names = list(dict.fromkeys(row["system"] for row in rows if row["system"] != OURS))
    title = "a system's time over ours (above 1: we are faster), median of the turns, and their quartiles"
    table = Table(*fields, "ours, s", *names, box=None, title=title)
    for setting, by_system in group_by_setting(rows, fields).items():
        cells = [format_ratio(by_system[name]) if name in by_system else "" for name in names]
        table.add_row(*map(str, setting), f"{by_system[OURS]['seconds']:.3f}", *cells)
    console.print(table)


def main() -> None:
    arguments = parse_arguments()
    name = "latency" if arguments.device == "cpu" else f"latency_{arguments.device}"
    measure_all(arguments, name, arguments.sizes, measure, merge_result, SETTING)


def check_writes(arguments: argparse.Namespace, name: str, systems: Sequence[str]) -> None:
    """Refuse to write rows other than those that the results file's command makes.

    Raises:
        UsageError: if systems are left out, whose rows would be lost, or the number of turns is unusual.
    """
    repeats = CPU_REPEATS if arguments.device == "cpu" else CUDA_REPEATS
    left_out = [system for system in systems if system not in arguments.systems]
    if left_out or arguments.repeats != repeats:
        why = f"without {', '.join(left_out)}" if left_out else f"with other turns than {repeats}"
        raise UsageError(f"results/{name}.json is not written {why}; --json FILE keeps such rows")


def measure_all(
    arguments: argparse.Namespace,
    name: str,
    subjects: Sequence[str],
    measure: Callable[[str, argparse.Namespace, Callable[[str], None]], Iterator[list[Row]]],
    merge: Callable[[list[Row], str], None],
    fields: Sequence[str],
    systems: Sequence[str] = tuple(PEERS),
) -> None:
    """Measure sizes or networks one by one, write each setting when it is finished, and print all.

    Args:
        arguments: parsed command line.
        name: name of the results file.
        subjects: sizes or networks to measure.
        measure: function that yields the rows of each setting of a subject.
        merge: function that writes rows into the results file.
        fields: fields that define a setting.
        systems: systems in the results file, besides ours.
    """
    writes = not (arguments.json or arguments.quick)
    if writes:
        check_writes(arguments, name, systems)
        read_rows_beside(name)  # raises errors before anything is measured
    check_device(arguments.device)
    console = Console() if sys.stdout.isatty() else Console(width=WIDTH)
    logging.disable(logging.INFO)  # fairseq and s3prl log their whole configurations
    count = len(subjects) * len(arguments.precisions) * len(arguments.threads) * len(list_batches(arguments))
    rows: list[Row] = []
    with Progress(console=console) as progress:
        bar = progress.add_task("preparing", total=count)

        def advance(setting: str) -> None:
            progress.update(bar, description=setting, advance=1)

        for subject in subjects:
            for measured in measure(subject, arguments, advance):
                rows += measured
                if arguments.json:
                    _files.write_json(arguments.json, rows)
                elif writes:
                    merge(measured, name)
    show(rows, console, fields)


if __name__ == "__main__":
    run_script(main)
