"""Times wav2vec 2.0, WavLM and data2vec at full depth, ours against other libraries' networks with the same weights.

    python -m benchmarks.speed.backbones --quick               # WavLM, two turns of few settings; no results file
    python -m benchmarks.speed.backbones                       # 1.5 hours on one core; results/backbones.json
    python -m benchmarks.speed.backbones --networks WavLM      # a part; the other settings' rows stay

Base size, random weights. Batches, forms and turns are those of `benchmarks.speed.latency`: all systems of a setting
take turns, and before the timing each is checked to give the states of our network converted from it. The system
"HuBERT" is our own HuBERT Base on the same audio: a ratio below 1 means that the network is slower than HuBERT.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.shared.backbones import SOURCES, WHISPER, Pair, make_pair
from benchmarks.shared.peers import PEERS
from benchmarks.shared.recordings import SAMPLE_RATE
from benchmarks.shared.results import Row, replace_rows, write_result
from benchmarks.shared.script import make_parser, parse_positive, run_script
from benchmarks.speed.latency import (
    CPU_REPEATS,
    CUDA_REPEATS,
    OURS,
    Forms,
    add_autocast,
    build_ours,
    keep_alike,
    list_batches,
    make_batch,
    measure_all,
    measure_setting,
)
from benchmarks.speed.measures import BACKBONE_SETTING, FLOAT_PRECISIONS, make_backbone
from daisy.errors import DaisyError
from daisy.runtime.dtypes import Precision

NETWORKS = tuple(network for network in SOURCES if network != WHISPER)
QUICK_NETWORK = "WavLM"
SYSTEMS = ("s3prl", "transformers")
"""The libraries that most people run these networks with."""
HUBERT = "HuBERT"


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser(__doc__, quick=f"{QUICK_NETWORK}, and two turns of few settings; no results file")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows to this file, and no results file")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS)
    parser.add_argument("--precisions", nargs="+", default=list(FLOAT_PRECISIONS), choices=FLOAT_PRECISIONS)
    parser.add_argument("--batches", nargs="+", type=parse_positive, default=[1, 16])
    parser.add_argument("--lengths", nargs="+", default=["fixed", "mixed"], choices=("fixed", "mixed"))
    parser.add_argument("--threads", nargs="+", type=parse_positive, default=[1])
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS), choices=list(PEERS))
    parser.add_argument("--repeats", type=parse_positive, help=f"turns: {CPU_REPEATS}; {CUDA_REPEATS} on a GPU")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    arguments = parser.parse_args()
    arguments.repeats = arguments.repeats or (CPU_REPEATS if arguments.device == "cpu" else CUDA_REPEATS)
    arguments.networks = arguments.networks or ([QUICK_NETWORK] if arguments.quick else NETWORKS)
    if arguments.quick:
        arguments.batches, arguments.lengths, arguments.repeats = [1, 2], ["mixed"], 2
    return arguments


def make_pairs(
    network: str, sources: Sequence[str], device: str, dtype: torch.dtype = torch.float32
) -> dict[str, Pair]:
    """Make the networks of the installed libraries, with weights of type ``dtype``; ours have float32.

    Raises:
        DaisyError: if no such library is installed.
    """
    pairs = {}
    for source in sources:
        if source in SOURCES[network] and (pair := make_pair(network, source, "base")) is not None:
            pair.model.to(device, dtype)
            pair.ours.to(device)
            pairs[source] = pair
    if not pairs:
        raise DaisyError(f"none of {', '.join(sources)} has {network} here")
    return pairs


def build_systems(network: str, pairs: dict[str, Pair], precision: Precision, waveform: Tensor) -> dict[str, Forms]:
    """Build all systems, each in the forms that give our states: ours, HuBERT, and the libraries'.

    Args:
        network: name of the network.
        pairs: networks from `make_pairs`.
        precision: one of `FLOAT_PRECISIONS`.
        waveform: (N,) for comparing states.

    Raises:
        DaisyError: if a library's network gives other states; it is named, and not timed.
    """
    device = waveform.device.type
    ours = {source: build_ours(pair.ours.hubert, precision) for source, pair in pairs.items()}
    systems: dict[str, Forms] = {
        OURS: {precision: next(iter(ours.values()))},
        HUBERT: {precision: build_ours(make_backbone("base").to(device), precision)},
    }
    forms: dict[str, Forms] = {source: {precision: pair.system} for source, pair in pairs.items()}
    if precision == "bfloat16":  # s3prl's upstreams cannot be copied: their hooks write to the first one's list
        halved = make_pairs(network, list(pairs), device, torch.bfloat16)
        forms = {
            source: {"autocast": add_autocast(pair.system, device), "weights": halved[source].system}
            for source, pair in pairs.items()
        }
    for source, of_source in forms.items():
        (expected,) = ours[source]([waveform])
        systems[source] = keep_alike(of_source, waveform, expected.float(), precision)
        if not systems[source]:
            raise DaisyError(f"the states of {source}'s {network} are not ours in {precision}")
    return systems


def measure(network: str, arguments: argparse.Namespace, advance: Callable[[str], None]) -> Iterator[list[Row]]:
    """Measure the settings one by one.

    Args:
        network: name of a network in `NETWORKS`.
        arguments: parsed command line.
        advance: called with the setting that begins.

    Yields:
        The rows of a setting, one per system.
    """
    pairs = make_pairs(network, arguments.systems, arguments.device)
    for precision in arguments.precisions:
        three_sec = make_batch("fixed", 1)[0][: 3 * SAMPLE_RATE].to(arguments.device)
        systems = build_systems(network, pairs, precision, three_sec)
        for (batch, lengths), threads in itertools.product(list_batches(arguments), arguments.threads):
            waveforms = [waveform.to(arguments.device) for waveform in make_batch(lengths, batch)]
            values = (network, precision, len(waveforms), lengths, threads)
            setting = dict(zip(BACKBONE_SETTING, values, strict=True))
            advance(" ".join(map(str, values)))
            torch.set_num_threads(threads)
            yield measure_setting(setting, systems, waveforms, arguments.repeats)


def merge_result(rows: list[Row], name: str) -> None:
    """Write rows to results/NAME.json, replacing those of the same settings."""
    order = {value: place for place, value in enumerate((*NETWORKS, *FLOAT_PRECISIONS))}
    ordered = sorted(
        replace_rows(rows, name, BACKBONE_SETTING),
        key=lambda row: [order.get(row[field], row[field]) for field in BACKBONE_SETTING],
    )
    write_result(name, ordered, arguments=() if name == "backbones" else ("--device", "cuda"))


def main() -> None:
    arguments = parse_arguments()
    name = "backbones" if arguments.device == "cpu" else f"backbones_{arguments.device}"
    measure_all(arguments, name, arguments.networks, measure, merge_result, BACKBONE_SETTING, SYSTEMS)


if __name__ == "__main__":
    run_script(main)
