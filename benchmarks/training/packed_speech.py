"""Packs training audio, its units and noise into one small file, for a machine that has nothing else.

    python -m benchmarks.training.packed_speech units200 speech.safetensors --kbps 14

The folder contains train, valid and noise manifests (.tsv) and units at 50 per second (.km). Recordings are coded as
Opus; a recording that a manifest lists several times is stored once, with its number of times.
"""

from __future__ import annotations

import argparse
import io
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy
import soundfile
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from benchmarks.shared.script import make_parser, run_script
from daisy import _files, audio
from daisy.errors import UsageError
from daisy.models.lengths import HUBERT_CONV, compute_frame_hop, count_frames

SAMPLE_RATE, HOP = 16000, compute_frame_hop(HUBERT_CONV)
SPARE_FRAMES = 5
"""Maximum difference between the numbers of a recording's units and frames: their windows and ends differ."""
OPUS_KBPS = (6.0, 256.0)
"""Bit rates of one channel at libsndfile's compression levels 1 and 0."""


@dataclass(frozen=True)
class Frames:
    """A split: the whole frames of all recordings, one recording after the other."""

    samples: Tensor
    """(F, 320) int16."""
    units: Tensor
    """(F,) int16."""
    starts: Tensor
    """(R,) int64, first frame of each recording."""
    counts: Tensor
    """(R,) int64, number of frames of each recording."""
    times: Tensor
    """(R,) int64, how often each recording occurs in an epoch."""


def encode(waveform: Tensor, kbps: float) -> bytes:
    """Encode (N,) samples as Ogg Opus at about ``kbps`` kbit/s."""
    content, (low, high) = io.BytesIO(), OPUS_KBPS
    level = (high - kbps) / (high - low)
    soundfile.write(
        content,
        waveform.numpy(),
        SAMPLE_RATE,
        format="OGG",
        subtype="OPUS",
        compression_level=level,
    )
    return content.getvalue()


def pack(folder: Path, out: Path, kbps: float) -> None:
    """Write a packed file from a folder's train, valid and noise files.

    Raises:
        UsageError: if a manifest, its units and the dictionary disagree, or units do not have the frame rate.
    """
    num_units = len((folder / "dict.km.txt").read_text(encoding="ascii").splitlines())
    tensors: dict[str, Tensor] = {"num_units": torch.tensor(num_units)}

    def read_and_encode(path: Path) -> tuple[bytes, int]:
        waveform = audio.read(path)
        return encode(waveform, kbps), count_frames(len(waveform), HUBERT_CONV)

    for split in ("train", "valid", "noise"):
        recordings = audio.read_manifest(folder / f"{split}.tsv")
        times = Counter(recording.path for recording in recordings)
        paths = list(times)
        line_of = {recording.path: index for index, recording in enumerate(recordings)}
        with ThreadPoolExecutor() as pool:
            coded = list(pool.map(read_and_encode, paths))
        tensors |= _join(f"{split}.audio", [numpy.frombuffer(content, numpy.uint8) for content, _ in coded])
        tensors[f"{split}.times"] = torch.tensor([times[path] for path in paths])
        if split != "noise":
            lines = (folder / f"{split}.km").read_text(encoding="ascii").splitlines()
            if len(lines) != len(recordings):
                raise UsageError(f"{folder / split}.km: {len(lines)} lines for {len(recordings)} recordings")
            units = [numpy.array(lines[line_of[path]].split(), numpy.int16) for path in paths]
            for path, of_recording, (_, num_frames) in zip(paths, units, coded, strict=True):
                _check_units(path, of_recording, num_frames, num_units)
            tensors |= _join(f"{split}.units", units)
    _files.write(out, save(tensors))


def _check_units(path: Path, units: numpy.ndarray, num_frames: int, num_units: int) -> None:
    if abs(len(units) - num_frames) > SPARE_FRAMES:
        raise UsageError(f"{path}: {len(units)} units for {num_frames} frames: make units at 50 a second")
    if len(units) and not 0 <= units.min() <= units.max() < num_units:
        raise UsageError(f"{path}: has units {units.min()} to {units.max()}, and dict.km.txt has {num_units}")


def _join(name: str, parts: Sequence[numpy.ndarray]) -> dict[str, Tensor]:
    return {
        name: torch.from_numpy(numpy.concatenate(parts)),
        f"{name}.lengths": torch.tensor([len(part) for part in parts]),
    }


def unpack(path: Path, split: str) -> Frames:
    """Decode a split; for noise, all units are 0."""
    with safe_open(path, "pt") as file:
        lengths = file.get_tensor(f"{split}.audio.lengths").tolist()
        blobs = file.get_tensor(f"{split}.audio").split(lengths)
        times = file.get_tensor(f"{split}.times")
        units = (
            file.get_tensor(f"{split}.units").split(file.get_tensor(f"{split}.units.lengths").tolist())
            if split != "noise"
            else None
        )
    with ThreadPoolExecutor() as pool:
        waveforms = list(pool.map(_decode, blobs))
    counts = [count_frames(len(waveform), HUBERT_CONV) for waveform in waveforms]
    if units is not None:
        counts = [min(count, len(of_recording)) for count, of_recording in zip(counts, units, strict=True)]
    samples = [waveform[: count * HOP].view(-1, HOP) for waveform, count in zip(waveforms, counts, strict=True)]
    labels = (
        [torch.zeros(c, dtype=torch.int16) for c in counts]
        if units is None
        else [u[:c] for u, c in zip(units, counts, strict=True)]
    )
    ends = torch.tensor(counts).cumsum(0)
    return Frames(torch.cat(samples), torch.cat(labels), ends - torch.tensor(counts), torch.tensor(counts), times)


def read_num_units(path: Path) -> int:
    """Read the number of units in the dictionary; some may not occur."""
    with safe_open(path, "pt") as file:
        return int(file.get_tensor("num_units"))


def _decode(blob: Tensor) -> Tensor:
    samples, _ = soundfile.read(io.BytesIO(blob.numpy().tobytes()), dtype="int16")
    return torch.from_numpy(samples)


def main() -> None:
    parser: argparse.ArgumentParser = make_parser(__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--kbps", type=float, default=14.0, help="bit rate of Opus (default 14)")
    arguments = parser.parse_args()
    pack(arguments.folder, arguments.out, arguments.kbps)
    print(f"{arguments.out}: {arguments.out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    run_script(main)
