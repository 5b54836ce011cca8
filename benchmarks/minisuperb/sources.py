"""Recordings that the tasks are made of: the shared sets, pieces of them, and their noisy versions."""

from __future__ import annotations

import json
import sys
import zlib
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import soundfile
import torch
from torch import Tensor

sys.path.append(str(Path(__file__).parents[1]))

from common import DATA, noises, rows

from daisy import audio
from daisy.audio import mixing

RATE = 16000
CONDITIONS: dict[str, float | None] = {"clean": None, "20": 20.0, "10": 10.0, "0": 0.0}
"""Name of a test set to the decibels that its noise is below the speech."""
PEAK = 0.99


@dataclass(frozen=True)
class Clip:
    """A recording or a piece of one."""

    name: str
    waveform: Tensor
    speaker: str = ""
    label: str = ""
    text: str = ""
    slots: dict[str, str] = field(default_factory=dict)


def generator(*key: object) -> torch.Generator:
    """The same draws for the same key, on every machine."""
    return torch.Generator().manual_seed(zlib.crc32("/".join(map(str, key)).encode()))


def clips(set_name: str, split: str, limit: int | None = None) -> list[Clip]:
    """Recordings of a shared set's split; at most ``limit``, evenly spread."""
    found = rows(set_name, split)
    if limit is not None and len(found) > limit:
        found = found[:: -(-len(found) // limit)]
    return [
        Clip(
            name=f"{set_name}-{Path(row['path']).stem}",
            waveform=audio.read(DATA / set_name / row["path"]),
            speaker=row["speaker"],
            label=row["text_or_label"],
            text=row.get("text_clean") or row["text_or_label"],
            slots=json.loads(row.get("slots") or "{}"),
        )
        for row in found
    ]


def piece(clip: Clip, seconds: float, seed: int) -> Clip:
    """At most so many seconds of a recording, from a place that its name and the seed decide."""
    length = min(len(clip.waveform), round(seconds * RATE))
    start = int(torch.randint(len(clip.waveform) - length + 1, (1,), generator=generator(seed, clip.name, "piece")))
    return replace(clip, waveform=clip.waveform[start : start + length])


def pieces(clip: Clip, seconds: float) -> list[Clip]:
    """A recording cut into pieces of so many seconds, the shorter rest left out; whole where it is shorter itself."""
    length = round(seconds * RATE)
    if len(clip.waveform) <= length:
        return [clip]
    parts = clip.waveform[: len(clip.waveform) // length * length].split(length)
    return [replace(clip, name=f"{clip.name}-{index}", waveform=part) for index, part in enumerate(parts)]


@cache
def noise_bank(split: str) -> mixing.NoiseBank:
    """Recorded noise of a split; no source recording is in both."""
    return noises(split)


def noise_for(clip: Clip, split: str, seed: int) -> Tensor:
    """An excerpt as long as a recording, the same at every ratio."""
    return noise_bank(split).draw(len(clip.waveform), generator(seed, clip.name, "noise"))


def noisy(clip: Clip, snr_db: float | None, split: str, seed: int) -> Clip:
    """A recording with noise of a split."""
    if snr_db is None:
        return clip
    return replace(clip, waveform=mixing.mix(clip.waveform, noise_for(clip, split, seed), snr_db))


TRAINING: dict[str, tuple[float | None, ...]] = {"clean": (None,), "noisy": tuple(CONDITIONS.values())}
"""Kind of training audio to the ratios that its recordings are drawn from, in decibels."""


def heard(clip: Clip, training: str, seed: int) -> Clip:
    """A recording of a train or dev split, with noise of the train split where its draw says so."""
    ratios = TRAINING[training]
    drawn = int(torch.randint(len(ratios), (1,), generator=generator(seed, clip.name, "ratio")))
    return noisy(clip, ratios[drawn], "train", seed)


def save(waveforms: dict[Path, Tensor]) -> None:
    """Write 16-bit files; where one would be cut off at full scale, all are scaled down alike."""
    loudest = max(float(waveform.abs().max()) for waveform in waveforms.values())
    gain = min(1.0, PEAK / loudest) if loudest > 0 else 1.0
    for path, waveform in waveforms.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, (waveform * gain).numpy(), RATE, subtype="PCM_16")
