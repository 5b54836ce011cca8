"""How much k-means units tell about what is said, about who says it, and how well they stand noise; by layer.

    python benchmarks/units.py hubert_mini=hubert_mini.safetensors iteration1=iteration1.safetensors

For choosing the layer that the next iteration's units are made of, before it is trained; hence on train splits alone.
No phones are labelled in these recordings. What stands for them: the keyword and the tenth of it that a frame lies in,
between the first and last frame within 35 dB of the loudest. `--digits` measures the same on the digits set (fifths of
a digit), which no choice was made on. `--centre` measures each layer also with every recording's mean taken off, as
`daisy labels --centre` does.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable

import numpy
import torch
from common import guarded, noises, rows, utterances, write
from rich.progress import Progress
from sklearn.metrics import adjusted_mutual_info_score, mutual_info_score
from torch import Tensor

import daisy
from daisy.calibration import tracing
from daisy.extraction.units import fit_kmeans, make_mfcc

FIT_SETS = ("librispeech", "commands", "keywords")
FIT_FRAMES = 60_000
LOUD_DB = 35.0


def speech_tenths(waveform: Tensor, num_frames: int, parts: int) -> numpy.ndarray:
    """Which of ``parts`` equal stretches of the word each frame lies in, -1 outside it."""
    energy = waveform.unfold(0, 400, 320).square().mean(1)[:num_frames]
    loud = (10 * torch.log10(energy + 1e-10) > 10 * torch.log10(energy.max() + 1e-10) - LOUD_DB).nonzero()[:, 0]
    first, last = int(loud[0]), int(loud[-1])
    places = (torch.arange(len(energy)) - first) * parts // (last - first + 1)
    return torch.where((places >= 0) & (places < parts), places, -1).numpy()


def information(units: numpy.ndarray, truth: numpy.ndarray) -> tuple[float, float]:
    """(mutual information over the labels' entropy, purity): of frames whose label is not negative."""
    units, truth = units[truth >= 0], truth[truth >= 0]
    counts = numpy.zeros((units.max() + 1, truth.max() + 1))
    numpy.add.at(counts, (units, truth), 1)
    shares = counts.sum(0) / counts.sum()
    entropy = -(shares[shares > 0] * numpy.log(shares[shares > 0])).sum()
    return float(mutual_info_score(units, truth) / entropy), float(counts.max(1).sum() / counts.sum())


def all_layers(model: daisy.Model) -> Callable[[Tensor], Tensor]:
    """(N,) to (L + 1, T, D) float16: layers 0 to L."""
    encoder = daisy.EarlyExitEncoder(model.backbone, None, daisy.policies.Never())
    return lambda waveform: encoder([waveform]).states[0].half()


def mfcc(waveform: Tensor) -> Tensor:
    """(N,) to (1, T, 39)."""
    return make_mfcc(50)(waveform)[None]


def gather(features: Callable[[Tensor], Tensor], waveforms: list[Tensor], advance: Callable[[], None]) -> list[Tensor]:
    found = []
    for waveform in waveforms:
        found.append(features(waveform))
        advance()
    return found


def less_means(recordings: list[Tensor]) -> list[Tensor]:
    """(L, T, D) each: every layer less its mean over the recording."""
    return [(states.float() - states.float().mean(1, keepdim=True)).half() for states in recordings]


def measure(
    name: str,
    features,
    num_units: list[int],
    layers: list[int] | None,
    bar: Progress,
    *,
    digits: bool,
    centre: bool,
    quick: bool,
) -> list[dict]:
    """One line for each layer (raw, and with ``centre`` also centred) and number of units."""
    generator = numpy.random.default_rng(0)
    word_set, parts = ("digits", 5) if digits else ("keywords", 10)
    fit_on = utterances(FIT_SETS, "train", 30 if quick else 120)
    words = utterances((word_set,), "train", 60 if quick else None)
    names = [row["text_or_label"] for row in rows(word_set, "train")]
    if quick:
        names = names[:: -(-len(names) // 60)]
    kinds = {text: index for index, text in enumerate(sorted(set(names)))}
    people = {speaker: index for index, speaker in enumerate(sorted({u.speaker for u in words}))}
    task = bar.add_task(name, total=len(fit_on) + len(words) + 2 * 60)
    advance = lambda: bar.advance(task)  # noqa: E731
    drawn = gather(features, [u.waveform for u in fit_on], advance)
    heard = gather(features, [u.waveform for u in words], advance)
    robust = [u.waveform for u in words[:: max(1, len(words) // 60)]][:60]
    clean = gather(features, robust, advance)
    noisy = gather(features, tracing.mix_noise(robust, noises("train"), 10.0), advance)
    lengths = [found.shape[1] for found in heard]
    spoken = numpy.concatenate(
        [
            numpy.where(place >= 0, kinds[text] * parts + place, -1)
            for text, u, length in zip(names, words, lengths, strict=True)
            for place in [speech_tenths(u.waveform, length, parts)]
        ]
    )
    speaker = numpy.concatenate([numpy.full(n, people[u.speaker]) for u, n in zip(words, lengths, strict=True)])
    measured = []
    forms = {False: (drawn, heard, clean, noisy)}
    if centre:
        forms[True] = tuple(less_means(recordings) for recordings in forms[False])
    for layer, centred in itertools.product(layers or range(drawn[0].shape[0]), forms):
        drawn, heard, clean, noisy = forms[centred]
        frames = numpy.concatenate([found[layer].float().numpy() for found in drawn])
        frames = frames[generator.permutation(len(frames))[:FIT_FRAMES]]
        for clusters in num_units:
            first, second = (fit_kmeans(frames[half::2], clusters, seed=half) for half in (0, 1))

            def assign(found: list[Tensor], layer=layer, centres=first) -> numpy.ndarray:
                return numpy.concatenate([nearest(each[layer], centres) for each in found])

            units = assign(heard)
            pnmi, purity = information(units, spoken)
            clean_units = assign(clean)
            measured.append(
                {
                    "features": name,
                    "labels": f"{word_set}, {parts} parts of a word",
                    "layer": layer,
                    "centred": centred,
                    "num_units": clusters,
                    "word_information": pnmi,
                    "word_purity": purity,
                    "speaker_information": information(units, speaker)[0],
                    "stability": adjusted_mutual_info_score(units, assign(heard, centres=second)),
                    "noise_stability_10_db": adjusted_mutual_info_score(clean_units, assign(noisy)),
                }
            )
            line = measured[-1]
            form = "centred" if centred else "raw"
            print(
                f"{name:12} layer {layer:2} {form:7} {clusters:3} units: words {pnmi:.3f} (purity {purity:.3f})  "
                f"speaker {line['speaker_information']:.3f}  stability {line['stability']:.3f}  "
                f"at 10 dB {line['noise_stability_10_db']:.3f}",
                flush=True,
            )
    return measured


def nearest(states: Tensor, centres: numpy.ndarray) -> numpy.ndarray:
    return torch.cdist(states.float(), torch.from_numpy(centres).float()).argmin(1).numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="NAME=CHECKPOINT")
    parser.add_argument("--units", type=int, nargs="+", default=[100], help="numbers of clusters")
    parser.add_argument("--layers", type=int, nargs="+", help="layers to measure; all where not given")
    parser.add_argument("--digits", action="store_true", help="measure on digits, not on keywords")
    parser.add_argument("--centre", action="store_true", help="measure the centred form, too")
    parser.add_argument("--quick", action="store_true", help="a few recordings; nothing is written")
    arguments = parser.parse_args()
    with Progress() as bar:
        options = {"digits": arguments.digits, "centre": arguments.centre, "quick": arguments.quick}
        measured = measure("mfcc", mfcc, arguments.units, None, bar, **options)
        for text in arguments.models:
            name, _, path = text.partition("=")
            features = all_layers(daisy.load(path))
            measured += measure(name, features, arguments.units, arguments.layers, bar, **options)
    if not arguments.quick:
        write("units_digits" if arguments.digits else "units", measured)


if __name__ == "__main__":
    guarded(main)
