r"""Masked-unit loss and accuracy of pre-trained networks on the dev splits, clean, noisy and Opus-coded.

    python -m benchmarks.training.pretraining hubert_mini=hubert_mini.pt iteration1=iteration1.safetensors \
        --units mfcc=manifests,units1 iteration2=manifests,units2 --own iteration1=mfcc

Units are given as NAME=FOLDER OF MANIFESTS,FOLDER OF UNITS. So that networks which were trained on other units can be
compared on the same ones, every network is given a new linear classifier of its last layer's masked frames, fitted on
the same 300 training recordings. The classifier `own` is the network's own prediction head, where it was trained on
these units (`--own NETWORK=UNITS`). Noise is of the train split, which the networks were trained with; speech is coded
with Opus at 24 kbit/s, as the training audio is.
"""

from __future__ import annotations

import io
import random
from pathlib import Path
from typing import NamedTuple

import soundfile
import torch
from torch import Tensor, nn

import daisy
from benchmarks.shared.recordings import SAMPLE_RATE, SNRS_DB_COARSE, read_noises
from benchmarks.shared.results import Row, write_result
from benchmarks.shared.script import make_parser, parse_pairs, run_script
from daisy import audio
from daisy.audio import mixing
from daisy.calibration import tracing
from daisy.errors import UsageError
from daisy.evaluation.figures import format_snr
from fairseq_plugins import masked
from fairseq_plugins.model import read_backbone
from fairseq_plugins.warm_start import read_units

SNRS = {format_snr(snr_db): snr_db for snr_db in SNRS_DB_COARSE}
CONDITIONS = ("clean", "opus", *(name for name, snr_db in SNRS.items() if snr_db is not None))
FIT_RECORDINGS = 300
PASSES, LEARNING_RATE, BATCH = 5, 2e-3, 512
"""Of the classifier's training."""


class UnitSet(NamedTuple):
    """Recordings and their units."""

    waveforms: list[Tensor]
    units: list[Tensor]
    """(T_b,) each, or (T_b, sets) with several sets of units side by side."""


def encode_opus(waveform: Tensor, kbit: float = 24.0) -> Tensor:
    """Pass (N,) through an Opus encoder and decoder."""
    content = io.BytesIO()
    level = 1 - (kbit * 1000 - 6000) / 250_000  # libsndfile's scale of 6 to 256 kbit/s a channel
    soundfile.write(content, waveform.numpy(), SAMPLE_RATE, format="OGG", subtype="OPUS", compression_level=level)
    content.seek(0)
    decoded, _ = soundfile.read(content, dtype="float32")
    return torch.from_numpy(decoded)[: len(waveform)]


def read_unit_set(manifest: Path, units: Path, limit: int | None = None) -> UnitSet:
    """Read different recordings of a manifest and their units, at most ``limit``, drawn at random."""
    lines, labels = audio.read_manifest(manifest), read_units(units)
    first = {line.path: index for index, line in reversed(list(enumerate(lines)))}
    chosen = sorted(first.values())
    if limit is not None and limit < len(chosen):
        chosen = random.Random(1).sample(chosen, limit)
    return UnitSet([audio.read(lines[index].path) for index in chosen], [labels[index] for index in chosen])


def apply_condition(condition: str, waveforms: list[Tensor], bank: mixing.NoiseBank) -> list[Tensor]:
    """Return recordings as they are heard in a condition of `CONDITIONS`."""
    if condition == "opus":
        return [encode_opus(waveform) for waveform in waveforms]
    return tracing.mix_noise(waveforms, bank, SNRS[condition])


def fit_classifier(states: Tensor, targets: Tensor, num_units: int) -> nn.Module:
    """Fit a linear classifier by Adam on (S, D) states, which it standardises, and (S,) units."""
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(states.shape[1], affine=False, momentum=None)
    norm(states)
    classifier = nn.Sequential(norm.eval(), nn.Linear(states.shape[1], num_units))
    optimiser = torch.optim.Adam(classifier.parameters(), lr=LEARNING_RATE)
    for epoch in range(PASSES):
        for group in optimiser.param_groups:
            group["lr"] = LEARNING_RATE * (1 - epoch / PASSES)
        for rows in torch.randperm(len(states)).split(BATCH):
            optimiser.zero_grad()
            nn.functional.cross_entropy(classifier(states[rows]), targets[rows]).backward()
            optimiser.step()
    return classifier.requires_grad_(False)


