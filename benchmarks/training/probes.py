"""Accuracy of linear classifiers on each layer's mean over time: the digit, its speaker, the keyword.

    python -m benchmarks.training.probes hubert_mini=hubert_mini.safetensors daisy-mini=daisy-mini

Logistic regression on standardised features, fitted on the train splits (with its regularisation chosen there by
cross-validation), and scored once on the test splits. It is compared with the mean log-mel spectrum, and with the
layers of a network of the same shape with random weights. The six digit speakers, and some of the keywords' speakers,
are in both splits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.progress import Progress
from sklearn.linear_model import LogisticRegressionCV
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

import daisy
from benchmarks.shared.recordings import SAMPLE_RATE, Utterance, read_index, read_utterances
from benchmarks.shared.results import RESULTS, Row, write_result
from benchmarks.shared.script import make_parser, parse_pairs, run_script
from daisy.calibration import intervals
from daisy.encoder import EarlyExitEncoder
from daisy.evaluation.style import choose_lines, style_axes, style_lines
from daisy.models import Backbone
from daisy.policies import Never

LOG_MEL = "log-mel"
TASKS = {
    "digit": ("digits", "text_or_label"),
    "digit speaker": ("digits", "speaker"),
    "keyword": ("keywords", "text_or_label"),
}
"""Maps a task to its set and to the column of the index to classify."""
SPLITS = ("train", "test")
PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)
Extractor = Callable[[Tensor], Tensor]
"""Maps an (N,) waveform to (layers, F), means over time."""


def make_layer_extractor(backbone: Backbone) -> Extractor:
    """Make a function that computes the means over time of layers 0 to L."""
    encoder = EarlyExitEncoder(backbone, None, Never())
    return lambda waveform: encoder([waveform]).states[0].mean(1)


def extract_log_mel(waveform: Tensor) -> Tensor:
    """Compute the mean over time of the log-mel spectrum, (1, 80): 25 ms windows every 10 ms."""
    from torchaudio.compliance import kaldi

    spectrum = kaldi.fbank(waveform[None] * 32768, num_mel_bins=80, sample_frequency=SAMPLE_RATE)
    return spectrum.mean(0, keepdim=True)


@dataclass(frozen=True)
class Split:
    """A split of a set: recordings, and the lines of its index."""

    utterances: list[Utterance]
    index: list[dict[str, str]]


def measure(extractors: dict[str, Extractor], quick: bool, bar: Progress) -> list[Row]:
    """Measure all tasks on all features."""
    rows = []
    limit = 120 if quick else None
    for set_name in dict.fromkeys(name for name, _ in TASKS.values()):
        splits = {
            split: Split(read_utterances((set_name,), split, limit), read_index(set_name, split, limit))
            for split in SPLITS
        }
        total = len(extractors) * sum(len(split.utterances) for split in splits.values())
        task = bar.add_task(set_name, total=total)
        for name, extract in extractors.items():
            features = {
                split: extract_all(extract, recordings.utterances, partial(bar.advance, task))
                for split, recordings in splits.items()
            }
            for kind, (of_set, column) in TASKS.items():
                if of_set == set_name:
                    rows += probe_layers(kind, name, features, splits, column)
    return rows


def extract_all(extract: Extractor, utterances: Sequence[Utterance], advance: Callable[[], None]) -> NDArray[Any]:
    """Extract the features of all utterances, (B, layers, F)."""
    features = []
    for utterance in utterances:
        features.append(extract(utterance.waveform))
        advance()
    return torch.stack(features).numpy()


def probe_layers(
    task: str, name: str, features: dict[str, NDArray[Any]], splits: dict[str, Split], column: str
) -> list[Row]:
    """Probe each layer, and return rows of probes.json. Intervals resample speakers, or groups in their place."""
    labels = {split: [row[column] for row in splits[split].index] for split in SPLITS}
    speakers = [utterance.speaker for utterance in splits["test"].utterances]
    rows = []
    for layer in range(features["train"].shape[1]):
        is_right, train_accuracy = fit_probe(
            features["train"][:, layer], labels["train"], features["test"][:, layer], labels["test"]
        )
        estimate = intervals.bootstrap(is_right.tolist(), speakers)
        rows.append(
            {
                "task": task,
                "features": name,
                "layer": layer,
                "accuracy": estimate.mean,
                "low": estimate.low,
                "high": estimate.high,
                "train_accuracy": train_accuracy,
                "num_train": len(labels["train"]),
                "num_test": len(labels["test"]),
            }
        )
    print(f"{task:14} {name:14}", " ".join(f"{row['accuracy']:.3f}" for row in rows))
    return rows


def fit_probe(
    train: NDArray[Any], train_labels: Sequence[str], test: NDArray[Any], test_labels: Sequence[str]
) -> tuple[NDArray[Any], float]:
    """Fit a classifier on (B, F) features.

    Returns:
        Whether each test utterance is classified correctly, and the cross-validation accuracy on the train split.
    """
    model = fit_classifier(train, train_labels)
    train_accuracy = next(iter(model[-1].scores_.values())).mean(0).max()
    return model.predict(test) == numpy.asarray(test_labels), float(train_accuracy)


def fit_classifier(features: NDArray[Any], labels: Sequence[str]) -> Pipeline:
    """Fit logistic regression on standardised (B, F) features, its regularisation by cross-validation."""
    folds = StratifiedKFold(3, shuffle=True, random_state=0)  # in the index's order a fold would be a few speakers
    classifier = LogisticRegressionCV(Cs=PENALTIES, cv=folds, max_iter=1000, random_state=0)
    return make_pipeline(StandardScaler(), classifier).fit(features, labels)


def choose_best(rows: Sequence[Row]) -> Row:
    """Choose the best row by cross-validation on the train split; the test split is not used for choices."""
    return max(rows, key=lambda row: row["train_accuracy"])


def draw(rows: Sequence[Row], path: Path = RESULTS / "probes.png") -> None:
    """Draw accuracy against layer, one panel per task, with log-mel as a horizontal line."""
    figure = Figure(figsize=(11.0, 4.0), dpi=150, layout="constrained")
    panels = figure.subplots(1, len(TASKS), sharex=True)
    features = choose_lines(dict.fromkeys(row["features"] for row in rows))
    styles = style_lines([name for name in features if name != LOG_MEL])
    for axes, task in zip(panels, TASKS, strict=True):
        for name in features:
            curve = [row for row in rows if (row["task"], row["features"]) == (task, name)]
            if curve and name == LOG_MEL:
                axes.axhline(curve[0]["accuracy"], color="black", linestyle="--", label=name)
                continue
            layers, accuracies, low, high = (
                [row[field] for row in curve] for field in ("layer", "accuracy", "low", "high")
            )
            axes.plot(layers, accuracies, label=name, **styles[name])
            axes.fill_between(layers, low, high, color=styles[name]["color"], alpha=0.15, linewidth=0)
        best = choose_best([row for row in rows if row["task"] == task and row["features"] != LOG_MEL])
        title = f"{task}: {best['accuracy']:.2f}, {best['features']}, layer {best['layer']} (best on train)"
        axes.set_title(title, loc="left", fontsize="small")
        axes.set_xlabel("layer")
    style_axes(panels)
    panels[0].set_ylabel("accuracy on the test split")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, loc="outside lower center", ncols=len(labels), fontsize="small")
    figure.savefig(path)


def main() -> None:
    parser = make_parser(__doc__, quick="a few recordings; nothing is written")
    parser.add_argument("models", nargs="+", metavar="NAME=CHECKPOINT")
    arguments = parser.parse_args()
    backbones = {name: daisy.load(path).backbone for name, path in parse_pairs(arguments.models)}
    torch.manual_seed(0)
    random_backbone = Backbone(next(reversed(backbones.values())).config)
    extractors: dict[str, Extractor] = {LOG_MEL: extract_log_mel, "random": make_layer_extractor(random_backbone)}
    extractors |= {name: make_layer_extractor(backbone) for name, backbone in backbones.items()}
    with Progress() as bar:
        rows = measure(extractors, arguments.quick, bar)
    if not arguments.quick:
        write_result("probes", rows)
        draw(rows)


if __name__ == "__main__":
    run_script(main)
