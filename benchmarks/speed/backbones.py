"""Full depth of wav2vec 2.0, WavLM and data2vec, our time beside that of other people's networks on the same weights.

    python -m benchmarks.speed.backbones --quick               # WavLM, two turns of few settings; no results file
    python -m benchmarks.speed.backbones                       # an hour and a half on a core; results/backbones.json
    python -m benchmarks.speed.backbones --networks WavLM      # a part; the other settings' rows stay

Base size, random weights. As `benchmarks.speed.latency`, whose batches, forms and turns these are: all systems of a
setting take turns, and each gives the states of ours that was converted from it, which is checked before anything is
timed. The system "HuBERT" is our own HuBERT Base on the same audio: below 1, the network takes longer than that.
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
"""What people run these networks with most."""
HUBERT = "HuBERT"


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser(__doc__, quick=f"{QUICK_NETWORK}, and two turns of few settings; no results file")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there, and no results file")
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
    """Make the networks of the libraries that have it and are installed; their weights are of a type, ours float32.

    Raises:
        DaisyError: where none is.
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
    """Build all systems, each in the ways that give our states: ours, HuBERT, and the libraries'.

    Args:
        network: its name.
        pairs: of `make_pairs`.
        precision: of `FLOAT_PRECISIONS`.
        waveform: (N,) that states are compared on.

    Raises:
        DaisyError: naming a library whose network gives other states: what computes something else is not timed.
    """
    device = waveform.device.type
    ours = {source: build_ours(pair.ours.hubert, precision) for source, pair in pairs.items()}
    systems: dict[str, Forms] = {
        OURS: {precision: next(iter(ours.values()))},
        HUBERT: {precision: build_ours(make_backbone("base").to(device), precision)},
    }
    forms: dict[str, Forms] = {source: {precision: pair.system} for source, pair in pairs.items()}
    if precision == "bfloat16":  # s3prl's upstreams cannot be copied: their hooks write into the first one's list
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
    """Measure one setting after the other.

    Args:
        network: of `NETWORKS`.
        arguments: of the command line.
        advance: called with the setting that is begun.

    Yields:
        The rows of a setting, one a system.
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
    """Put rows into results/NAME.json, in place of those of the same settings."""
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