def stack_units(sets: list[UnitSet]) -> UnitSet:
    """Put the units of the same recordings side by side: (T_b, sets) each, as many frames as every set has."""
    columns = []
    for lines in zip(*(units for _, units in sets), strict=True):
        length = min(map(len, lines))
        columns.append(torch.stack([line[:length] for line in lines], dim=1))
    return UnitSet(sets[0].waveforms, columns)


def count_units(*sets: UnitSet) -> int:
    """Return how many units there are."""
    return 1 + max(int(line.max()) for unit_set in sets for line in unit_set.units)


def measure(
    models: dict[str, daisy.Model], folders: dict[str, tuple[Path, Path]], own_heads: set[tuple[str, str]], quick: bool
) -> list[Row]:
    """Measure networks on units: a row for each units, network, classifier and condition.

    Args:
        models: name to network; each runs once for all units.
        folders: name of units to the folders of manifests and of units.
        own_heads: (network, units) where the network's own prediction head is measured too.
        quick: whether a few recordings do.
    """
    bank = read_noises("train")
    train, dev = (
        stack_units([read_unit_set(m / f"{split}.tsv", u / f"{split}.km", limit) for m, u in folders.values()])
        for split, limit in (("train", 40 if quick else FIT_RECORDINGS), ("valid", 20 if quick else None))
    )
    num_units = count_units(train, dev)
    rows = []
    for name, model in models.items():
        states, targets = masked.gather_masked_frames(model, *train, seed=1)
        classifiers: dict[tuple[str, str], nn.Module | None] = {
            (units, "fitted"): fit_classifier(states, targets[:, column], num_units)
            for column, units in enumerate(folders)
        }
        classifiers |= {(units, "own"): model.final_head for units in folders if (name, units) in own_heads}
        of_model = [
            row
            for condition in CONDITIONS
            for row in measure_condition(name, model, classifiers, list(folders), condition, dev, bank)
        ]
        show(of_model)
        rows += of_model
    return sorted(rows, key=lambda row: list(folders).index(row["units"]))


@torch.no_grad()
def measure_condition(
    name: str,
    model: daisy.Model,
    classifiers: dict[tuple[str, str], nn.Module | None],
    columns: list[str],
    condition: str,
    dev: UnitSet,
    bank: mixing.NoiseBank,
) -> list[Row]:
    """Measure a network's classifiers, by (units, kind), in one condition; ``columns`` names the units' columns."""
    waveforms = apply_condition(condition, dev.waveforms, bank)
    states, targets = masked.gather_masked_frames(model, waveforms, dev.units, seed=2)
    rows = []
    for (units, kind), classifier in classifiers.items():
        if classifier is None:
            raise UsageError(f"{name}: has no prediction head of its own")
        # Numbers of a network's own head begin with the special symbols.
        labels = targets[:, columns.index(units)] + (masked.SPECIAL_SYMBOLS if kind == "own" else 0)
        log_probs = classifier(states).log_softmax(-1)
        rows.append(
            {
                "model": name,
                "units": units,
                "classifier": kind,
                "condition": condition,
                "loss_nats": float(nn.functional.nll_loss(log_probs, labels)),
                "accuracy": float((log_probs.argmax(-1) == labels).float().mean()),
                "num_frames": len(targets),
            }
        )
    return rows


def show(rows: list[Row]) -> None:
    """Print a line for each classifier of a network."""
    lines: dict[tuple[str, str, str], list[str]] = {}
    for row in rows:
        cell = f"{row['condition']} {row['loss_nats']:.3f}/{row['accuracy']:.3f}"
        lines.setdefault((row["units"], row["model"], row["classifier"]), []).append(cell)
    for (units, model, kind), cells in lines.items():
        print(f"{units:11} {model:12} {kind:6}", "  ".join(cells), flush=True)


def main() -> None:
    parser = make_parser(__doc__, quick="a few recordings; nothing is written")
    parser.add_argument("models", nargs="+", metavar="NAME=CHECKPOINT")
    parser.add_argument("--units", nargs="+", required=True, metavar="NAME=MANIFESTS,UNITS")
    parser.add_argument("--own", nargs="*", default=[], metavar="NETWORK=UNITS")
    arguments = parser.parse_args()
    models = {name: read_backbone(path) for name, path in parse_pairs(arguments.models)}
    folders = {}
    for name, pair in parse_pairs(arguments.units):
        manifests, _, units = pair.partition(",")
        folders[name] = (Path(manifests), Path(units))
    rows = measure(models, folders, set(parse_pairs(arguments.own)), arguments.quick)
    if not arguments.quick:
        write_result("pretraining", rows)


if __name__ == "__main__":
    run_script(main)
