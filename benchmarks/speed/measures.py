"""Code shared by the speed measurements: networks, test recordings, rows, and settings of latency.json."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, get_args

import torch
from rich.console import Console
from torch import Tensor

import daisy
from benchmarks.shared.paired import Times
from benchmarks.shared.recordings import TEST_SETS, read_utterances
from benchmarks.shared.results import Row
from daisy.models import Backbone, BackboneConfig
from daisy.runtime.dtypes import Precision

SIZES = ("mini", "base")
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
FLOAT_PRECISIONS = tuple(precision for precision in PRECISIONS if precision != "int8")
"""Precisions that GPUs and other libraries' networks have."""
SETTING = ("size", "precision", "batch", "lengths", "threads")
"""Fields that define a setting in a row of latency.json."""
BACKBONE_SETTING = ("network", *SETTING[1:])
"""The same for backbones.json."""
Setting = tuple[Any, ...]
"""Values of these fields."""
console = Console()


def make_backbone(size: str) -> Backbone:
    """Make daisy-mini's backbone, or HuBERT Base with random weights."""
    if size == "mini":
        return daisy.load("daisy-mini").backbone
    torch.manual_seed(0)
    return Backbone(BackboneConfig.base())


def read_test_waveforms(limit: int, device: str = "cpu") -> list[Tensor]:
    """Read test recordings of all sets, at most ``limit`` of each, in a fixed order that mixes the sets."""
    waveforms = [utterance.waveform.to(device) for utterance in read_utterances(TEST_SETS, "test", limit)]
    order = torch.randperm(len(waveforms), generator=torch.Generator().manual_seed(0)).tolist()
    return [waveforms[index] for index in order]


def run_over(system: Callable[[list[Tensor]], object], batches: Sequence[list[Tensor]]) -> Callable[[], None]:
    """Return a function that runs a system on all batches in turn."""

    def run() -> None:
        for batch in batches:
            system(batch)

    return run


def make_row(measure: str, **values: object) -> Row:
    """Make a row and print it."""
    row = {key: round(value, 5) if isinstance(value, float) else value for key, value in values.items()}
    console.print(measure, *(f"{key} {value}" for key, value in row.items()), highlight=False, soft_wrap=True)
    return {"measure": measure, **row}


def compare_times(times: dict[str, Times], system: str, other: str) -> dict[str, float]:
    """Compute the ratio of two systems' times, as fields of a row."""
    median, low, high = times[system].over(times[other])
    return {"seconds": times[system].median, "ratio": median, "ratio_low": low, "ratio_high": high}


def count_repeats(repeats: int, device: str) -> int:
    """Return the number of turns: more where a turn takes milliseconds and graphs are captured in the first."""
    return repeats if device == "cpu" else 5 * repeats


def group_by_setting(rows: Iterable[Row], fields: Sequence[str] = SETTING) -> dict[Setting, dict[str, Row]]:
    """Group rows by setting, defined by these fields, and then by system."""
    settings: dict[Setting, dict[str, Row]] = {}
    for row in rows:
        settings.setdefault(tuple(row[field] for field in fields), {})[row["system"]] = row
    return settings
