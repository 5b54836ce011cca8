"""Times units from a k-means on a layer: daisy units, and transformers, torchaudio and fairseq with scikit-learn.

    python -m benchmarks.units.peers

HuBERT Base's shape with random weights (time does not depend on them), a k-means of 500 centres fitted on some frames
of layer 9, recordings of librispeech, one core. Each peer runs as documented, recording by recording, and, as the
fastest that users could make it, without the layers above the k-means. scikit-learn assigns the nearest centres. All
write the same units, except for frames equally near two centres: the number of differences is measured too. Added to
these are daisy-mini's heads: the full model's units, and those at exits, with the depth on these recordings.
"""

from __future__ import annotations

import copy
import functools
import statistics
from collections.abc import Callable, Sequence
from importlib.util import find_spec

import numpy
import torch
from torch import Tensor, nn

import daisy
from benchmarks.shared.paired import time_in_turns
from benchmarks.shared.peers import make_fairseq_model, make_torchaudio_model, make_transformers_model
from benchmarks.shared.recordings import count_seconds, read_utterances
from benchmarks.shared.results import Row, write_result
from benchmarks.shared.script import make_parser, run_script
from daisy import Backbone, BackboneConfig, Model
from daisy.policies import DEFAULT_POLICY
from daisy.units import UnitEncoder

LAYER, CLUSTERS, FIT_FRAMES = 9, 500, 20_000
OURS = "daisy units --kmeans"
HEADS = {"daisy units, all layers": "never", f"daisy units, {DEFAULT_POLICY}": DEFAULT_POLICY}
"""Maps rows to policies: the checkpoint's policy was set on other audio."""
System = Callable[[], list[list[int]]]


def make_backbone() -> Backbone:
    """Make a HuBERT Base with random weights."""
    torch.manual_seed(0)
    return Backbone(BackboneConfig.base()).eval()


