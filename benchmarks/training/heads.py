"""Loss and accuracy of every exit head on dev audio, and how well its regressor predicts that loss.

    python -m benchmarks.training.heads clean=clean.safetensors denoising=denoising.safetensors

Uses the dev splits of librispeech, commands and keywords, and noise of the train split (its test split is for tests).
The target units are those of the full model on the clean audio. The correlation (Pearson) is over utterances. If
training kept the checkpoint with the least loss on these dev splits, as in benchmarks/real_run.sh, they were used to
select those heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.progress import Progress
from torch import Tensor

import daisy
from benchmarks.shared.recordings import SNRS_DB_COARSE, TRAINING_SETS, Utterance, read_noises, read_utterances
from benchmarks.shared.results import RESULTS, Row, write_result
from benchmarks.shared.script import make_parser, parse_pairs, run_script
from daisy.audio import mixing
from daisy.calibration import traces, tracing
from daisy.calibration.traces import Traces
from daisy.evaluation.figures import format_snr
from daisy.evaluation.style import COLORS, style_axes


def measure(
    name: str, model: daisy.Model, speech: Sequence[Utterance], bank: mixing.NoiseBank, bar: Progress
) -> list[Row]:
    """Measure every head of a model, in each condition and over all of them together."""
    waveforms, names = [utterance.waveform for utterance in speech], [str(index) for index in range(len(speech))]
    num_samples = torch.tensor([len(waveform) for waveform in waveforms], dtype=torch.float64)
    runs: dict[str, Traces] = {}
    reference: Sequence[Tensor] | None = None
    task = bar.add_task(name, total=len(SNRS_DB_COARSE) * len(waveforms))
    for snr_db in SNRS_DB_COARSE:
        mixed = tracing.mix_noise(waveforms, bank, snr_db)
        runs[format_snr(snr_db)], units = tracing.trace(
            model, mixed, names, reference=reference, progress=lambda count: bar.advance(task, count)
        )
        reference = reference or units
    runs["all"] = traces.join_traces(list(runs.values()))
    return [
        make_row(name, condition, layer, run, num_samples.repeat(len(run) // len(num_samples)).numpy())
        for condition, run in runs.items()
        for layer in range(model.backbone.config.num_layers)
    ]


def make_row(name: str, condition: str, layer: int, runs: Traces, weights: NDArray[Any]) -> Row:
    """Make a row of heads.json: means over frames, correlations over utterances."""
    loss, wrong = runs.losses["loss"][:, layer].numpy(), runs.losses["clean_disagreement"][:, layer].numpy()
    entropy, regressed = runs.scores["entropy"][:, layer].numpy(), runs.scores["regressed"][:, layer].numpy()
    return {
        "heads": name,
        "set": "dev",
        "condition": condition,
        "layer": layer + 1,
        "loss_nats": float(numpy.average(loss, weights=weights)),
        "accuracy": float(numpy.average(1 - wrong, weights=weights)),
        "entropy_nats": float(numpy.average(entropy, weights=weights)),
        "regressor_correlation": correlate(regressed, loss),
        "entropy_correlation": correlate(entropy, loss),
    }


def correlate(scores: NDArray[Any], losses: NDArray[Any]) -> float:
    """Compute Pearson's correlation of (B,) scores with losses."""
    return float(numpy.corrcoef(scores, losses)[0, 1])


def draw(rows: Sequence[Row], path: Path = RESULTS / "heads.png") -> None:
    """Draw the loss of each head against its layer, by kind of heads and condition."""
    kinds, conditions = list(dict.fromkeys(row["heads"] for row in rows)), ("clean", "10 dB", "0 dB")
    figure = Figure(figsize=(8.0, 4.4), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    for color, kind in zip(COLORS, kinds, strict=False):
        for style, condition in zip(("-", "--", ":"), conditions, strict=True):
            curve = [row for row in rows if (row["heads"], row["condition"]) == (kind, condition)]
            losses = [row["loss_nats"] for row in curve]
            layers = [row["layer"] for row in curve]
            axes.plot(layers, losses, style, color=color, label=f"{kind} heads, {condition}")
    last = max(row["layer"] for row in rows)
    noisiest = {row["heads"]: row["loss_nats"] for row in rows if (row["condition"], row["layer"]) == ("0 dB", last)}
    losses = ", ".join(f"{loss:.2f} ({kind} heads)" for kind, loss in noisiest.items())
    axes.set_title(f"At 0 dB and layer {last} the unit loss is {losses} nats", loc="left", fontsize="medium")
    axes.set_xlabel("layer")
    axes.set_ylabel("unit loss on dev audio (nats)")
    style_axes([axes])
    figure.legend(frameon=False, loc="outside lower center", ncols=3, fontsize="small")
    figure.savefig(path)


def main() -> None:
    parser = make_parser(__doc__, quick="a few utterances of each set; nothing is written")
    parser.add_argument("models", nargs="+", metavar="NAME=CHECKPOINT")
    arguments = parser.parse_args()
    paths = parse_pairs(arguments.models)
    speech = read_utterances(TRAINING_SETS, "dev", limit=5 if arguments.quick else None)
    bank = read_noises("train")
    with Progress() as bar:
        rows = [row for name, path in paths for row in measure(name, daisy.load(path), speech, bank, bar)]
    for row in rows:
        if row["condition"] in ("clean", "0 dB", "all"):
            print(
                f"{row['heads']:10} {row['condition']:6} layer {row['layer']:2}  loss {row['loss_nats']:.3f} nats  "
                f"accuracy {row['accuracy']:.3f}  regressor r {row['regressor_correlation']:.3f}  "
                f"entropy r {row['entropy_correlation']:.3f}"
            )
    if not arguments.quick:
        write_result("heads", rows)
        draw(rows)


if __name__ == "__main__":
    run_script(main)
