"""Units of recordings for fairseq's ``hubert_pretraining``, from MFCC or from any teacher."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from daisy import _files
from daisy.audio import Recording
from daisy.errors import AudioError, UsageError
from daisy.extraction.features import centre_features, make_mfcc
from daisy.extraction.label_folder import CENTRES, FITTED_ON, NOTES, add_notes, claim_folder, lock_folder, read_notes
from daisy.extraction.teacher_kinds import UnitSource, open_teacher
from daisy.extraction.unit_files import Split, UnitFile, write_dictionary
from daisy.extraction.units import Frames, fit_kmeans, load_centres, sample_features, save_centres

MFCC_LABEL_RATE = 50.0
Track = Callable[[str, int | None], AbstractContextManager[Callable[[int], None]]]
"""Progress display: from a task's name and number of steps to a function called with numbers of finished steps."""


@dataclass(frozen=True, kw_only=True)
class UnitReport:
    """The units of one manifest."""

    manifest: Path
    path: Path
    """Path of the .km file."""
    num_recordings: int
    """Number of recordings in the manifest."""
    num_labelled: int
    """Number of those that have units."""
    is_written: bool
    """Whether the .km file was written. Not if no recording has units, nor if some have none and `beside` is someone
    else's."""
    beside: Path
    """Path for a manifest of the labelled recordings, written if some have no units."""


@dataclass(kw_only=True)
class LabelReport:
    """The result of `make_labels`."""

    label_rate: float
    """Units per second, fairseq's ``task.label_rate``."""
    sample_rate: int | None
    """Sample rate of the audio in Hz, fairseq's ``task.sample_rate``; None for stored features, which do not tell
    it."""
    files: list[UnitReport]
    failed: dict[Path, AudioError] = field(default_factory=dict)
    """Recordings that could not be used, with the reasons."""
    has_manifests: bool = False
    """Whether manifests that match the units line by line were written beside them, as some recordings failed."""
    notes: list[str] = field(default_factory=list)


def make_labels(
    manifests: Sequence[str | Path],
    out: str | Path,
    *,
    teacher: str | Path | None = None,
    layer: int | None = None,
    clusters: int = 100,
    centre: bool = False,
    label_rate: float | None = None,
    feature_rate: float | None = None,
    fit_frames: int = 500_000,
    seed: int = 0,
    precision: Literal["float32", "bfloat16"] = "float32",
    device: str = "cpu",
    allow_pickle: bool = False,
    strict: bool = False,
    track: Track = lambda name, total: contextlib.nullcontext(lambda count: None),
) -> LabelReport:
    r"""Make k-means units of recordings, as ``SPLIT.km`` for each manifest, and ``dict.km.txt``.

    A stopped call resumes where it ended, even if manifests have changed: a recording that has units keeps them. The
    folder's ``labels.json`` records how its units are made; other units need another folder.

    A teacher's frames are aligned in time with HuBERT's, 50 per second; a HuBERT's frames and stored features are used
    as they are. Recordings that share one of Whisper's windows of 30 s change each other's states: a recording's units
    depend on the recordings listed before and after it (`daisy.extraction.teachers.WhisperTeacher`).

    Args:
        manifests: fairseq manifests; k-means is fitted on recordings of the first.
        out: folder to write to.
        teacher: network or features to cluster: a bundled model's name; the checkpoint of a HuBERT, daisy's or any that
            `daisy.checkpoints.convert` reads; a transformers encoder, as folder or name on the hub (a HuBERT's folder
            and its name on the hub count as two teachers: daisy runs the one, transformers the other); a folder of
            features, as .npy files named like the recordings, as daisy's extraction, or as fairseq's dumps. None: MFCC.
        layer: layer of the teacher.
        clusters: number of units, K.
        centre: subtract each recording's mean first; units then carry less speaker information.
        label_rate: expected units per second; MFCC have 50 (also if None) or 100, a teacher has its own rate.
        feature_rate: frames per second of a folder of features; None: whichever of 50, 100 and 25 fits the lengths.
        fit_frames: maximum number of frames on which k-means is fitted.
        seed: seed of the drawn frames and of k-means.
        precision: precision in which a network computes. bfloat16 changes about one unit in a hundred.
        device: device on which a network computes.
        allow_pickle: read checkpoints that hold pickled Python objects (fairseq's do).
        strict: stop at the first recording that cannot be used; otherwise it has no units, and is listed in the report.
        track: progress display of each task.

    Returns:
        The report on the units.

    Raises:
        UsageError: if the request makes no sense: unknown teachers, missing layers, other rates, no recordings.
        CheckpointError: if a teacher's checkpoint cannot be read.
        OutputError: if the folder cannot be written, is being written, or holds units made otherwise.
        AudioError: with ``strict``, if a recording cannot be used.

    Example:
        >>> import daisy.audio, daisy.extraction, json, pathlib, tempfile
        >>> clips = daisy.audio.find([str(daisy.checkpoints.format.ASSETS / "demo")])[:2]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     lines = [f"{clip.path}\t{daisy.audio.num_samples(clip.path)}" for clip in clips]
        ...     manifest = pathlib.Path(folder) / "train.tsv"
        ...     _ = manifest.write_text("\n".join(["/", *lines]))
        ...     report = daisy.extraction.make_labels([manifest], folder, teacher="daisy-mini", layer=9, clusters=8)
        ...     units = [line.split() for line in (pathlib.Path(folder) / "train.km").read_text().splitlines()]
        >>> report.label_rate, report.files[0].num_labelled, max(max(map(int, line)) for line in units) < 8
        (50.0, 2, True)
    """
    out = Path(out)
    files = [UnitFile(split=Split.read(Path(manifest)), folder=out) for manifest in manifests]
    _check_request(files, teacher, layer, clusters, fit_frames)
    source = _open(files, teacher, layer, label_rate, feature_rate, precision, device, allow_pickle)
    features = centre_features(source.features) if centre else source.features
    settings = {
        "source": source.identity,
        "clusters": clusters,
        "label_rate": _without_zero(features.per_sec),
        "fit_frames": fit_frames,
        "centre": centre,
        "seed": seed,
        "fit_on": files[0].split.path.name,
        "precision": precision,
    }
    remarks = {"teacher": None if teacher is None else str(teacher), "kind": source.kind, "layer": source.layer}
    report = LabelReport(label_rate=features.per_sec, sample_rate=features.sample_rate, files=[])

    def fail(recording: Recording, error: AudioError) -> None:
        if strict:
            raise error
        report.failed[recording.path] = error

    with lock_folder(out):
        centres = load_centres(path, clusters, features.width) if (path := out / CENTRES).is_file() else None
        stays = claim_folder(out, settings, remarks, files, source)
        report.notes = [note for note in (source.note, stays) if note]
        if centres is None:
            with track("drawing frames", len(files[0].split.recordings)) as advance:
                frames, drawn = sample_features(files[0].split.recordings, features, fit_frames, seed, advance, fail)
            with track(f"k-means on {len(frames)} frames", None):
                centres = fit_kmeans(frames, clusters, seed)
            _save_centres(out, centres, [files[0].split.keys[index] for index in drawn])
        write_dictionary(clusters, out)
        for file in files:
            with track(file.split.name, len(file.split.recordings)) as advance:
                for count in file.label(features, centres, fail):
                    advance(count)
        _finish(files, out, report)
    return report


