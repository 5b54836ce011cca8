"""Compares our wav2vec 2.0, WavLM, data2vec and Whisper with every library that has them, layer by layer.

    python -m benchmarks.parity_backbones --quick       # base size, five seconds of speech; no results file
    python -m benchmarks.parity_backbones               # all: 20 minutes on one core; results/parity_backbones.json

Networks have random weights and published sizes, and are converted from what the library saves. The input is two pieces
of the bundled clips; one is longer than 800 frames, from which distance on WavLM's relative positions are the same. For
HuBERT see `benchmarks.parity`.
"""

from __future__ import annotations

import gc
import logging
import warnings
from collections.abc import Callable, Sequence
from typing import get_args

import torch
from torch import Tensor

from benchmarks.shared.backbones import SOURCES, Size, make_pair
from benchmarks.shared.recordings import SAMPLE_RATE
from benchmarks.shared.results import Row, write_result
from benchmarks.shared.script import make_parser, run_script
from daisy import audio
from daisy.checkpoints import Model
from daisy.cli.demonstration import list_clips
from daisy.encoder import EarlyExitEncoder
from daisy.policies import Never

PIECES_SEC = (5, 18)
NAME = "parity_backbones"


@torch.no_grad()
def compare_layers(ours: Model, run: Callable[[Tensor], Sequence[Tensor]], waveforms: Sequence[Tensor]) -> Tensor:
    """Compute each layer's largest difference over the waveforms, in standard deviations of the layer.

    Args:
        ours: our model.
        run: their network, from a waveform (N,) to the states of its last layers, (T, D) each, at least layers 1 to L.
        waveforms: (N_b,) each.

    Returns:
        (L,) differences.
    """
    num_layers = ours.backbone.config.num_layers
    encoder = EarlyExitEncoder(ours.backbone, None, Never())
    largest = torch.zeros(num_layers)
    for waveform in waveforms:
        states, expected = encoder([waveform]).states[0][1:], list(run(waveform))[-num_layers:]
        pairs = zip(states, expected, strict=True)
        differences = torch.stack([(state - other).abs().max() / other.std() for state, other in pairs])
        largest = torch.maximum(largest, differences)  # keeps NaN, as max would not
    return largest


def measure(network: str, source: str, size: Size, waveforms: Sequence[Tensor]) -> list[Row]:
    """Compare a network of one library: a row for each layer, or none if that library is not installed."""
    pair = make_pair(network, source, size)
    if pair is None:
        return []
    differences = compare_layers(
        pair.ours, lambda waveform: [states[0] for states in pair.run(pair.model, [waveform])], waveforms
    )
    print(f"{network} {size}, {source}: largest over layers {differences.max():.2e}", flush=True)
    return [
        {"network": network, "size": size, "source": source, "layer": layer, "max_abs_diff_over_std": difference}
        for layer, difference in enumerate(differences.tolist(), 1)
    ]


def main() -> None:
    parser = make_parser(__doc__, quick="base size and five seconds; nothing is written")
    parser.add_argument("--networks", nargs="+", choices=list(SOURCES), help="only these networks; nothing is written")
    parser.add_argument("--sizes", nargs="+", choices=get_args(Size), default=get_args(Size))
    arguments = parser.parse_args()
    logging.disable(logging.INFO)  # fairseq and s3prl log their whole configurations
    warnings.simplefilter("ignore")  # about WavLM's masks
    joined = torch.cat([audio.read(path, SAMPLE_RATE) for path in list_clips()])
    waveforms = [joined[: seconds * SAMPLE_RATE] for seconds in PIECES_SEC[: 1 if arguments.quick else None]]
    rows: list[Row] = []
    for network in arguments.networks or SOURCES:
        for size in ("base",) if arguments.quick else arguments.sizes:
            for source in SOURCES[network]:
                rows += measure(network, source, size, waveforms)
                gc.collect()  # free networks of gigabytes that their hooks keep in reference cycles
    if not (arguments.quick or arguments.networks):
        write_result(NAME, rows)


if __name__ == "__main__":
    run_script(main)
