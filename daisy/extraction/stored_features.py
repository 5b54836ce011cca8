"""Stored features: a file for each recording, in a folder of daisy's extraction or from another source.

`fairseq_dumps` finds a recording's part of the files that fairseq's scripts write.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, NoReturn

import numpy
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from daisy import audio
from daisy.audio import Recording
from daisy.errors import AudioError, UsageError
from daisy.extraction.feature_files import name_outputs
from daisy.extraction.features import Fail, Features, Group

Load = Callable[[Recording], Tensor]
"""Function that reads a recording's features, (T, F) float32; raises an `AudioError` if it cannot."""

FRAME_RATES = (50.0, 100.0, 25.0)
"""Frame rates per second that are tried, in this order, if none is given: HuBERT's, MFCC's, that of eight
convolutions."""
TOLERANCE_SEC = 0.1
"""Seconds by which features may be longer or shorter than their recording: an MFCC analysis window takes 0.025 s at the
end, convolutions take more. fairseq's recipes allow for as much (`verify_label_lengths`), and so does our plugin."""
TOLERANCE_SHARE = 0.01
"""Further fraction of the length by which they may differ: features made of pieces lose a frame at each seam."""
NUM_SAMPLED = 16
"""Recordings whose features are checked before the work begins, and whose digests identify a folder later."""


@dataclass(frozen=True, kw_only=True)
class StoredFeatures(Features):
    """Features that are read from files."""

    load: Load

    def make_groups(self, recordings: Iterable[Recording], fail: Fail) -> Iterator[Group]:
        """Yield the features of each recording by itself."""
        for recording in recordings:
            try:
                frames = self._load_checked(recording)
            except AudioError as error:
                fail(recording, error)
            else:
                yield [(recording, frames)]

    def _load_checked(self, recording: Recording) -> Tensor:
        frames = self.load(recording)
        if frames.shape[1] != self.width:
            raise AudioError(
                f"{recording.path}: its features are {frames.shape[1]} wide, and others' {self.width}: "
                "they are of another network"
            )
        if misfit := explain_misfit(recording, len(frames), self.per_sec):
            raise AudioError(f"{recording.path}: {misfit}")
        return frames

    def digest_some(self, recordings: Iterable[Recording]) -> dict[str, str]:
        """Compute digests of the features of the first few recordings that have any, by the recordings' paths."""
        return {str(recording.path): _digest(frames) for recording, frames in _sample(self.load, recordings)}


def find_changed(noted: Mapping[str, str], now: Mapping[str, str]) -> str | None:
    """Find a recording whose features have changed since their digest was recorded.

    Args:
        noted: earlier result of `StoredFeatures.digest_some`.
        now: present result.

    Returns:
        The recording's path; None if no features have changed.
    """
    return next((path for path, digest in now.items() if digest != noted.get(path, digest)), None)


def open_stored(load: Load, recordings: Sequence[Recording], folder: Path, per_sec: float | None) -> StoredFeatures:
    """Create `StoredFeatures` after a check of the first few recordings.

    Args:
        load: function that reads a recording's features.
        recordings: recordings whose features are wanted.
        folder: folder of the features, for messages.
        per_sec: frames per second; None: the first of `FRAME_RATES` that fits the recordings' lengths.

    Raises:
        UsageError: if none of the recordings has features, or most of them do not have that rate.
    """
    if per_sec is not None and per_sec <= 0:
        raise UsageError(f"features come at more than 0 frames a second, not {per_sec:g}")
    sample = _sample(load, recordings)
    if not sample:
        _refuse_all(load, recordings, folder)
    per_sec = _choose_rate(sample, FRAME_RATES if per_sec is None else (per_sec,), folder)
    ((width, _),) = Counter(frames.shape[1] for _, frames in sample).most_common(1)
    return StoredFeatures(load=load, sample_rate=None, per_sec=per_sec, width=width)


def _choose_rate(sample: Sequence[tuple[Recording, Tensor]], rates: Sequence[float], folder: Path) -> float:
    """Choose the rate that fits most of the sampled recordings; among several, the best (many rates fit short ones)."""
    misfits = {rate: _list_misfits(sample, rate) for rate in rates}
    fitting = [rate for rate in rates if 2 * len(misfits[rate]) < len(sample)]
    if not fitting:
        raise UsageError(f"{folder}: {misfits[rates[0]][0]}", remedy="feature_rate")
    return min(fitting, key=lambda rate: _measure_misfit(sample, rate))


def _measure_misfit(sample: Sequence[tuple[Recording, Tensor]], per_sec: float) -> float:
    """Return the median difference in seconds between the lengths of features and of their recordings."""
    differences = []
    for recording, frames in sample:
        with contextlib.suppress(AudioError):
            differences.append(abs(len(frames) / per_sec - measure_sec(recording)))
    return median(differences)


def explain_misfit(recording: Recording, num_frames: int, per_sec: float) -> str | None:
    """Explain why features cannot belong to a recording, by their number of frames; return None if they can.

    Args:
        recording: recording, whose length is read from its header.
        num_frames: number of frames of its features.
        per_sec: frames per second.

    Raises:
        AudioError: if the recording has no readable header.
    """
    seconds = measure_sec(recording)
    if abs(num_frames / per_sec - seconds) <= TOLERANCE_SEC + TOLERANCE_SHARE * seconds:
        return None
    return (
        f"its features have {num_frames} frames, and its {seconds:.2f} s at {per_sec:g} a second make "
        f"{seconds * per_sec:.0f}"
    )


