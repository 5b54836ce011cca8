"""How a variant of pre-training is judged: masked prediction, agreement with clean audio's units, a keyword probe."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from benchmarks.shared.recordings import SNRS_DB_COARSE, read_index, read_noises, read_utterances
from benchmarks.training.pretraining import UnitSet, count_units, fit_classifier, read_unit_set
from benchmarks.training.probes import make_layer_extractor
from daisy.audio import mixing
from daisy.calibration import tracing
from daisy.checkpoints import Model
from daisy.encoder import EarlyExitEncoder
from daisy.evaluation.figures import format_snr
from daisy.models import Backbone
from daisy.policies import Never
from fairseq_plugins import masked

UNITS = {"mfcc": "units1", "iteration2": "units2"}
"""Name of units to their folder."""
RECORDINGS = {"train": 150, "valid": 60}
FOLDS = 5


def judge(model: Model, runs: Path) -> dict[str, Any]:
    """Judge a network: the fields of a row of ablations.json, as the docstring of ablations.py says.

    Args:
        model: with a backbone.
        runs: folder of benchmarks/real_run.sh.
    """
    sets = {
        name: {
            split: read_unit_set(runs / "balanced" / f"{split}.tsv", runs / "pretrain" / folder / f"{split}.km", limit)
            for split, limit in RECORDINGS.items()
        }
        for name, folder in UNITS.items()
    }
    losses = {f"{name}_nats": measure_masked_loss(model, **splits) for name, splits in sets.items()}
    return {
        **losses,
        "agreement": measure_agreement(model.backbone, read_noises("train"), **sets["iteration2"]),
        "keyword_accuracy": probe_keywords(model.backbone),
    }


def measure_masked_loss(model: Model, train: UnitSet, valid: UnitSet) -> float:
    """Measure the loss (nats) of masked frames' units, by a classifier that is fitted on other recordings."""
    classifier = fit_classifier(*masked.gather_masked_frames(model, *train, seed=1), count_units(train, valid))
    states, targets = masked.gather_masked_frames(model, *valid, seed=2)
    return float(torch.nn.functional.cross_entropy(classifier(states), targets))


def probe_keywords(backbone: Backbone) -> float:
    """Cross-validate a linear probe for the keyword on the last layer's mean over time: its accuracy."""
    utterances = read_utterances(("keywords",), "train")
    extract = make_layer_extractor(backbone)
    features = torch.stack([extract(utterance.waveform) for utterance in utterances]).numpy()[:, -1]
    words = [row["text_or_label"] for row in read_index("keywords", "train")]
    groups = [utterance.speaker for utterance in utterances]
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=2000))
    return float(numpy.mean(cross_val_score(probe, features, words, groups=groups, cv=GroupKFold(FOLDS))))


def measure_agreement(
    backbone: Backbone, bank: mixing.NoiseBank, train: UnitSet, valid: UnitSet
) -> dict[str, list[float]]:
    """Measure the share of frames whose unit at each layer is the clean audio's, by condition."""
    noisy, units = [], []
    for offset, snr_db in enumerate(SNRS_DB_COARSE):
        noisy += tracing.mix_noise(train.waveforms[offset :: len(SNRS_DB_COARSE)], bank, snr_db)
        units += train.units[offset :: len(SNRS_DB_COARSE)]
    states, targets = gather_frames(backbone, noisy, units)
    num_units = count_units(train, valid)
    heads = [fit_classifier(of_layer, targets, num_units) for of_layer in states]
    shares = {}
    for snr_db in SNRS_DB_COARSE:
        states, targets = gather_frames(backbone, tracing.mix_noise(valid.waveforms, bank, snr_db, seed=1), valid.units)
        shares[format_snr(snr_db)] = [
            float((head(of_layer).argmax(-1) == targets).float().mean())
            for head, of_layer in zip(heads, states, strict=True)
        ]
    return shares


def gather_frames(backbone: Backbone, waveforms: Sequence[Tensor], units: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Gather all frames of recordings: (L, S, D) states of layers 1 to L, and (S,) units."""
    encoder = EarlyExitEncoder(backbone, None, Never())
    states, targets = [], []
    for waveform, line in zip(waveforms, units, strict=True):
        layers = encoder([waveform]).states[0][1:]
        count = min(layers.shape[1], len(line))
        states.append(layers[:, :count])
        targets.append(line[:count])
    return torch.cat(states, dim=1), torch.cat(targets)
