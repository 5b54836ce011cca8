"""k-means units for fairseq's ``hubert_pretraining``: the features that are clustered, and the centres.

MFCC units are those of HuBERT's first iteration (arXiv:2106.07447, section IV-B; settings as in fairseq 0.12.2,
examples/hubert/simple_kmeans: 13 coefficients with deltas and double deltas, 100 a second). `unit_files` writes them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from daisy import _files, audio
from daisy.audio import Recording
from daisy.encoder import EarlyExitEncoder
from daisy.errors import AudioError, UsageError
from daisy.models.kinds import AnyBackbone
from daisy.policies import Fixed

MFCC_RATE = 16000
"""Hz at which MFCC are computed, whatever a recording has: 25 ms are 400 samples, as fairseq's recipe has it."""

Frames = NDArray[numpy.float32]
"""(S, F) features of many recordings, or (K, F) centres."""

Fail = Callable[[Recording, AudioError], None]
"""Is told of a recording that cannot be used; raises where the work must not go on without it."""


@dataclass(frozen=True, kw_only=True)
class Features:
    """A function of a waveform, and at which rates it takes and gives."""

    compute: Callable[[Tensor], Tensor]
    """(N,) waveform to (T, F) features on the CPU."""
    sample_rate: int
    """Hz that the waveform must have."""
    min_samples: int
    """Samples of one frame: the shortest usable recording."""
    per_sec: float
    """Frames, and so units, a second."""
    width: int
    """F."""

    def __call__(self, waveform: Tensor) -> Tensor:
        return self.compute(waveform)

    def read(self, recording: Recording) -> Tensor:
        """Compute the features of a recording, (T, F).

        Raises:
            AudioError: where it cannot be read, is too short for one frame, or has features that are no numbers.
        """
        waveform = audio.read(recording.path, self.sample_rate)
        if len(waveform) < self.min_samples:
            raise AudioError(
                f"{recording.path}: too short: {len(waveform)} samples, one frame needs {self.min_samples}"
            )
        features = self.compute(waveform)
        if not features.isfinite().all():  # the first centre would be called the nearest to all of them
            raise AudioError(f"{recording.path}: its features are NaN or infinite: no unit is the nearest to them")
        return features


def make_mfcc(label_rate: float = 100) -> Features:
    """Make the function that computes MFCC features, (T, 39).

    Args:
        label_rate: 100 a second, or every second of them at 50.

    Raises:
        UsageError: on another rate, or where kaldi-native-fbank is missing.
    """
    if label_rate not in (50, 100):
        raise UsageError(f"MFCC units come at 50 or 100 a second, not {label_rate:g}")
    try:
        from kaldi_native_fbank import MfccOptions, OnlineMfcc
    except ModuleNotFoundError:
        raise UsageError("MFCC units need kaldi-native-fbank: pip install 'daisy-speech[analysis]'") from None
    options = MfccOptions()
    options.frame_opts.dither = 0.0
    options.use_energy = False
    step = round(100 / label_rate)

    def compute_mfcc(waveform: Tensor) -> Tensor:
        stream = OnlineMfcc(options)
        stream.accept_waveform(MFCC_RATE, waveform.tolist())
        stream.input_finished()
        frames = numpy.stack([stream.get_frame(frame) for frame in range(stream.num_frames_ready)])
        coefficients = torch.from_numpy(frames)
        deltas = compute_deltas(coefficients)
        return torch.cat([coefficients, deltas, compute_deltas(deltas)], 1)[::step]

    return Features(
        compute=compute_mfcc,
        sample_rate=MFCC_RATE,
        min_samples=MFCC_RATE // 40,
        per_sec=100 / step,
        width=3 * options.num_ceps,
    )


def compute_deltas(features: Tensor) -> Tensor:
    """Compute the slopes of features over five frames, (T, F) to (T, F), by least squares; ends are repeated."""
    padded = F.pad(features.T[None], (2, 2), mode="replicate")[0].T
    return (2 * (padded[4:] - padded[:-4]) + padded[3:-1] - padded[1:-3]) / 10


def make_layer_states(backbone: AnyBackbone, layer: int) -> Features:
    """Make the function that computes the hidden states of one layer.

    Args:
        backbone: to run, on any device.
        layer: 1 to L.

    Returns:
        To (T, D), at the rates of the backbone: as many samples and frames a second as it was trained on.

    Raises:
        UsageError: on a layer that the backbone does not have.
    """
    if not 1 <= layer <= backbone.config.num_layers:
        raise UsageError(f"layer must be 1 to {backbone.config.num_layers}, found {layer}")
    encoder = EarlyExitEncoder(backbone, None, Fixed(layer=layer), keep="last")
    config = backbone.config
    return Features(
        compute=lambda waveform: encoder([waveform]).states[0][-1].cpu(),
        sample_rate=config.sample_rate,
        min_samples=config.frame_span,
        per_sec=config.sample_rate / config.frame_hop,
        width=config.width,
    )


def centre_features(features: Features) -> Features:
    """Subtract the mean over the recording: what stays the same all through it, voice and channel, goes."""

    def compute_centred(waveform: Tensor) -> Tensor:
        frames = features(waveform)
        return frames - frames.mean(0)

    return replace(features, compute=compute_centred)


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
        recordings: to draw from. Their order and number decide, with the seed, which are drawn.
        features: to compute.
        max_frames: enough; the last recording is taken whole.
        seed: of the drawing.
        progress: is told 1 with each recording.
        fail: is told of each that cannot be used; the next one drawn takes its place.

    Returns:
        (S, F), and the indices of the recordings that they are of.

    Raises:
        UsageError: where there are no recordings, or none can be used.
    """
    if not recordings:
        raise UsageError("the first manifest lists no recordings: there is nothing to fit k-means on")
    order = numpy.random.default_rng(seed).permutation(len(recordings))
    parts: list[Frames] = []
    drawn: list[int] = []
    count = 0
    for index in order.tolist():
        progress(1)
        try:
            frames = features.read(recordings[index]).numpy().astype(numpy.float32)
        except AudioError as error:
            fail(recordings[index], error)
            continue
        parts.append(frames)
        drawn.append(index)
        count += len(frames)
        if count >= max_frames:
            break
    if not parts:
        raise UsageError(f"none of the {len(recordings)} recordings of the first manifest can be used")
    return numpy.concatenate(parts), drawn


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


def save_centres(centres: Frames, path: Path) -> None:
    """Save centres (K, F) as .npy."""
    _files.save_array(centres, path)


def load_centres(path: Path, num_clusters: int, width: int) -> Frames:
    """Load the centres (K, F) that `save_centres` wrote, or published ones.

    Args:
        path: of the file.
        num_clusters: K that is asked for: the dictionary will have as many units.
        width: F of the features.

    Raises:
        UsageError: where it holds anything else.
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
