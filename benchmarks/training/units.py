"""How informative k-means units are about content and speaker, and how robust to noise; by layer.

    python -m benchmarks.training.units hubert_mini=hubert_mini.safetensors --teacher whisper-base/ --teacher-layer 4

For choosing whose units, and of which layer, to train a network on; hence only train splits are used.
These recordings have no phone labels. Instead, each frame is labelled with its keyword and the tenth of it that the
frame lies in, between the first and last frame within 35 dB of the loudest. `--digits` measures the same on the digits
set (fifths of a digit), which was not used for any choice. `--centre` also measures each layer with every recording's
mean subtracted, as in `daisy labels --centre`.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from numpy.typing import NDArray
from rich.progress import Progress
from sklearn.metrics import adjusted_mutual_info_score, mutual_info_score
from torch import Tensor

import daisy
from benchmarks.shared.recordings import (
    TRAINING_SETS,
    Utterance,
    read_index,
    read_noises,
    read_utterances,
)
from benchmarks.shared.results import Row, write_result
from benchmarks.shared.script import make_parser, parse_pairs, parse_positive, run_script
from daisy.calibration import tracing
from daisy.encoder import EarlyExitEncoder
from daisy.extraction.features import make_mfcc
from daisy.extraction.teachers import Teacher, load_teacher
from daisy.extraction.units import fit_kmeans
from daisy.models import BackboneConfig
from daisy.policies import Never

MAX_FIT_FRAMES = 60_000
LOUD_DB = 35.0
NOISY_UTTERANCES, NOISY_SNR_DB = 60, 10.0
"""Number of utterances that are also used with noise, and its ratio."""
Extractor = Callable[[Sequence[Tensor]], Iterator[Tensor]]
"""Maps (N_b,) waveforms to (layers, T_b, D) each."""
Labels = NDArray[numpy.integer[Any]]
"""One label per frame; -1 for none."""


def locate_parts(waveform: Tensor, num_frames: int, parts: int) -> Labels:
    """Return which of ``parts`` equal stretches of the word each frame lies in, -1 outside the word."""
    config = BackboneConfig()
    energy = waveform.unfold(0, config.frame_span, config.frame_hop).square().mean(1)[:num_frames]
    energy_db = 10 * torch.log10(energy + 1e-10)
    loud = (energy_db > 10 * torch.log10(energy.max() + 1e-10) - LOUD_DB).nonzero()[:, 0]
    first, last = int(loud[0]), int(loud[-1])
    places = (torch.arange(len(energy)) - first) * parts // (last - first + 1)
    return torch.where((places >= 0) & (places < parts), places, -1).numpy()


def measure_information(units: Labels, labels: Labels) -> tuple[float, float]:
    """Measure how informative units are about labels: (mutual information over the labels' entropy, purity)."""
    units, labels = units[labels >= 0], labels[labels >= 0]
    counts = numpy.zeros((units.max() + 1, labels.max() + 1))
    numpy.add.at(counts, (units, labels), 1)
    shares = counts.sum(0) / counts.sum()
    entropy = -(shares[shares > 0] * numpy.log(shares[shares > 0])).sum()
    return float(mutual_info_score(units, labels) / entropy), float(counts.max(1).sum() / counts.sum())


def make_layer_extractor(model: daisy.Model) -> Extractor:
    """Make a function that computes layers 0 to L in float16."""
    encoder = EarlyExitEncoder(model.backbone, None, Never())
    return lambda waveforms: (encoder([waveform]).states[0].half() for waveform in waveforms)


def make_teacher_extractor(teacher: Teacher) -> Extractor:
    """Make a function that computes a teacher's layer in float16, for recordings that go together at once."""

    def extract(waveforms: Sequence[Tensor]) -> Iterator[Tensor]:
        group: list[Tensor] = []
        for waveform in waveforms:
            if group and not teacher.fit_together([*map(len, group), len(waveform)]):
                yield from (states[None].half() for states in teacher(group))
                group = []
            group.append(waveform)
        yield from (states[None].half() for states in teacher(group))

    return extract


def extract_mfcc(waveforms: Sequence[Tensor]) -> Iterator[Tensor]:
    """Compute (1, T_b, 39) for each (N_b,)."""
    mfcc = make_mfcc(50)
    return (mfcc(waveform)[None] for waveform in waveforms)


def remove_means(recordings: list[Tensor]) -> list[Tensor]:
    """Subtract every layer's mean over each recording (L, T, D)."""
    return [(states.float() - states.float().mean(1, keepdim=True)).half() for states in recordings]


@dataclass(frozen=True)
class Words:
    """Recordings of words, and their labels."""

    set_name: str
    parts: int
    """Number of parts that each word is cut into."""
    utterances: list[Utterance]
    texts: list[str]

    def label_frames(self, num_frames: Sequence[int]) -> tuple[Labels, Labels]:
        """Label all frames of all recordings, one recording after the other: part of a word, and speaker."""
        kinds = {text: index for index, text in enumerate(sorted(set(self.texts)))}
        speakers = sorted({utterance.speaker for utterance in self.utterances})
        numbers = {speaker: index for index, speaker in enumerate(speakers)}
        words, talkers = [], []
        for text, utterance, count in zip(self.texts, self.utterances, num_frames, strict=True):
            places = locate_parts(utterance.waveform, count, self.parts)
            words.append(numpy.where(places >= 0, kinds[text] * self.parts + places, -1))
            talkers.append(numpy.full(count, numbers[utterance.speaker]))
        return numpy.concatenate(words), numpy.concatenate(talkers)


def read_words(set_name: str, parts: int, limit: int | None) -> Words:
    """Read the train split of a set of words."""
    texts = [row["text_or_label"] for row in read_index(set_name, "train", limit)]
    return Words(set_name, parts, read_utterances((set_name,), "train", limit), texts)


@dataclass(frozen=True)
class Features:
    """States (layers, T, D) of each recording."""

    fitted: list[Tensor]
    """Frames for fitting the units."""
    words: list[Tensor]
    clean: list[Tensor]
    """States of some of the words."""
    noisy: list[Tensor]
    """States of the same words with noise."""

    def centred(self) -> Features:
        """Return the same features with each recording's means subtracted."""
        return Features(*(remove_means(part) for part in (self.fitted, self.words, self.clean, self.noisy)))


def extract_features(name: str, extract: Extractor, words: Words, fit_on: list[Tensor], bar: Progress) -> Features:
    """Extract all features to be measured."""
    waveforms = [utterance.waveform for utterance in words.utterances]
    clean = waveforms[:: max(1, len(waveforms) // NOISY_UTTERANCES)][:NOISY_UTTERANCES]
    noisy = tracing.mix_noise(clean, read_noises("train"), NOISY_SNR_DB)
    task = bar.add_task(name, total=len(fit_on) + len(waveforms) + 2 * len(clean))

    def extract_all(recordings: Sequence[Tensor]) -> list[Tensor]:
        features = []
        for states in extract(recordings):
            features.append(states)
            bar.advance(task)
        return features

    return Features(*map(extract_all, (fit_on, waveforms, clean, noisy)))


def assign_units(recordings: list[Tensor], layer: int, centres: NDArray[Any]) -> Labels:
    """Assign a layer's frames, of all recordings in order, to the nearest centres (K, D)."""
    nearest = (
        torch.cdist(states[layer].float(), torch.from_numpy(centres).float()).argmin(1).numpy() for states in recordings
    )
    return numpy.concatenate(list(nearest))


def measure_units(
    features: Features, layer: int, frames: NDArray[Any], num_units: int, labels: tuple[Labels, Labels]
) -> dict[str, float]:
    """Measure units fitted on (F, D) frames, and return fields of a row.

    Args:
        features: features of all recordings.
        layer: layer of the units.
        frames: units are fitted on the even-numbered half; the other half measures their stability.
        num_units: number of units, K.
        labels: part of a word, and speaker, of each frame of ``features.words``.
    """
    centres, other_centres = (fit_kmeans(frames[half::2], num_units, seed=half) for half in (0, 1))
    units = assign_units(features.words, layer, centres)
    word_information, purity = measure_information(units, labels[0])
    return {
        "word_information": word_information,
        "word_purity": purity,
        "speaker_information": measure_information(units, labels[1])[0],
        "stability": adjusted_mutual_info_score(units, assign_units(features.words, layer, other_centres)),
        "noise_stability_10_db": adjusted_mutual_info_score(
            assign_units(features.clean, layer, centres), assign_units(features.noisy, layer, centres)
        ),
    }


def measure(
    name: str, raw: Features, words: Words, numbers: list[int], layers: list[int] | None, centre: bool
) -> list[Row]:
    """Measure the units of features: a row for each layer (with ``centre`` in two forms) and number of units."""
    generator = numpy.random.default_rng(0)
    labels = words.label_frames([states.shape[1] for states in raw.words])
    forms = {False: raw, **({True: raw.centred()} if centre else {})}
    rows = []
    for layer, is_centred in itertools.product(layers or range(raw.fitted[0].shape[0]), forms):
        features = forms[is_centred]
        frames = numpy.concatenate([states[layer].float().numpy() for states in features.fitted])
        frames = frames[generator.permutation(len(frames))[:MAX_FIT_FRAMES]]
        for num_units in numbers:
            row = {
                "features": name,
                "labels": f"{words.set_name}, {words.parts} parts of a word",
                "layer": layer,
                "centred": is_centred,
                "num_units": num_units,
                **measure_units(features, layer, frames, num_units, labels),
            }
            rows.append(row)
            show(row)
    return rows


def show(row: Row) -> None:
    """Print a row."""
    form = "centred" if row["centred"] else "raw"
    print(
        f"{row['features']:12} layer {row['layer']:2} {form:7} {row['num_units']:3} units: "
        f"words {row['word_information']:.3f} (purity {row['word_purity']:.3f})  "
        f"speaker {row['speaker_information']:.3f}  stability {row['stability']:.3f}  "
        f"at 10 dB {row['noise_stability_10_db']:.3f}",
        flush=True,
    )


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser(__doc__, quick="a few recordings; nothing is written")
    parser.add_argument("models", nargs="*", metavar="NAME=CHECKPOINT")
    parser.add_argument("--units", type=parse_positive, nargs="+", default=[100], help="numbers of clusters")
    parser.add_argument("--layers", type=int, nargs="+", help="layers to measure; all where not given")
    parser.add_argument("--teacher", help="transformers encoder, a folder or a name, measured too")
    parser.add_argument("--teacher-layer", type=int, default=4)
    parser.add_argument("--digits", action="store_true", help="measure on digits, not on keywords")
    parser.add_argument("--centre", action="store_true", help="measure the centred form, too")
    return parser.parse_args()


def main() -> None:
    arguments = parse_arguments()
    fit_on = read_utterances(TRAINING_SETS, "train", 30 if arguments.quick else 120)
    fit_waveforms = [utterance.waveform for utterance in fit_on]
    set_name, parts = ("digits", 5) if arguments.digits else ("keywords", 10)
    words = read_words(set_name, parts, 60 if arguments.quick else None)
    rows = []
    with Progress() as bar:
        features = extract_features("mfcc", extract_mfcc, words, fit_waveforms, bar)
        rows += measure("mfcc", features, words, arguments.units, None, arguments.centre)
        if arguments.teacher:
            teacher = load_teacher(arguments.teacher, arguments.teacher_layer)
            features = extract_features("teacher", make_teacher_extractor(teacher), words, fit_waveforms, bar)
            of_teacher = measure("teacher", features, words, arguments.units, None, arguments.centre)
            rows += [{**row, "layer": arguments.teacher_layer} for row in of_teacher]
        for name, path in parse_pairs(arguments.models):
            features = extract_features(name, make_layer_extractor(daisy.load(path)), words, fit_waveforms, bar)
            rows += measure(name, features, words, arguments.units, arguments.layers, arguments.centre)
    if not arguments.quick:
        write_result("units_digits" if arguments.digits else "units", rows)


if __name__ == "__main__":
    run_script(main)
