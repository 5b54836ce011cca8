"""Held-out loss and accuracy of every exit head, and how well its regressor foretells that loss.

    python benchmarks/heads.py clean=clean.safetensors denoising=denoising.safetensors

Dev splits of librispeech, commands and keywords; noise of the train split (its test split is for tests); the units to
be predicted are those of the full model on the clean audio. The correlation (Pearson) is over utterances.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy
import torch
from common import RESULTS, guarded, noises, utterances, write
from matplotlib.figure import Figure
from rich.progress import Progress

import daisy
from daisy.calibration import traces, tracing
from daisy.evaluation.figures import format_snr

SNRS_DB = (None, 20.0, 10.0, 0.0)
SETS = ("librispeech", "commands", "keywords")


def measure(name: str, model: daisy.Model, speech, bank, bar: Progress) -> list[dict]:
    waveforms, names = [utterance.waveform for utterance in speech], [str(index) for index in range(len(speech))]
    frames = torch.tensor([len(w) for w in waveforms], dtype=torch.float64)
    runs, reference = {}, None
    task = bar.add_task(name, total=len(SNRS_DB) * len(waveforms))
    for snr_db in SNRS_DB:
        mixed = tracing.mix_noise(waveforms, bank, snr_db)
        runs[format_snr(snr_db)], units = tracing.trace(
            model, mixed, names, reference=reference, progress=lambda n: bar.advance(task, n)
        )
        reference = reference or units
    runs["all"] = traces.join_traces(list(runs.values()))
    return [
        row(name, condition, layer, run, frames.repeat(len(run) // len(frames)).numpy())
        for condition, run in runs.items()
        for layer in range(model.backbone.config.num_layers)
    ]


def row(name: str, condition: str, layer: int, run: traces.Traces, weights: numpy.ndarray) -> dict:
    """One line of the result: means over frames, correlations over utterances."""
    loss, wrong = run.losses["loss"][:, layer].numpy(), run.losses["clean_disagreement"][:, layer].numpy()
    entropy, regressed = run.scores["entropy"][:, layer].numpy(), run.scores["regressed"][:, layer].numpy()
    return {
        "heads": name,
        "set": "dev",
        "condition": condition,
        "layer": layer + 1,
        "loss_nats": float(numpy.average(loss, weights=weights)),
        "accuracy": float(numpy.average(1 - wrong, weights=weights)),
        "entropy_nats": float(numpy.average(entropy, weights=weights)),
        "regressor_correlation": correlation(regressed, loss),
        "entropy_correlation": correlation(entropy, loss),
    }


def correlation(a, b) -> float:
    return float(numpy.corrcoef(numpy.asarray(a), numpy.asarray(b))[0, 1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="NAME=CHECKPOINT")
    parser.add_argument("--quick", action="store_true", help="a few utterances of each set")
    arguments = parser.parse_args()
    speech = utterances(SETS, "dev", limit=5 if arguments.quick else None)
    bank = noises("train")
    measured = []
    with Progress() as bar:
        for text in arguments.models:
            name, _, path = text.partition("=")
            measured += measure(name, daisy.load(path), speech, bank, bar)
    for line in measured:
        if line["condition"] in ("clean", "0 dB", "all"):
            print(
                f"{line['heads']:10} {line['condition']:6} layer {line['layer']:2}  loss {line['loss_nats']:.3f} nats  "
                f"accuracy {line['accuracy']:.3f}  regressor r {line['regressor_correlation']:.3f}  "
                f"entropy r {line['entropy_correlation']:.3f}"
            )
    if not arguments.quick:
        write("heads", measured)
        draw(measured, RESULTS / "heads.png")


def draw(measured: list[dict], path: Path) -> None:
    """Loss of each head against its layer, by kind of heads and condition."""
    figure = Figure(figsize=(8.0, 4.0), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    for color, kind in enumerate(dict.fromkeys(line["heads"] for line in measured)):
        for style, condition in (("-", "clean"), ("--", "10 dB"), (":", "0 dB")):
            lines = [line for line in measured if (line["heads"], line["condition"]) == (kind, condition)]
            losses = [line["loss_nats"] for line in lines]
            layers = [line["layer"] for line in lines]
            axes.plot(layers, losses, style, color=f"C{color}", label=f"{kind} heads, {condition}")
    axes.set_xlabel("layer")
    axes.set_ylabel("unit loss on held-out audio (nats)")
    axes.set_title("targets: the full model's units on the clean audio")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    figure.savefig(path)


if __name__ == "__main__":
    guarded(main)
