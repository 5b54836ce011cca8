"""Features that are already there: a file for each recording, in a folder of daisy's extraction or of anybody's.

`fairseq_dumps` says which part of which file is a recording's where fairseq's scripts have written them.
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
"""Reads a recording's features, (T, F) float32; raises an `AudioError` where there are none to be read."""

FRAME_RATES = (50.0, 100.0, 25.0)
"""Frames a second that are tried, in this order, where nobody says: HuBERT's, MFCC's, those of eight convolutions."""
TOLERANCE_SEC = 0.1
"""By which features may be longer or shorter than their recording: an analysis window of MFCC takes 0.025 s at its end,
convolutions take more. fairseq's recipes allow for as much (`verify_label_lengths`), and so does our plugin."""
TOLERANCE_SHARE = 0.01
"""By which they may differ beyond it: features made of pieces lose a frame at each seam."""
NUM_SAMPLED = 16
"""Recordings whose features are looked at before the work begins, and by whose features a folder is known again."""


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
    """Find a recording whose features are others than when their digest was noted.

    Args:
        noted: as `StoredFeatures.digest_some` made them then.
        now: as it makes them.

    Returns:
        Its path; None where there is none.
    """
    return next((path for path, digest in now.items() if digest != noted.get(path, digest)), None)


def open_stored(load: Load, recordings: Sequence[Recording], folder: Path, per_sec: float | None) -> StoredFeatures:
    """Make `StoredFeatures` after a look at the first few.

    Args:
        load: reads a recording's.
        recordings: whose features are wanted.
        folder: that they are in, for messages.
        per_sec: frames a second; None: the first of `FRAME_RATES` that fits the recordings' lengths.

    Raises:
        UsageError: where none of the recordings has features, or most of them do not come at that rate.
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
    """Choose the rate that fits most of some recordings, and of several the one that fits best: short ones fit many."""
    misfits = {rate: _list_misfits(sample, rate) for rate in rates}
    fitting = [rate for rate in rates if 2 * len(misfits[rate]) < len(sample)]
    if not fitting:
        raise UsageError(f"{folder}: {misfits[rates[0]][0]}", remedy="feature_rate")
    return min(fitting, key=lambda rate: _measure_misfit(sample, rate))


def _measure_misfit(sample: Sequence[tuple[Recording, Tensor]], per_sec: float) -> float:
    """Measure by how many seconds features are longer or shorter than their recordings: the median."""
    differences = []
    for recording, frames in sample:
        with contextlib.suppress(AudioError):
            differences.append(abs(len(frames) / per_sec - measure_sec(recording)))
    return median(differences)


def explain_misfit(recording: Recording, num_frames: int, per_sec: float) -> str | None:
    """Say why features cannot be of a recording: more or fewer frames than it lasts; None where they can.

    Args:
        recording: whose length is read from its header.
        num_frames: of its features.
        per_sec: frames a second.

    Raises:
        AudioError: where the recording has no readable header.
    """
    seconds = measure_sec(recording)
    if abs(num_frames / per_sec - seconds) <= TOLERANCE_SEC + TOLERANCE_SHARE * seconds:
        return None
    return (
        f"its features have {num_frames} frames, and its {seconds:.2f} s at {per_sec:g} a second make "
        f"{seconds * per_sec:.0f}"
    )


def measure_sec(recording: Recording) -> float:
    """Measure how long a recording lasts by its header, in seconds.

    Raises:
        AudioError: where it has none that can be read.
    """
    return audio.num_samples(recording.path, 16000) / 16000


def load_by_name(folder: Path, layer: int | None) -> Load:
    """Make the function that reads a recording's .npy file, which lies where the manifest says that the recording does.

    Args:
        folder: of the files. ``a/b.flac`` has its features in ``a/b.npy``, as `Extractor` writes them.
        layer: which of several, where files hold (layers, T, F).
    """
    return lambda recording: choose_layer(recording, read_array(recording, place_by_name(folder, recording)), layer)


def place_by_name(folder: Path, recording: Recording) -> Path:
    """Return the path of a recording's .npy file in a folder of them."""
    (name,) = name_outputs([recording], "npy").values()
    return folder / name


def read_array(recording: Recording, path: Path, layer: int | None = None) -> NDArray[Any]:
    """Read a recording's file of features.

    Args:
        recording: for messages.
        path: of a .npy file, or of a .safetensors file with a tensor "states".
        layer: of a .safetensors file with several layers read this one, if it is there.

    Returns:
        The whole array; a .npy file stays on the disk until parts of it are used. Or the layer's, (T, F).

    Raises:
        AudioError: where it cannot be read, or holds no floats.
    """
    try:
        if path.suffix == ".safetensors":
            array = _read_states(path, layer)
        else:  # numpy.load would take archives too
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
    """Tell whether files in a folder hold several layers: by the first recording's that can be read."""
    for recording in recordings:
        try:
            return read_array(recording, place_by_name(folder, recording)).ndim == 3
        except AudioError:
            continue  # it is listed when its turn comes
    return False


def choose_layer(recording: Recording, array: NDArray[Any], layer: int | None) -> Tensor:
    """Take one layer's features out of a file's content.

    Args:
        recording: for messages.
        array: (T, F), or (layers, T, F), layer 0 first.
        layer: which of several.

    Raises:
        AudioError: where it has not that layer, or another shape.
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
            continue  # it is listed when its turn comes
        if len(sample) == NUM_SAMPLED:
            break
    return sample


def _refuse_all(load: Load, recordings: Sequence[Recording], folder: Path) -> NoReturn:
    """Say why no recording's features can be read, by the first one's; what helps it helps all of them."""
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
