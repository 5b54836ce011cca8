"""daisy labels."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from daisy.cli.console import say, warn
from daisy.cli.options import Device, Out, check_device
from daisy.cli.progress import track
from daisy.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from daisy.audio import Recording
    from daisy.extraction.units import Features, Frames

STATES_PER_SEC = 50
"""Frames that HuBERT makes of a second."""


def command(
    manifests: Annotated[list[Path], typer.Argument(help="fairseq manifests; k-means is fitted on the first.")],
    out: Out,
    clusters: Annotated[int, typer.Option(help="Number of units.")] = 100,
    checkpoint: Annotated[
        str | None, typer.Option("--checkpoint", "-c", help="Cluster a layer of this checkpoint; else MFCC features.")
    ] = None,
    layer: Annotated[int | None, typer.Option(help="Which layer of the checkpoint.")] = None,
    centre: Annotated[
        bool,
        typer.Option("--centre", help="Subtract each recording's mean first: units then tell less of who speaks."),
    ] = False,
    label_rate: Annotated[
        int, typer.Option(help="Units a second: 50 or 100 for MFCC, 50 for a checkpoint.")
    ] = STATES_PER_SEC,
    fit_frames: Annotated[int, typer.Option(help="Most frames that k-means is fitted on.")] = 500_000,
    seed: Annotated[int, typer.Option(help="Seed of the frames drawn and of k-means.")] = 0,
    device: Device = "cpu",
) -> None:
    """Make k-means units for fairseq's hubert_pretraining.

    Writes SPLIT.km for each manifest, and dict.km.txt. A stopped run goes on where it ended.
    """
    from daisy import audio
    from daisy.extraction.units import claim_folder, write_dictionary

    features, source = _choose_features(checkpoint, layer, label_rate, centre, device)
    splits = {manifest.stem: audio.read_manifest(manifest) for manifest in manifests}
    if len(splits) < len(manifests):
        raise UsageError("two manifests have the same name: their units would share a file")
    settings = {
        "source": source,
        "clusters": clusters,
        "label_rate": label_rate,
        "fit_frames": fit_frames,
        "centre": centre,
        "seed": seed,
        "fit_on": manifests[0].name,
    }
    digests = {manifest.name: hashlib.sha256(manifest.read_bytes()).hexdigest() for manifest in manifests}
    claim_folder(out, settings | digests)
    centres = _load_or_fit_centres(out / "kmeans.npy", splits[manifests[0].stem], features, clusters, fit_frames, seed)
    write_dictionary(clusters, out)
    _write_splits(splits, features, centres, out)
    for split, recordings in splits.items():
        say(f"{out / split}.km: units of {len(recordings)} recordings at {label_rate} a second")
    if label_rate != STATES_PER_SEC:
        warn(f"note: tell fairseq task.label_rate={label_rate}")


def _choose_features(
    checkpoint: str | None, layer: int | None, label_rate: int, centre: bool, device: str
) -> tuple[Features, str]:
    """Make the features that are clustered, and a name that tells them from others."""
    from daisy import checkpoints
    from daisy.extraction.units import centre_features, make_layer_states, make_mfcc

    if (checkpoint is None) != (layer is None):
        raise UsageError("--checkpoint and --layer go together")
    if checkpoint is not None and layer is not None:
        if label_rate != STATES_PER_SEC:
            raise UsageError(f"a checkpoint's states come at {STATES_PER_SEC} a second, not {label_rate}")
        features = make_layer_states(checkpoints.load(checkpoint, device=check_device(device)).backbone, layer)
        source = f"{checkpoints.digest(checkpoint)}:{layer}"
    else:
        features, source = make_mfcc(label_rate), "mfcc"
    return (centre_features(features) if centre else features), source


def _load_or_fit_centres(
    path: Path, recordings: Sequence[Recording], features: Features, clusters: int, fit_frames: int, seed: int
) -> Frames:
    """Read the centres of k-means (K, F) that a stopped run left, or fit and save them."""
    import numpy

    from daisy.extraction.units import fit_kmeans, sample_features, save_centres

    if not path.is_file():
        with track("drawing frames", len(recordings)) as advance:
            frames = sample_features(recordings, features, fit_frames, seed, advance)
        with track(f"k-means on {len(frames)} frames"):
            save_centres(fit_kmeans(frames, clusters, seed), path)
    return numpy.asarray(numpy.load(path))


def _write_splits(splits: dict[str, list[Recording]], features: Features, centres: Frames, out: Path) -> None:
    from daisy.extraction.units import write_units

    for split, recordings in splits.items():
        with track(split, len(recordings)) as advance:
            for count in write_units(recordings, features, centres, out / f"{split}.km"):
                advance(count)
