"""Source recordings of the tasks: the shared sets, pieces of them, and their noisy versions."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import soundfile
import torch
from torch import Tensor

from benchmarks.shared.recordings import SAMPLE_RATE, SNRS_DB_COARSE, read_index, read_noises, read_waveform
from daisy.audio import mixing

CONDITIONS: dict[str, float | None] = {
    "clean" if snr_db is None else f"{snr_db:g}": snr_db for snr_db in SNRS_DB_COARSE
}
"""Maps the name of a test set to its signal-to-noise ratio in dB."""
TRAINING: dict[str, tuple[float | None, ...]] = {"clean": (None,), "noisy": tuple(CONDITIONS.values())}
"""Maps a kind of training audio to the ratios, in dB, that its recordings are drawn from."""
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


def make_generator(*key: object) -> torch.Generator:
    """Make a generator that draws the same numbers for the same key on every machine."""
    return torch.Generator().manual_seed(zlib.crc32("/".join(map(str, key)).encode()))


def read_clips(set_name: str, split: str, limit: int | None = None) -> list[Clip]:
    """Read recordings of a shared set's split; at most ``limit``, chosen by `spread_evenly`."""
    return [
        Clip(
            name=f"{set_name}-{Path(row['path']).stem}",
            waveform=read_waveform(set_name, row["path"]),
            speaker=row["speaker"],
            label=row["text_or_label"],
            text=row.get("text_clean") or row["text_or_label"],
            slots=json.loads(row.get("slots") or "{}"),
        )
        for row in read_index(set_name, split, limit)
    ]


def cut_piece(clip: Clip, seconds: float, seed: int) -> Clip:
    """Cut at most ``seconds`` out of a recording, at a position decided by its name and the seed."""
    length = min(len(clip.waveform), round(seconds * SAMPLE_RATE))
    generator = make_generator(seed, clip.name, "piece")
    start = int(torch.randint(len(clip.waveform) - length + 1, (1,), generator=generator))
    return replace(clip, waveform=clip.waveform[start : start + length])


def cut_pieces(clip: Clip, seconds: float) -> list[Clip]:
    """Cut a recording into pieces of ``seconds`` and drop the rest; a shorter recording stays whole."""
    length = round(seconds * SAMPLE_RATE)
    if len(clip.waveform) <= length:
        return [clip]
    parts = clip.waveform[: len(clip.waveform) // length * length].split(length)
    return [replace(clip, name=f"{clip.name}-{index}", waveform=part) for index, part in enumerate(parts)]


@cache
def load_noise_bank(split: str) -> mixing.NoiseBank:
    """Load the recorded noise of a split, once; no source recording is in both splits."""
    return read_noises(split)


def draw_noise(clip: Clip, split: str, seed: int) -> Tensor:
    """Draw a noise excerpt as long as a recording; it is the same at every ratio."""
    return load_noise_bank(split).draw(len(clip.waveform), make_generator(seed, clip.name, "noise"))


def add_noise(clip: Clip, snr_db: float | None, split: str, seed: int) -> Clip:
    """Mix a recording with noise of a split; with none if the ratio is None."""
    if snr_db is None:
        return clip
    return replace(clip, waveform=mixing.mix(clip.waveform, draw_noise(clip, split, seed), snr_db))


def add_training_noise(clip: Clip, training: str, seed: int) -> Clip:
    """Mix a recording of a train or dev split with noise of the train split, if drawn at random."""
    ratios = TRAINING[training]
    index = int(torch.randint(len(ratios), (1,), generator=make_generator(seed, clip.name, "ratio")))
    return add_noise(clip, ratios[index], "train", seed)


def save_waveforms(waveforms: Mapping[Path, Tensor]) -> None:
    """Write 16-bit files; if one would clip, all are scaled down alike."""
    loudest = max(float(waveform.abs().max()) for waveform in waveforms.values())
    gain = min(1.0, PEAK / loudest) if loudest > 0 else 1.0
    for path, waveform in waveforms.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, (waveform * gain).numpy(), SAMPLE_RATE, subtype="PCM_16")