def _check_request(
    files: Sequence[UnitFile], teacher: str | Path | None, layer: int | None, clusters: int, fit_frames: int
) -> None:
    if not files:
        raise UsageError("units are made of manifests, and none is given")
    if len({file.split.name for file in files}) < len(files):
        raise UsageError("two manifests have the same name: their units would share a file")
    if teacher is None and layer is not None:
        raise UsageError(f"layer {layer} of what? MFCC have none: name a teacher too")
    if clusters < 1 or fit_frames < 1:
        raise UsageError(f"clusters and frames to fit on must be at least 1, found {clusters} and {fit_frames}")


def _open(
    files: Sequence[UnitFile],
    teacher: str | Path | None,
    layer: int | None,
    label_rate: float | None,
    feature_rate: float | None,
    precision: Literal["float32", "bfloat16"],
    device: str,
    allow_pickle: bool,
) -> UnitSource:
    """Open a teacher, or MFCC in its place."""
    if precision not in ("float32", "bfloat16"):
        raise UsageError(f"precision must be float32 or bfloat16, found {precision!r}")
    if teacher is None:
        if feature_rate is not None or precision != "float32":
            raise UsageError("a rate of stored features, and a precision, go with a teacher; MFCC have neither")
        features = make_mfcc(MFCC_LABEL_RATE if label_rate is None else label_rate)
        return UnitSource(kind="mfcc", features=features, identity="mfcc", layer=None)
    opened = open_teacher(
        teacher,
        layer,
        {file.split.name: file.split.recordings for file in files},
        feature_rate=feature_rate,
        precision=precision,
        device=device,
        allow_pickle=allow_pickle,
    )
    per_sec = opened.features.per_sec
    if label_rate is not None and abs(label_rate - per_sec) > 1e-6 * per_sec:
        raise UsageError(f"label rate {label_rate:g}: this teacher's frames come at {per_sec:.10g} a second")
    return opened


def _without_zero(rate: float) -> float:
    """Turn 50.0 into 50, and leave 68.9 as it is; older versions recorded rates like this."""
    return int(rate) if rate == int(rate) else rate


def _save_centres(out: Path, centres: Frames, keys: Sequence[str]) -> None:
    """Save the centres, (K, F), and the keys of the recordings on which they were fitted."""
    _files.write(out / FITTED_ON, "".join(f"{key}\n" for key in keys).encode())
    save_centres(centres, out / CENTRES)
    add_notes(out, **{CENTRES: _files.digest(out / CENTRES)})


def _finish(files: Sequence[UnitFile], out: Path, report: LabelReport) -> None:
    """Write the .km files; if recordings were skipped, also manifests that match them line by line."""
    noted = read_notes(out / NOTES)
    ours = noted.get("manifests", [])
    copies = [out / file.split.path.name for file in files]
    # Manifests there that were not written here belong to someone: they stay, and units that do not match are not
    # written.
    in_place = [
        copy.is_file() and (copy.name not in ours or copy.samefile(file.split.path))
        for copy, file in zip(copies, files, strict=True)
    ]
    complete = all(len(file.labelled) == len(file.split.recordings) for file in files)
    written: list[str] = []
    for file, copy, is_theirs in zip(files, copies, in_place, strict=True):
        count, whole = len(file.labelled), len(file.split.recordings)
        is_written = count == whole or not (is_theirs or count == 0)
        report.files.append(
            UnitReport(
                manifest=file.split.path,
                path=file.path,
                num_recordings=whole,
                num_labelled=count,
                is_written=is_written,
                beside=copy,
            )
        )
        if not is_written:
            continue
        file.finish()
        if not is_theirs and (copy.is_file() or not complete):
            written.append(copy.name)
            add_notes(out, manifests=sorted({*ours, *written}))
            file.split.write_part(copy, file.labelled)
    report.has_manifests = bool(written)
