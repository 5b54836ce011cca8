"""daisy labels."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated

import typer

from daisy.cli.console import Device, Out, checked_device, errors, output, progress_bar
from daisy.errors import UsageError


def command(
    manifests: Annotated[list[Path], typer.Argument(help="fairseq manifests; k-means is fitted on the first.")],
    out: Out,
    clusters: Annotated[int, typer.Option(help="Number of units.")] = 100,
    checkpoint: Annotated[
        str | None, typer.Option("--checkpoint", "-c", help="Cluster a layer of this; else MFCC.")
    ] = None,
    layer: Annotated[int | None, typer.Option(help="Which layer of the checkpoint.")] = None,
    centre: Annotated[
        bool, typer.Option("--centre", help="Subtract each recording's mean first: units less of who speaks.")
    ] = False,
    label_rate: Annotated[int, typer.Option(help="Units a second: 50 or 100 for MFCC, 50 for a checkpoint.")] = 50,
    fit_frames: Annotated[int, typer.Option(help="Frames that k-means is fitted on, at most.")] = 500_000,
    seed: Annotated[int, typer.Option(help="Of the frames drawn and of k-means.")] = 0,
    device: Device = "cpu",
) -> None:
    """Make k-means units for fairseq's hubert_pretraining: SPLIT.km for each manifest, and dict.km.txt."""
    import numpy

    from daisy import audio, checkpoints
    from daisy.extraction.units import (
        centre_features,
        claim_folder,
        fit_kmeans,
        make_layer_states,
        make_mfcc,
        sample_features,
        save_centres,
        write_dictionary,
        write_units,
    )

    if (checkpoint is None) != (layer is None):
        raise UsageError("--checkpoint and --layer go together")
    if checkpoint is not None and layer is not None:
        if label_rate != 50:
            raise UsageError(f"a checkpoint's states come at 50 a second, not {label_rate}")
        features = make_layer_states(checkpoints.load(checkpoint, device=checked_device(device)).backbone, layer)
        source = f"{checkpoints.digest(checkpoint)}:{layer}"
    else:
        features, source = make_mfcc(label_rate), "mfcc"
    if centre:
        features = centre_features(features)
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
    centres_path = out / "kmeans.npy"
    with progress_bar() as bar:
        if not centres_path.is_file():
            first = splits[manifests[0].stem]
            task = bar.add_task("drawing frames", total=len(first))
            drawn = sample_features(first, features, fit_frames, seed, lambda n: bar.advance(task, n))
            bar.update(task, description=f"k-means on {len(drawn)} frames", total=None)
            save_centres(fit_kmeans(drawn, clusters, seed), centres_path)
            bar.remove_task(task)
        centres = numpy.load(centres_path)
        write_dictionary(clusters, out)
        for split, recordings in splits.items():
            task = bar.add_task(split, total=len(recordings))
            for count in write_units(recordings, features, centres, out / f"{split}.km"):
                bar.advance(task, count)
    for split, recordings in splits.items():
        output.print(
            f"{out / split}.km: units of {len(recordings)} recordings at {label_rate} a second", soft_wrap=True
        )
    if label_rate != 50:
        errors.print(f"note: tell fairseq task.label_rate={label_rate}")
