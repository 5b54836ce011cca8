r"""Masked-unit loss and accuracy of pre-trained networks on the dev splits, clean, noisy and Opus-coded.

    python benchmarks/pretraining.py hubert_mini=hubert_mini.pt iteration1=iteration1.safetensors \
        --units mfcc=manifests,units1 iteration2=manifests,units2 --own iteration1=mfcc

Units are given as NAME=FOLDER OF MANIFESTS,FOLDER OF UNITS. So that networks which were trained on other units can be
compared on the same ones, every network is given a new linear classifier of its last layer's masked frames, fitted on
the same 300 training recordings. `own` is the network's own prediction head, where it was trained on these units
(`--own NETWORK=UNITS`). Noise is of
the train split, which the networks were trained with; speech is coded with Opus at 24 kbit/s, as the training audio is.
"""

from __future__ import annotations

import argparse
import io
import random
from pathlib import Path

import soundfile
import torch
from common import guarded, noises, write
from torch import Tensor, nn

import daisy
from daisy import audio
from daisy.calibration import tracing
from daisy.evaluation.figures import format_snr
from fairseq_plugins import masked
from fairseq_plugins.model import read_backbone
from fairseq_plugins.warm_start import read_units

CONDITIONS = ("clean", "opus", "20 dB", "10 dB", "0 dB")
FIT_RECORDINGS = 300
Set = tuple[list[Tensor], list[Tensor]]
"""Waveforms and their units."""


def opus_coded(waveform: Tensor, kbit: float = 24.0) -> Tensor:
    """(N,) at 16 kHz through an Opus encoder and decoder."""
    content = io.BytesIO()
    level = 1 - (kbit * 1000 - 6000) / 250_000  # libsndfile's scale of 6 to 256 kbit/s a channel
    soundfile.write(content, waveform.numpy(), 16000, format="OGG", subtype="OPUS", compression_level=level)
    content.seek(0)
    decoded, _ = soundfile.read(content, dtype="float32")
    return torch.from_numpy(decoded)[: len(waveform)]


def recordings(manifest: Path, units: Path, count: int | None = None) -> Set:
    """Different recordings of a manifest, at most ``count``, drawn at random."""
    lines, labels = audio.read_manifest(manifest), read_units(units)
    first = {line.path: index for index, line in reversed(list(enumerate(lines)))}
    chosen = sorted(first.values())
    if count is not None and count < len(chosen):
        chosen = random.Random(1).sample(chosen, count)
    return [audio.read(lines[index].path) for index in chosen], [labels[index] for index in chosen]


def heard(condition: str, waveforms: list[Tensor], bank) -> list[Tensor]:
    if condition == "clean":
        return waveforms
    if condition == "opus":
        return [opus_coded(waveform) for waveform in waveforms]
    snr_db = next(snr for snr in (20.0, 10.0, 0.0) if format_snr(snr) == condition)
    return tracing.mix_noise(waveforms, bank, snr_db)


def fitted(states: Tensor, targets: Tensor, num_units: int) -> nn.Module:
    """A linear classifier, by Adam: five passes over (S, D) standardised states."""
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(states.shape[1], affine=False, momentum=None)
    norm(states)
    classifier = nn.Sequential(norm.eval(), nn.Linear(states.shape[1], num_units))
    optimiser = torch.optim.Adam(classifier.parameters(), lr=2e-3)
    for epoch in range(5):
        for group in optimiser.param_groups:
            group["lr"] = 2e-3 * (1 - epoch / 5)
        for rows in torch.randperm(len(states)).split(512):
            optimiser.zero_grad()
            nn.functional.cross_entropy(classifier(states[rows]), targets[rows]).backward()
            optimiser.step()
    return classifier.requires_grad_(False)


def common(sets: list[Set]) -> Set:
    """The same recordings with the units of each set side by side: (T, sets), as many as every set has."""
    waveforms = sets[0][0]
    columns = []
    for lines in zip(*(units for _, units in sets), strict=True):
        length = min(map(len, lines))
        columns.append(torch.stack([line[:length] for line in lines], dim=1))
    return waveforms, columns


def measure(
    models: dict[str, daisy.Model], sets: dict[str, tuple[Path, Path]], own: set[tuple[str, str]], quick: bool
) -> list[dict]:
    """One line for each units, network, classifier and condition; a network runs once for all units."""
    bank, measured = noises("train"), []
    train, dev = (
        common([recordings(m / f"{split}.tsv", u / f"{split}.km", count) for m, u in sets.values()])
        for split, count in (("train", 40 if quick else FIT_RECORDINGS), ("valid", 20 if quick else None))
    )
    num_units = 1 + max(int(lines.max()) for lines in train[1] + dev[1])
    for name, model in models.items():
        states, targets = masked.masked_frames(model, *train, seed=1)
        classifiers: dict[tuple[str, str], nn.Module] = {
            (units, "fitted"): fitted(states, targets[:, column], num_units) for column, units in enumerate(sets)
        }
        classifiers |= {(units, "own"): model.final_head for units in sets if (name, units) in own}
        for condition in CONDITIONS:
            states, targets = masked.masked_frames(model, heard(condition, dev[0], bank), dev[1], seed=2)
            for (units, kind), classifier in classifiers.items():
                wanted = targets[:, list(sets).index(units)] + (masked.SPECIAL_SYMBOLS if kind == "own" else 0)
                with torch.no_grad():
                    log_probs = classifier(states).log_softmax(-1)
                measured.append(
                    {
                        "model": name,
                        "units": units,
                        "classifier": kind,
                        "condition": condition,
                        "loss_nats": float(nn.functional.nll_loss(log_probs, wanted)),
                        "accuracy": float((log_probs.argmax(-1) == wanted).float().mean()),
                        "num_frames": len(targets),
                    }
                )
        for units, kind in classifiers:
            mine = [row for row in measured if (row["model"], row["units"], row["classifier"]) == (name, units, kind)]
            cells = [f"{row['condition']} {row['loss_nats']:.3f}/{row['accuracy']:.3f}" for row in mine]
            print(f"{units:11} {name:12} {kind:6}", "  ".join(cells), flush=True)
    order = {units: place for place, units in enumerate(sets)}
    return sorted(measured, key=lambda row: order[row["units"]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="NAME=CHECKPOINT")
    parser.add_argument("--units", nargs="+", required=True, metavar="NAME=MANIFESTS,UNITS")
    parser.add_argument("--own", nargs="*", default=[], metavar="NETWORK=UNITS")
    parser.add_argument("--quick", action="store_true", help="a few recordings; nothing is written")
    arguments = parser.parse_args()
    models = {name: read_backbone(path) for name, _, path in (text.partition("=") for text in arguments.models)}
    sets = {}
    for text in arguments.units:
        name, _, folders = text.partition("=")
        manifests, _, units = folders.partition(",")
        sets[name] = (Path(manifests), Path(units))
    own = {tuple(text.split("=")) for text in arguments.own}
    measured = measure(models, sets, own, arguments.quick)
    if not arguments.quick:
        write("pretraining", measured)


if __name__ == "__main__":
    guarded(main)
