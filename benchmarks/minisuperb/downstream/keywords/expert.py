"""s3prl's keyword task with the words listed in the configuration; s3prl's own has ten words in its code.

Files are read without sox, a library that torchaudio expects on the machine and does not bundle.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import soundfile
import torch
from s3prl.downstream.speech_commands import dataset, expert
from torch import Tensor

NUM_OUTPUTS = 12
"""Fixed in s3prl's code, whatever the number of words."""


def read_softer(path: str, effects: Sequence[Sequence[str]]) -> tuple[Tensor, int]:
    """Read (1, N) of a recording at 16 kHz, 3 dB softer as in s3prl's chain of effects; mono needs nothing else."""
    samples, rate = soundfile.read(path, dtype="float32")
    return torch.from_numpy(samples)[None] * 10 ** (-3 / 20), rate


class DownstreamExpert(expert.DownstreamExpert):
    """Keywords, unknown words and silence; the remaining ones of s3prl's twelve outputs are unused."""

    def __init__(self, upstream_dim: int, downstream_expert: dict[str, Any], expdir: str, **options: Any) -> None:
        # One list object shared by both modules: the order of its entries is s3prl's class index.
        classes = [*downstream_expert["datarc"]["words"], "_unknown_", "_silence_"]
        dataset.CLASSES[:] = classes + [f"_unused_{index}_" for index in range(len(classes), NUM_OUTPUTS)]
        dataset.apply_effects_file = read_softer
        super().__init__(upstream_dim, downstream_expert, expdir, **options)
