"""daisy labels."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from daisy.cli.console import end_with_failures, explain, say, warn, warn_of_failures
from daisy.cli.options import Device, Out, Strict, check_device
from daisy.cli.progress import track
from daisy.errors import AudioError, OutputError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from daisy.audio import Recording
    from daisy.extraction.unit_files import UnitFile
    from daisy.extraction.units import Fail, Features, Frames

USUAL_LABEL_RATE, USUAL_SAMPLE_RATE = 50, 16000
"""What fairseq is told of other rates than these."""


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
        float | None,
        typer.Option(help="Units a second: 50 (if not given) or 100 for MFCC; a checkpoint's are its frames a second."),
    ] = None,
    fit_frames: Annotated[int, typer.Option(help="Most frames that k-means is fitted on.")] = 500_000,
    seed: Annotated[int, typer.Option(help="Seed of the frames drawn and of k-means.")] = 0,
    device: Device = "cpu",
    strict: Strict = False,
) -> None:
    """Make k-means units for fairseq's hubert_pretraining.

    Writes SPLIT.km for each manifest, and dict.km.txt. A stopped run goes on where it ended, also when manifests have
    changed: a recording that has units keeps them. Recordings that cannot be used are skipped and listed (exit status
    1); manifests of the others are then written beside their units.
    """
    from daisy.extraction.unit_files import Split, UnitFile, write_dictionary
    from daisy.extraction.units import load_centres

    features, source = _choose_features(checkpoint, layer, label_rate, centre, device)
    files = [UnitFile(split=Split.read(manifest), folder=out) for manifest in manifests]
    if len({file.split.name for file in files}) < len(files):
        raise UsageError("two manifests have the same name: their units would share a file")
    settings = {
        "source": source,
        "clusters": clusters,
        "label_rate": _without_zero(features.per_sec),
        "fit_frames": fit_frames,
        "centre": centre,
        "seed": seed,
        "fit_on": manifests[0].name,
    }
    failed: dict[Path, str] = {}

    def fail(recording: Recording, error: AudioError) -> None:
        if strict:
            raise error
        failed[recording.path] = explain(error)

    with _lock_folder(out):
        centres = load_centres(path, clusters, features.width) if (path := out / "kmeans.npy").is_file() else None
        _claim_folder(out, settings, files)
        if centres is None:
            centres = _fit_centres(out, files[0], features, clusters, fit_frames, seed, fail)
        write_dictionary(clusters, out)
        for file in files:
            with track(file.split.name, len(file.split.recordings)) as advance:
                for count in file.label(features, centres, fail):
                    advance(count)
        _finish(files, out, features)
    num_done = sum(len(file.labelled) for file in files)
    warn_of_failures(failed.values())
    end_with_failures(sum(len(file.split.recordings) for file in files) - num_done, num_done)


def _choose_features(
    checkpoint: str | None, layer: int | None, label_rate: float | None, centre: bool, device: str
) -> tuple[Features, str]:
    """Make the features that are clustered, and a name that tells them from others."""
    from daisy import checkpoints
    from daisy.extraction.units import centre_features, make_layer_states, make_mfcc

    if (checkpoint is None) != (layer is None):
        raise UsageError("--checkpoint and --layer go together")
    if checkpoint is not None and layer is not None:
        features = make_layer_states(checkpoints.load(checkpoint, device=check_device(device)).backbone, layer)
        source = f"{checkpoints.digest(checkpoint)}:{layer}"
        if label_rate is not None and abs(label_rate - features.per_sec) > 1e-6 * features.per_sec:
            raise UsageError(
                f"--label-rate {label_rate:g}: this checkpoint's states come at {features.per_sec:.10g} a second"
            )
    else:
        features, source = make_mfcc(USUAL_LABEL_RATE if label_rate is None else label_rate), "mfcc"
    return (centre_features(features) if centre else features), source


def _without_zero(rate: float) -> float:
    """Turn 50.0 into 50, and leave 68.9 as it is: older versions noted rates so."""
    return int(rate) if rate == int(rate) else rate


@contextlib.contextmanager
def _lock_folder(out: Path) -> Iterator[None]:
    """Let nobody else write units into a folder meanwhile.

    Raises:
        OutputError: where somebody does, or the folder cannot be written.
    """
    from daisy import _files, _locks

    with _files.refusing(out):
        out.mkdir(parents=True, exist_ok=True)
    path = out / "labels.json.lock"
    lock = _locks.acquire(path)
    if lock is None:
        raise OutputError(f"{out}: is being written by {_locks.describe_holder(path)}", remedy="wait")
    try:
        yield
    finally:
        lock.release()


def _claim_folder(out: Path, settings: dict[str, Any], files: Sequence[UnitFile]) -> None:
    """Note in ``labels.json`` what the units in a folder are made with, manifests and centres by digest.

    Raises:
        OutputError: where the folder holds units made otherwise.
    """
    from daisy import _files
    from daisy.extraction.unit_files import check_settings

    path, centres = out / "labels.json", out / "kmeans.npy"
    before = _read_notes(path) if path.is_file() else {}
    if centres.is_file():
        settings = {**settings, centres.name: _files.digest(centres)}
    check_settings(out, before, settings)
    _check_fitted_on(out, files[0])
    digests = {file.split.path.name: file.split.digest for file in files}
    for file in files:
        file.adopt_older(before.get(file.split.path.name) == file.split.digest)
        file.check_corpus()
    _files.write_json(path, {**before, **settings, **digests})


def _read_notes(path: Path) -> dict[str, Any]:
    """Read ``labels.json``."""
    try:
        notes = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise OutputError(f"{path}: cannot be read ({error})") from None
    if not isinstance(notes, dict):
        raise OutputError(f"{path}: damaged: it does not tell how units are made", remedy="other_out")
    return notes


def _check_fitted_on(out: Path, file: UnitFile) -> None:
    """Say where k-means was fitted on recordings that are no longer listed: it stays, units of a folder are of one.

    Raises:
        OutputError: where none of them is listed: this is another corpus.
    """
    from daisy.extraction.unit_files import read_keys

    keys_path = out / "kmeans.keys"
    fitted_on = set(read_keys(keys_path)) if keys_path.is_file() else set()  # manifests may list a recording repeatedly
    gone = len(fitted_on - set(file.split.keys))
    if fitted_on and gone == len(fitted_on):
        raise OutputError(
            f"{out}: holds units of other recordings: {file.split.path} lists none that k-means was fitted on",
            remedy="other_out",
        )
    if gone:
        warn(
            f"note: k-means stays as it was fitted, on {len(fitted_on)} recordings, {gone} of which "
            f"{file.split.path} no longer lists"
        )


def _fit_centres(
    out: Path, file: UnitFile, features: Features, clusters: int, fit_frames: int, seed: int, fail: Fail
) -> Frames:
    """Fit k-means on recordings of a manifest, (K, F), and note on which."""
    from daisy import _files
    from daisy.extraction.units import fit_kmeans, sample_features, save_centres

    with track("drawing frames", len(file.split.recordings)) as advance:
        frames, drawn = sample_features(file.split.recordings, features, fit_frames, seed, advance, fail)
    with track(f"k-means on {len(frames)} frames"):
        centres = fit_kmeans(frames, clusters, seed)
    _files.write(out / "kmeans.keys", "".join(f"{file.split.keys[index]}\n" for index in drawn).encode())
    save_centres(centres, out / "kmeans.npy")
    noted = _read_notes(out / "labels.json")
    _files.write_json(out / "labels.json", {**noted, "kmeans.npy": _files.digest(out / "kmeans.npy")})
    return centres


def _finish(files: Sequence[UnitFile], out: Path, features: Features) -> None:
    """Write the .km files; where recordings were skipped, also manifests that go with them line by line."""
    from daisy import _files

    noted = _read_notes(out / "labels.json")
    ours = noted.get("manifests", [])
    copies = [out / file.split.path.name for file in files]
    # What lies there and was not written here is somebody's: it stays, and units that do not go with it are not made.
    in_place = [
        copy.is_file() and (copy.name not in ours or copy.samefile(file.split.path))
        for copy, file in zip(copies, files, strict=True)
    ]
    complete = all(len(file.labelled) == len(file.split.recordings) for file in files)
    rate = f"{features.per_sec:.10g}"
    written: list[str] = []
    for file, copy, is_theirs in zip(files, copies, in_place, strict=True):
        partly = len(file.labelled) < len(file.split.recordings)
        if partly and is_theirs:
            warn(
                f"{file.path}: not written: fairseq would read {copy} with it, which lies there; give another --out, "
                f"or take the lines of recordings without units out of {file.split.path} and call this again"
            )
            continue
        if partly and not file.labelled:
            warn(f"{file.path}: not written: no recording of {file.split.path} has units")
            continue
        file.finish()
        say(f"{file.path}: units of {len(file.labelled)} recordings at {rate} a second")
        if not is_theirs and (copy.is_file() or not complete):
            written.append(copy.name)
            _files.write_json(out / "labels.json", {**noted, "manifests": sorted({*ours, *written})})
            file.split.write_part(copy, file.labelled)
    if written:
        say(f"{out}: holds manifests of the recordings that have units: train on them, with task.data={out}")
    if features.per_sec != USUAL_LABEL_RATE:
        warn(f"note: tell fairseq task.label_rate={rate}")
    if features.sample_rate != USUAL_SAMPLE_RATE:
        warn(f"note: tell fairseq task.sample_rate={features.sample_rate}")
