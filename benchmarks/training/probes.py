"""What a linear classifier reads off each layer's mean over time: the digit, its speaker, the keyword.

    python benchmarks/probes.py hubert_mini=hubert_mini.safetensors daisy-mini=daisy-mini

Logistic regression on standardised features, fitted on the train splits (its regularisation by cross-validation there),
scored once on the test splits. Beside each layer: the mean log-mel spectrum, and the layers of a network of the same
shape with random weights. The six digit speakers, and some of the keywords' speakers, are in both splits.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

import numpy
import torch
import torchaudio
from common import RESULTS, Utterance, guarded, rows, utterances, write
from matplotlib.figure import Figure
from rich.progress import Progress
from sklearn.linear_model import LogisticRegressionCV
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

import daisy
from daisy.calibration import intervals
from daisy.models import Backbone

TASKS = {
    "digit": ("digits", "text_or_label"),
    "digit speaker": ("digits", "speaker"),
    "keyword": ("keywords", "text_or_label"),
}
PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)
Pooled = Callable[[Tensor], Tensor]
"""(N,) waveform to (layers, F)."""


def pooled_layers(backbone: Backbone) -> Pooled:
    """Mean over time of layers 0 to L."""
    encoder = daisy.EarlyExitEncoder(backbone, None, daisy.policies.Never())
    return lambda waveform: encoder([waveform]).states[0].mean(1)


def pooled_log_mel(waveform: Tensor) -> Tensor:
    """(1, 80): mean over time of the log-mel spectrum, 25 ms windows every 10 ms."""
    spectrum = torchaudio.compliance.kaldi.fbank(waveform[None] * 32768, num_mel_bins=80, sample_frequency=16000)
    return spectrum.mean(0, keepdim=True)


def probe(train: numpy.ndarray, train_labels, test: numpy.ndarray, test_labels) -> tuple[numpy.ndarray, float]:
    """Whether each test utterance is classified rightly; and the accuracy in cross-validation on the train split."""
    folds = StratifiedKFold(3, shuffle=True, random_state=0)  # in the index's order a fold would be some speakers
    classifier = LogisticRegressionCV(Cs=PENALTIES, cv=folds, max_iter=1000, random_state=0)
    model = make_pipeline(StandardScaler(), classifier).fit(train, train_labels)
    on_train = next(iter(classifier.scores_.values())).mean(0).max()
    return model.predict(test) == numpy.asarray(test_labels), float(on_train)


def measure(kinds: dict[str, Pooled], quick: bool, bar: Progress) -> list[dict]:
    measured = []
    for set_name in dict.fromkeys(name for name, _ in TASKS.values()):
        limit = 120 if quick else None
        sets = {split: utterances((set_name,), split, limit) for split in ("train", "test")}
        index = {split: _index(set_name, split, limit) for split in sets}
        task = bar.add_task(set_name, total=len(kinds) * sum(map(len, sets.values())))
        for name, features in kinds.items():
            arrays = {}
            for split, spoken in sets.items():
                found = []
                for utterance in spoken:
                    found.append(features(utterance.waveform))
                    bar.advance(task)
                arrays[split] = torch.stack(found).numpy()  # (utterances, layers, F)
            for kind, (of_set, column) in TASKS.items():
                if of_set == set_name:
                    measured += score(kind, name, arrays, index, column, sets["test"])
    return measured


def score(kind: str, name: str, arrays, index, column: str, spoken: Sequence[Utterance]) -> list[dict]:
    wanted = {split: [row[column] for row in lines] for split, lines in index.items()}
    lines = []
    for layer in range(arrays["train"].shape[1]):
        right, on_train = probe(arrays["train"][:, layer], wanted["train"], arrays["test"][:, layer], wanted["test"])
        groups = [u.speaker for u in spoken] if kind == "keyword" else [str(i) for i in range(len(spoken))]
        estimate = intervals.bootstrap(right.tolist(), groups)
        lines.append(
            {
                "task": kind,
                "features": name,
                "layer": layer,
                "accuracy": estimate.mean,
                "low": estimate.low,
                "high": estimate.high,
                "train_accuracy": on_train,
                "num_train": len(wanted["train"]),
                "num_test": len(wanted["test"]),
            }
        )
    print(f"{kind:14} {name:14}", " ".join(f"{line['accuracy']:.3f}" for line in lines))
    return lines


def _index(set_name: str, split: str, limit: int | None) -> list[dict[str, str]]:
    """The index lines of the recordings that `utterances` reads."""
    lines = rows(set_name, split)
    return lines if limit is None or len(lines) <= limit else lines[:: -(-len(lines) // limit)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="NAME=CHECKPOINT")
    parser.add_argument("--quick", action="store_true", help="a few recordings; nothing is written")
    arguments = parser.parse_args()
    kinds: dict[str, Pooled] = {"log-mel": pooled_log_mel}
    backbones = {}
    for text in arguments.models:
        name, _, path = text.partition("=")
        backbones[name] = daisy.load(path).backbone
    torch.manual_seed(0)
    kinds["random"] = pooled_layers(Backbone(next(reversed(backbones.values())).config))
    kinds |= {name: pooled_layers(backbone) for name, backbone in backbones.items()}
    with Progress() as bar:
        measured = measure(kinds, arguments.quick, bar)
    if not arguments.quick:
        write("probes", measured)
        draw(measured)


def draw(measured: list[dict]) -> None:
    """Accuracy against layer, one panel a task; log-mel as a line across."""
    figure = Figure(figsize=(11.0, 3.6), dpi=150, layout="constrained")
    panels = figure.subplots(1, len(TASKS), sharex=True)
    for axes, task in zip(panels, TASKS, strict=True):
        lines = [line for line in measured if line["task"] == task]
        for color, name in enumerate(dict.fromkeys(line["features"] for line in lines)):
            own = [line for line in lines if line["features"] == name]
            if name == "log-mel":
                axes.axhline(own[0]["accuracy"], color="0.4", linestyle="--", label=name)
                continue
            layers = [line["layer"] for line in own]
            axes.plot(layers, [line["accuracy"] for line in own], color=f"C{color}", label=name)
            axes.fill_between(
                layers, [line["low"] for line in own], [line["high"] for line in own], color=f"C{color}", alpha=0.15
            )
        axes.set_title(task)
        axes.set_xlabel("layer")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("accuracy on the test split")
    panels[-1].legend(frameon=False, loc="lower right")
    figure.savefig(RESULTS / "probes.png")


if __name__ == "__main__":
    guarded(main)