def fit_centres(backbone: Backbone, waveforms: Sequence[Tensor]) -> object:
    """Fit scikit-learn's k-means on some frames of the layer."""
    from sklearn.cluster import MiniBatchKMeans

    encoder = daisy.EarlyExitEncoder(backbone, None, daisy.policies.Fixed(layer=LAYER), keep="last")
    frames: list[Tensor] = []
    for waveform in waveforms:
        frames.append(encoder(waveform).states[0][-1])
        if sum(map(len, frames)) >= FIT_FRAMES:
            break
    features = torch.cat(frames).numpy()
    clusters = min(CLUSTERS, len(features) // 2)
    return MiniBatchKMeans(n_clusters=clusters, n_init=1, random_state=0, batch_size=10_000).fit(features)


def predict(kmeans: object, states: Tensor) -> list[int]:
    """Assign frames (T, D) to their nearest centres with scikit-learn."""
    units: list[int] = kmeans.predict(states.numpy()).tolist()  # type: ignore[attr-defined]
    return units


@torch.no_grad()
def run_transformers(model: nn.Module, kmeans: object, waveforms: Sequence[Tensor]) -> list[list[int]]:
    """Compute units as is usual with transformers: all hidden states, of which one is assigned."""
    outputs = (model(waveform[None], output_hidden_states=True).hidden_states[LAYER][0] for waveform in waveforms)
    return [predict(kmeans, states) for states in outputs]


@torch.no_grad()
def run_cut_transformers(model: nn.Module, kmeans: object, waveforms: Sequence[Tensor]) -> list[list[int]]:
    """Compute units with transformers, using a model without the layers above."""
    outputs = (model(waveform[None]).last_hidden_state[0] for waveform in waveforms)
    return [predict(kmeans, states) for states in outputs]


@torch.no_grad()
def run_torchaudio(
    model: nn.Module, kmeans: object, num_layers: int | None, waveforms: Sequence[Tensor]
) -> list[list[int]]:
    """Compute units with torchaudio, running up to a layer or through all layers."""
    runs = (model.extract_features(waveform[None], num_layers=num_layers)[0] for waveform in waveforms)
    return [predict(kmeans, layers[LAYER - 1][0]) for layers in runs]


@torch.no_grad()
def run_fairseq(model: nn.Module, kmeans: object, waveforms: Sequence[Tensor]) -> list[list[int]]:
    """Compute units like fairseq's dump_hubert_feature.py, which runs up to the layer."""
    outputs = (
        model.extract_features(waveform[None], padding_mask=None, mask=False, output_layer=LAYER)[0][0]
        for waveform in waveforms
    )
    return [predict(kmeans, states) for states in outputs]


def make_systems(backbone: Backbone, kmeans: object, waveforms: Sequence[Tensor]) -> dict[str, System]:
    """Make the systems to time, all with the same k-means."""
    centres = torch.from_numpy(numpy.asarray(kmeans.cluster_centers_, dtype="float32"))  # type: ignore[attr-defined]
    ours = UnitEncoder(Model(backbone=backbone), kmeans=centres, layer=LAYER)
    whole = make_transformers_model(backbone)
    cut = copy.deepcopy(whole)
    cut.encoder.layers = cut.encoder.layers[:LAYER]  # type: ignore[union-attr, index]
    sounds = make_torchaudio_model(backbone)
    systems: dict[str, System] = {
        OURS: functools.partial(write_units, ours, waveforms),
        "transformers, all layers": functools.partial(run_transformers, whole, kmeans, waveforms),
        "transformers, cut": functools.partial(run_cut_transformers, cut, kmeans, waveforms),
        "torchaudio, all layers": functools.partial(run_torchaudio, sounds, kmeans, None, waveforms),
        "torchaudio, up to the layer": functools.partial(run_torchaudio, sounds, kmeans, LAYER, waveforms),
    }
    if find_spec("fairseq"):
        model = make_fairseq_model(backbone)
        systems["fairseq, up to the layer"] = functools.partial(run_fairseq, model, kmeans, waveforms)
    return systems


def measure(systems: dict[str, System], reference: str, waveforms: Sequence[Tensor], repeats: int) -> list[Row]:
    """Time systems in turns, and compare their units with those of a reference system."""
    units = {name: [unit for sequence in system() for unit in sequence] for name, system in systems.items()}
    times = time_in_turns(systems, repeats)
    rows = []
    for name, of_system in times.items():
        ratio, low, high = of_system.over(times[reference])
        others = sum(one != other for one, other in zip(units[name], units[reference], strict=True))
        rows.append(
            {
                "system": name,
                "beside": reference,
                "seconds": of_system.median,
                "audio_sec": count_seconds(waveforms),
                "ratio": ratio,
                "ratio_low": low,
                "ratio_high": high,
                "other_units": others / len(units[reference]),
            }
        )
    return rows


def measure_heads(model: Model, waveforms: Sequence[Tensor], repeats: int) -> list[Row]:
    """Time units from a model's heads, at all layers and at exits, and measure the mean share of layers run."""
    encoders = {name: UnitEncoder(model, policy) for name, policy in HEADS.items()}
    systems: dict[str, System] = {
        name: functools.partial(write_units, encoder, waveforms) for name, encoder in encoders.items()
    }
    rows = measure(systems, next(iter(HEADS)), waveforms, repeats)
    layers = [[encoders[row["system"]](waveform)[0].exit_layer for waveform in waveforms] for row in rows]
    num_layers = model.backbone.config.num_layers
    return [{**row, "depth": statistics.mean(of_row) / num_layers} for row, of_row in zip(rows, layers, strict=True)]


def write_units(encoder: UnitEncoder, waveforms: Sequence[Tensor]) -> list[list[int]]:
    """Compute the units of recordings one by one."""
    return [encoder(waveform)[0].units for waveform in waveforms]


def main() -> None:
    parser = make_parser(__doc__, quick="a few recordings, two layers' worth of turns; nothing is written")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    utterances = read_utterances(["librispeech"], "test", 3 if arguments.quick else 16)
    waveforms, repeats = [utterance.waveform for utterance in utterances], 3 if arguments.quick else 9
    backbone = make_backbone()
    kmeans = fit_centres(backbone, waveforms)
    rows = measure(make_systems(backbone, kmeans, waveforms), OURS, waveforms, repeats)
    rows += measure_heads(daisy.load("daisy-mini"), waveforms, repeats)
    for row in rows:
        print(
            f"{row['system']:34} {row['seconds']:.2f} s for {row['audio_sec']:.0f} s of audio, {row['ratio']:.2f} "
            f"({row['ratio_low']:.2f} to {row['ratio_high']:.2f}) times {row['beside']}, other units "
            f"{row['other_units']:.5f}"
        )
    if not arguments.quick:
        write_result("discrete_units_peers", rows)


if __name__ == "__main__":
    run_script(main)
