"""k-means units for fairseq's ``hubert_pretraining``: centres, and the nearest centre. `unit_files` writes them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor

from daisy import _files
from daisy.audio import Recording
from daisy.errors import AudioError, UsageError
from daisy.extraction.features import Fail, Features

Frames = NDArray[numpy.float32]
"""(S, F) features of many recordings, or (K, F) centres."""


def sample_features(
    recordings: Sequence[Recording],
    features: Features,
    max_frames: int,
    seed: int,
    progress: Callable[[int], None],
    fail: Fail,
) -> tuple[Frames, list[int]]:
    """Compute the features of randomly drawn recordings until there are enough frames.

    Args:
        recordings: recordings to draw from. Their order and number, with the seed, decide which are drawn.
        features: features to compute.
        max_frames: number of frames that is enough; the last recording is used completely.
        seed: seed of the draws.
        progress: called with 1 for each recording.
        fail: called with each recording that cannot be used; the next one drawn takes its place.

    Returns:
        Features (S, F), and the indices of the recordings that they come from.

    Raises:
        UsageError: if there are no recordings, or none can be used.
    """
    if not recordings:
        raise UsageError("the first manifest lists no recordings: there is nothing to fit k-means on")
    order: list[int] = numpy.random.default_rng(seed).permutation(len(recordings)).tolist()
    computed: dict[Path, Frames] = {}
    failed: set[Path] = set()
    drawn: list[int] = []

    def note(recording: Recording, error: AudioError) -> None:
        failed.add(recording.path)
        fail(recording, error)

    count = position = 0
    once = {recordings[index].path: recordings[index] for index in order}  # a balanced manifest repeats some
    groups = features.read_groups(once.values(), note)
    for group in itertools.chain(groups, [[]]):  # the last recordings may have failed, and be followed by repeats
        computed.update((recording.path, frames.numpy().astype(numpy.float32)) for recording, frames in group)
        while position < len(order) and count < max_frames:
            path = recordings[order[position]].path
            if path in computed:
                drawn.append(order[position])
                count += len(computed[path])
            elif path not in failed:
                break
            position += 1
            progress(1)
        if count >= max_frames:
            break
    if not drawn:
        raise UsageError(f"none of the {len(recordings)} recordings of the first manifest can be used")
    return numpy.concatenate([computed[recordings[index].path] for index in drawn]), drawn


def fit_kmeans(features: Frames, num_clusters: int, seed: int) -> Frames:
    """Fit k-means with fairseq's settings.

    Args:
        features: features, (S, F).
        num_clusters: number of clusters, K.
        seed: seed of the first centres and of the batches.

    Returns:
        Centres (K, F).

    Raises:
        UsageError: if there are fewer frames than clusters, or scikit-learn is missing.
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


def save_centres(centres: Frames, path: Path) -> None:
    """Save centres (K, F) as .npy."""
    _files.save_array(centres, path)


def load_centres(path: Path, num_clusters: int, width: int) -> Frames:
    """Load centres (K, F) written by `save_centres`, or published ones.

    Args:
        path: path of the file.
        num_clusters: expected K, the number of units in the dictionary.
        width: width of the features, F.

    Raises:
        UsageError: if it holds anything else.
    """
    try:
        with open(path, "rb") as stream:
            centres: Frames = numpy.lib.format.read_array(stream, allow_pickle=False)  # type: ignore[no-untyped-call]
    except (OSError, ValueError, EOFError) as error:
        raise UsageError(f"{path}: not a NumPy file of k-means centres ({error})") from None
    if centres.ndim != 2 or centres.dtype.kind != "f":
        raise UsageError(f"{path}: not a NumPy file of k-means centres, a row of floats for each unit")
    if len(centres) != num_clusters:
        raise UsageError(
            f"{path}: holds {len(centres)} centres, and {num_clusters} units are asked for: ask for {len(centres)}, "
            "or take the file away"
        )
    if centres.shape[1] != width:
        raise UsageError(f"{path}: holds centres of features {centres.shape[1]} wide, and these are {width} wide")
    if not numpy.isfinite(centres).all():
        raise UsageError(f"{path}: holds centres that are NaN or infinite")
    return centres.astype(numpy.float32)


def assign_units(frames: Tensor, centres: Frames) -> list[int]:
    """Find the nearest centre (K, F) of each frame (T, F)."""
    units: list[int] = torch.cdist(frames.float(), torch.from_numpy(centres)).argmin(1).tolist()
    return units
