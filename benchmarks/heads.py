"""Held-out loss and accuracy of every exit head, and how well its regressor foretells that loss.

    python benchmarks/heads.py clean=clean.safetensors denoising=denoising.safetensors

Dev splits of librispeech, commands and keywords; noise of the train split (its test split is for tests); the units to
be predicted are those of the full model on the clean audio. The correlation (Pearson) is over utterances.
"""

from __future__ import annotations

import argparse

import numpy
from common import guarded, noises, utterances, write
from rich.progress import Progress

import daisy
from daisy import analysis
from daisy.report import snr_name

SNRS_DB = (None, 20.0, 10.0, 0.0)
SETS = ("librispeech", "commands", "keywords")


def measure(name: str, model: daisy.Model, speech, bank, bar: Progress) -> list[dict]:
    waveforms = [utterance.waveform for utterance in speech]
    frames = numpy.array([len(w) for w in waveforms], dtype=float)
    measured, reference, pooled = [], None, []
    task = bar.add_task(name, total=len(SNRS_DB) * len(waveforms))
    for snr_db in SNRS_DB:
        mixed = analysis.with_noise(waveforms, bank, snr_db)
        run = analysis.fidelity(model, mixed, reference, progress=lambda n: bar.advance(task, n))
        reference = reference or run.units
        pooled.append(run)
        for layer in range(model.backbone.config.num_layers):
            loss = run.loss[:, layer].numpy()
            measured.append(
                {
                    "heads": name,
                    "set": "dev",
                    "condition": snr_name(snr_db),
                    "layer": layer + 1,
                    "loss_nats": float(numpy.average(loss, weights=frames)),
                    "accuracy": float(numpy.average(run.accuracy[:, layer], weights=frames)),
                    "entropy_nats": float(numpy.average(run.scores["entropy"][:, layer], weights=frames)),
                    "regressor_correlation": correlation(run.scores["regressed"][:, layer], loss),
                    "entropy_correlation": correlation(run.scores["entropy"][:, layer], loss),
                }
            )
    for layer in range(model.backbone.config.num_layers):
        loss = numpy.concatenate([run.loss[:, layer] for run in pooled])
        regressed, entropy = (
            correlation(numpy.concatenate([run.scores[score][:, layer] for run in pooled]), loss)
            for score in ("regressed", "entropy")
        )
        measured.append(
            {
                "heads": name,
                "set": "dev",
                "condition": "all",
                "layer": layer + 1,
                "loss_nats": float(loss.mean()),
                "regressor_correlation": regressed,
                "entropy_correlation": entropy,
            }
        )
    return measured


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
    for row in measured:
        if row["condition"] in ("clean", "all"):
            print(
                f"{row['heads']:10} {row['condition']:6} layer {row['layer']:2}  loss {row['loss_nats']:.3f} nats  "
                f"accuracy {row.get('accuracy', float('nan')):.3f}  regressor r {row['regressor_correlation']:.3f}  "
                f"entropy r {row['entropy_correlation']:.3f}"
            )
    if not arguments.quick:
        write("heads", measured)


if __name__ == "__main__":
    guarded(main)
