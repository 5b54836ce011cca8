"""The layer window of DAISY's published code, by batch size; policies.py compares it."""

from __future__ import annotations

import numpy
from torch import Tensor

from daisy import policies
from daisy.calibration.depth import calibrate_depth, fit_window
from daisy.calibration.traces import Traces

WINDOW_KINDS = ("avg", "min-max", "threshold")
HISTOGRAM_BATCH = 32
"""Utterances in a batch, which has one exit, when the histogram of exits is made."""


def calibrate_threshold(tune: Traces, depth: float) -> float:
    """Calibrate, for a mean depth, the entropy (nats) at and below which an utterance exits."""
    return calibrate_depth("entropy", tune, depth).policy.to_config()["threshold"]


def fit_windows(threshold: float, tune: Traces) -> dict[str, policies.Window]:
    """Fit the published choices of the layers to check, from exits of batches that check all layers."""
    histogram = numpy.zeros(tune.num_layers)
    everywhere = policies.Window(threshold=threshold, first=1, last=tune.num_layers)
    order = numpy.random.default_rng(1).permutation(len(tune))
    for batch in numpy.array_split(order, len(tune) // HISTOGRAM_BATCH):
        scores = {name: values[batch] for name, values in tune.scores.items()}
        histogram[int(everywhere.exit_layers(scores)[0]) - 1] += 1
    return {kind: fit_window(threshold, histogram.tolist(), kind) for kind in WINDOW_KINDS}


def exit_alone(window: policies.Window, runs: Traces) -> Tensor:
    """Compute the (B,) exits of a window when every utterance is its own batch."""
    layers = range(1, runs.num_layers + 1)
    inside = tuple(window.threshold if window.first <= layer < window.last else 0.0 for layer in layers)
    return policies.Entropy(threshold=inside).exit_layers(runs.scores).clamp(max=window.last)


def exit_in_batches(window: policies.Window, runs: Traces, size: int) -> Tensor:
    """Compute the (B,) exits of a window in batches of random utterances."""
    order = numpy.random.default_rng(0).permutation(len(runs))
    exits = exit_alone(window, runs)
    for start in range(0, len(runs) if size > 1 else 0, size):
        batch = order[start : start + size]
        exits[batch] = window.exit_layers({name: values[batch] for name, values in runs.scores.items()})
    return exits