def measure_sec(recording: Recording) -> float:
    """Return a recording's length in seconds, from its header.

    Raises:
        AudioError: if it has no readable header.
    """
    return audio.num_samples(recording.path, 16000) / 16000


def load_by_name(folder: Path, layer: int | None) -> Load:
    """Create the function that reads a recording's .npy file, whose path is that of the recording in the manifest.

    Args:
        folder: folder of the files. ``a/b.flac`` has its features in ``a/b.npy``, as `Extractor` writes them.
        layer: layer to read if files hold (layers, T, F).
    """
    return lambda recording: choose_layer(recording, read_array(recording, place_by_name(folder, recording)), layer)


def place_by_name(folder: Path, recording: Recording) -> Path:
    """Return the path of a recording's .npy file in a folder of such files."""
    (name,) = name_outputs([recording], "npy").values()
    return folder / name


def read_array(recording: Recording, path: Path, layer: int | None = None) -> NDArray[Any]:
    """Read a recording's file of features.

    Args:
        recording: recording, for messages.
        path: path of a .npy file, or of a .safetensors file with a tensor "states".
        layer: layer to read of a .safetensors file with several, if it is there.

    Returns:
        The whole array, or the layer's, (T, F). A .npy file stays on disk until parts of it are used.

    Raises:
        AudioError: if it cannot be read, or holds no floats.
    """
    try:
        if path.suffix == ".safetensors":
            array = _read_states(path, layer)
        else:  # numpy.load would also take archives
            array = numpy.lib.format.open_memmap(path, mode="r")  # type: ignore[no-untyped-call]
    except FileNotFoundError:
        raise AudioError(f"{recording.path}: has no features: {path} is not there") from None
    except (OSError, ValueError, EOFError, SafetensorError) as error:
        raise AudioError(f"{recording.path}: its features cannot be read: {path} ({error})") from None
    if array.dtype.kind != "f":
        raise AudioError(f"{recording.path}: {path} holds no floats: these are no features")
    return array


def _read_states(path: Path, layer: int | None) -> NDArray[Any]:
    with safe_open(path, framework="numpy") as file:
        states = file.get_slice("states")
        shape = states.get_shape()
        is_there = len(shape) == 3 and layer is not None and 0 <= layer < shape[0]
        array: NDArray[Any] = states[layer] if is_there else file.get_tensor("states")
    return array


def holds_layers(folder: Path, recordings: Iterable[Recording]) -> bool:
    """Return whether files in a folder hold several layers, judged by the first readable recording."""
    for recording in recordings:
        try:
            return read_array(recording, place_by_name(folder, recording)).ndim == 3
        except AudioError:
            continue  # reported in its turn
    return False


def choose_layer(recording: Recording, array: NDArray[Any], layer: int | None) -> Tensor:
    """Select one layer's features from a file's content.

    Args:
        recording: recording, for messages.
        array: (T, F), or (layers, T, F), layer 0 first.
        layer: layer to select, if there are several.

    Raises:
        AudioError: if it does not have that layer, or has another shape.
    """
    if array.ndim == 3:
        if layer is None:
            raise AudioError(f"{recording.path}: its file holds the features of {len(array)} layers", remedy="layer")
        if not 0 <= layer < len(array):
            raise AudioError(f"{recording.path}: its features are of layers 0 to {len(array) - 1}, not {layer}")
        array = array[layer]
    if array.ndim != 2 or not len(array):
        raise AudioError(
            f"{recording.path}: its features have the shape {array.shape}, not frames by width, nor layers before them"
        )
    return torch.from_numpy(numpy.array(array, dtype=numpy.float32))


def _sample(load: Load, recordings: Iterable[Recording]) -> list[tuple[Recording, Tensor]]:
    """Read the features of the first few recordings that have any, each recording once."""
    sample: list[tuple[Recording, Tensor]] = []
    for recording in {one.path: one for one in recordings}.values():
        try:
            sample.append((recording, load(recording)))
        except AudioError:
            continue  # reported in its turn
        if len(sample) == NUM_SAMPLED:
            break
    return sample


def _refuse_all(load: Load, recordings: Sequence[Recording], folder: Path) -> NoReturn:
    """Explain why no recording's features can be read, by the example of the first; its remedy helps all."""
    if not recordings:
        raise UsageError(f"{folder}: the manifests list no recordings whose features it could hold")
    try:
        load(recordings[0])
        reason = AudioError()
    except AudioError as error:
        reason = error
    message = f"{folder}: the features of none of the {len(recordings)} recordings can be used: {reason.message}"
    raise UsageError(message, remedy=reason.remedy, path=reason.path)


def _list_misfits(sample: Sequence[tuple[Recording, Tensor]], per_sec: float) -> list[str]:
    misfits = []
    for recording, frames in sample:
        try:
            reason = explain_misfit(recording, len(frames), per_sec)
        except AudioError as error:
            reason = error.message
        if reason:
            misfits.append(f"{recording.name}: {reason}")
    return misfits


def _digest(frames: Tensor) -> str:
    return hashlib.sha256(frames.contiguous().numpy().data).hexdigest()[:24]
