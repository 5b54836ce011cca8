"""k-means units for fairseq's ``hubert_pretraining``: ``SPLIT.km`` for each manifest, and ``dict.km.txt``.

MFCC units are those of HuBERT's first iteration (arXiv:2106.07447, section IV-B; settings as in fairseq 0.12.2,
examples/hubert/simple_kmeans: 13 coefficients with deltas and double deltas, 100 a second).
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from daisy import _files, audio
from daisy.audio import Recording
from daisy.encoder import EarlyExitEncoder
from daisy.errors import AudioError, OutputError, UsageError
from daisy.models import Backbone
from daisy.models.lengths import MIN_SAMPLES
from daisy.policies import Fixed

Features = Callable[[Tensor], Tensor]
"""(N,) waveform at 16 kHz to (T, F) features."""

Frames = NDArray[numpy.float32]
"""(S, F) features of many recordings, or (K, F) centres."""


def make_mfcc(label_rate: int = 100) -> Features:
    """Make the function that computes MFCC features.

    Args:
        label_rate: 100 a second, or every second of them at 50.

    Returns:
        From a waveform (N,) at 16 kHz to (T, 39).

    Raises:
        UsageError: on another rate, or where kaldi-native-fbank is missing.
    """
    if label_rate not in (50, 100):
        raise UsageError(f"MFCC units come at 50 or 100 a second, not {label_rate}")
    try:
        from kaldi_native_fbank import MfccOptions, OnlineMfcc
    except ModuleNotFoundError:
        raise UsageError("MFCC units need kaldi-native-fbank: pip install 'daisy-speech[analysis]'") from None
    options = MfccOptions()
    options.frame_opts.dither = 0.0
    options.use_energy = False

    def compute_mfcc(waveform: Tensor) -> Tensor:
        stream = OnlineMfcc(options)
        stream.accept_waveform(16000, waveform.tolist())
        stream.input_finished()
        frames = numpy.stack([stream.get_frame(frame) for frame in range(stream.num_frames_ready)])
        coefficients = torch.from_numpy(frames)
        deltas = compute_deltas(coefficients)
        return torch.cat([coefficients, deltas, compute_deltas(deltas)], 1)[:: 100 // label_rate]

    return compute_mfcc


def compute_deltas(features: Tensor) -> Tensor:
    """Compute the slopes of features over five frames, (T, F) to (T, F), by least squares; ends are repeated."""
    padded = F.pad(features.T[None], (2, 2), mode="replicate")[0].T
    return (2 * (padded[4:] - padded[:-4]) + padded[3:-1] - padded[1:-3]) / 10


def make_layer_states(backbone: Backbone, layer: int) -> Features:
    """Make the function that computes the hidden states of one layer.

    Args:
        backbone: to run, on any device.
        layer: 1 to L.

    Returns:
        From a waveform (N,) to (T, D), 50 a second, on the CPU.

    Raises:
        UsageError: on a layer that the backbone does not have.
    """
    if not 1 <= layer <= backbone.config.num_layers:
        raise UsageError(f"layer must be 1 to {backbone.config.num_layers}, found {layer}")
    encoder = EarlyExitEncoder(backbone, None, Fixed(layer=layer), keep="last")
    return lambda waveform: encoder([waveform]).states[0][-1].cpu()


def centre_features(features: Features) -> Features:
    """Subtract the mean over the recording: what stays the same all through it, voice and channel, goes."""

    def compute_centred(waveform: Tensor) -> Tensor:
        frames = features(waveform)
        return frames - frames.mean(0)

    return compute_centred


def sample_features(
    recordings: Sequence[Recording], features: Features, max_frames: int, seed: int, progress: Callable[[int], None]
) -> Frames:
    """Compute the features of randomly drawn recordings until there are enough frames.

    Args:
        recordings: to draw from.
        features: to compute.
        max_frames: enough; the last recording is taken whole.
        seed: of the drawing.
        progress: is told 1 after each recording.

    Returns:
        (S, F).

    Raises:
        UsageError: where there are no recordings.
        AudioError: on one that cannot be used: labels need a line for each.
    """
    if not recordings:
        raise UsageError("the first manifest lists no recordings: there is nothing to fit k-means on")
    order = numpy.random.default_rng(seed).permutation(len(recordings))
    parts: list[Frames] = []
    count = 0
    for index in order:
        parts.append(features(_read(recordings[index])).numpy().astype(numpy.float32))
        count += len(parts[-1])
        progress(1)
        if count >= max_frames:
            break
    return numpy.concatenate(parts)


def fit_kmeans(features: Frames, num_clusters: int, seed: int) -> Frames:
    """Fit k-means with fairseq's settings.

    Args:
        features: (S, F).
        num_clusters: K.
        seed: of the first centres and of the batches.

    Returns:
        Centres (K, F).

    Raises:
        UsageError: where there are fewer frames than clusters, or scikit-learn is missing.
    """
    try:
        from sklearn.cluster import MiniBatchKMeans
    except ModuleNotFoundError:
        raise UsageError("k-means needs scikit-learn: pip install 'daisy-speech[analysis]'") from None
    if len(features) < num_clusters:
        raise UsageError(f"{num_clusters} clusters need as many frames, found {len(features)}")
    model = MiniBatchKMeans(
        n_clusters=num_clusters,
        batch_size=10000,
        max_iter=100,
        max_no_improvement=100,
        n_init=20,
        tol=0.0,
        reassignment_ratio=0.0,
        random_state=seed,
    )
    centres: Frames = model.fit(features).cluster_centers_
    return centres


def write_units(recordings: Sequence[Recording], features: Features, centres: Frames, path: Path) -> Iterator[int]:
    """Write a .km file: a line of nearest centres for each recording. Goes on where a stopped call ended.

    Args:
        recordings: in the manifest's order.
        features: that the centres were fitted on.
        centres: (K, F).
        path: of the file.

    Yields:
        The number of lines just written, or those that a stopped call left.

    Raises:
        OutputError: where it cannot be written.
    """
    if path.is_file():
        yield len(recordings)
        return
    part = path.with_name(path.name + ".part")
    try:
        done = _count_whole_lines(part)
        yield done
        nearest = torch.from_numpy(centres).float()
        with open(part, "a", encoding="ascii") as stream:
            known: dict[Path, str] = {}  # a balanced manifest lists some recordings many times
            times = Counter(recording.path for recording in recordings)
            for recording in recordings[done:]:
                line = known.get(recording.path)
                if line is None:
                    units = torch.cdist(features(_read(recording)), nearest).argmin(1)
                    line = " ".join(map(str, units.tolist()))
                    if times[recording.path] > 1:
                        known[recording.path] = line
                stream.write(line + "\n")
                stream.flush()
                yield 1
            os.fsync(stream.fileno())
        os.replace(part, path)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror or error})") from None


def write_dictionary(num_clusters: int, folder: Path) -> None:
    """Write ``dict.km.txt``: each unit and a count, which fairseq wants and does not read."""
    _files.write(folder / "dict.km.txt", "".join(f"{unit} 1\n" for unit in range(num_clusters)).encode())


def claim_folder(folder: Path, settings: dict[str, Any]) -> None:
    """Note in ``labels.json`` what the units in a folder are made with, manifests by digest.

    Args:
        folder: of the units.
        settings: by name, as JSON holds them.

    Raises:
        OutputError: where the folder holds units made otherwise, or of a manifest that has changed since.
    """
    path = folder / "labels.json"
    try:
        before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise OutputError(f"{path}: cannot be read ({error})") from None
    different = sorted(key for key, value in settings.items() if before.get(key, value) != value)
    if different:
        raise OutputError(f"{folder}: holds units made with another {', '.join(different)}", remedy="other_out")
    _files.write_json(path, {**before, **settings})


def save_centres(centres: Frames, path: Path) -> None:
    """Save centres (K, F) as .npy."""
    _files.write(path, lambda stream: numpy.save(stream, centres))


def _read(recording: Recording) -> Tensor:
    waveform = audio.read(recording.path)
    if len(waveform) < MIN_SAMPLES:
        raise AudioError(f"{recording.path}: too short: {len(waveform)} samples, one frame needs {MIN_SAMPLES}")
    return waveform


def _count_whole_lines(path: Path) -> int:
    """Count the lines in a file that a stopped call left, after cutting off an unfinished last one."""
    if not path.is_file():
        return 0
    whole = path.read_bytes().rpartition(b"\n")
    with open(path, "r+b") as stream:
        stream.truncate(len(whole[0]) + len(whole[1]))
    return whole[0].count(b"\n") + 1 if whole[1] else 0
