"""Add new fields to a Shar folder."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lhotse import CutSet
from lhotse.features.io import MemoryRawWriter
from lhotse.shar import SharWriter

from daisy import _files
from daisy.errors import OutputError, UsageError, unknown_name
from daisy.integrations.lhotse.exits import encode_cuts
from daisy.integrations.lhotse.extractor import DaisyFeatures
from daisy.integrations.lhotse.resuming import check_settings, describe_settings, hold_lock, note_settings, read_note

FIELDS = {"features": "numpy", "exit_layer": "jsonl", "predicted_loss": "jsonl", "units": "numpy"}
"""Fields, and the kind of shards that lhotse writes for each: lossless arrays, or lines."""
ENDINGS = {"numpy": ".tar", "jsonl": ".jsonl.gz"}
UNFINISHED = "unfinished"
"""Subfolder of a shard that is being written."""


def extend_shar(
    folder: str | Path,
    extractor: DaisyFeatures,
    fields: Sequence[str] = ("features", "exit_layer", "predicted_loss"),
    *,
    batch_sec: float = 600.0,
    num_workers: int = 0,
    overwrite: bool = False,
) -> CutSet:
    """Encode the cuts of a Shar folder, and write new fields beside the existing ones; nothing else is changed.

    Shards are processed one by one, each is whole or absent, and those that have all the fields are skipped, so that a
    stopped run can resume. Shards are collected in ``NAME.daisy`` beside the folder, which can be read meanwhile, and
    moved there at the end. ``NAME.daisy.json`` beside it notes the fields and their settings.

    Args:
        folder: folder written by ``cuts.to_shar``; its cuts have recordings, in shards or elsewhere.
        extractor: extractor to run.
        fields: fields as in `add_exits`, with "features" and "units" if wanted.
        batch_sec: see `add_exits`.
        num_workers: likewise.
        overwrite: replace existing fields; if the settings differ, remove all fields that this function wrote.

    Returns:
        The folder's cuts, read lazily.

    Raises:
        UsageError: where there is no Shar folder, or a field is unknown, and as in `add_exits`.
        AudioError: as in `add_exits`.
        OutputError: where the folder has fields with other settings or from something else, or another
            process is writing to it.
    """
    folder = Path(folder).resolve()  # "." has no name for the note beside it
    for field in fields:
        if field not in FIELDS:
            raise UsageError(unknown_name("field", field, FIELDS))
    shards = sorted(folder.glob("cuts*.jsonl*"))
    if not shards:
        raise UsageError(f"{folder}: no Shar folder: it has no cuts.000000.jsonl.gz")
    # Beside the folder, as lhotse takes all files in it for fields, and refuses those that lack shards.
    collected = folder.with_name(f"{folder.name}.daisy")
    with hold_lock(folder):
        _begin(folder, collected, fields, describe_settings(extractor), overwrite=overwrite)
        names = []
        for cuts in shards:
            suffix = cuts.name.removeprefix("cuts").partition(".jsonl")[0]
            of_shard = [f"{field}{suffix}{ENDINGS[FIELDS[field]]}" for field in fields]
            if not all((folder / name).exists() or (collected / name).exists() for name in of_shard):
                with _collect(collected) as part:
                    _write_fields(cuts, str(part), suffix, fields, extractor, batch_sec, num_workers)
            names += of_shard
        _move(names, collected, folder)
    return CutSet.from_shar(in_dir=folder)


def _begin(
    folder: Path, collected: Path, fields: Sequence[str], settings: Mapping[str, Any], *, overwrite: bool
) -> None:
    """Remove the fields to overwrite, and note the settings, which are those of all remaining fields."""
    made, gone = set(), set(fields) if overwrite else set()
    try:
        made = set(read_note(folder).get("fields", ()))
        check_settings(folder, settings)
    except OutputError:
        if not overwrite:
            raise
        gone |= made
        shutil.rmtree(collected, ignore_errors=True)
    for field in fields:
        if field not in made | gone and any(_list_shards(folder, field)):
            raise OutputError(f"{folder}: has {field} that extend_shar did not write; leave it out, or overwrite=True")
    with _files.refusing(folder):
        for field in gone:  # before the note, so that a resumed run has no field of other settings
            for path in [*_list_shards(folder, field), *_list_shards(collected, field)]:
                path.unlink()
        collected.mkdir(exist_ok=True)
    note_settings(folder, {**settings, "fields": sorted((made - gone).union(fields))})


def _list_shards(folder: Path, field: str) -> list[Path]:
    return list(folder.glob(f"{field}.*{ENDINGS[FIELDS[field]]}"))


def _move(names: Sequence[str], collected: Path, folder: Path) -> None:
    """Move shards into the folder, and remove the place where they were collected if it is then empty."""
    with _files.refusing(folder):
        for name in names:
            if (collected / name).exists():
                os.replace(collected / name, folder / name)
    with contextlib.suppress(OSError):
        collected.rmdir()


@contextlib.contextmanager
def _collect(collected: Path) -> Iterator[Path]:
    """Provide a folder for the files of one shard, and keep them once all are whole."""
    part = collected / UNFINISHED
    shutil.rmtree(part, ignore_errors=True)  # left by a killed run
    part.mkdir()
    yield part
    for path in part.iterdir():
        os.replace(path, collected / path.name)
    part.rmdir()


def _write_fields(
    cuts: Path,
    out: str,
    suffix: str,
    fields: Sequence[str],
    extractor: DaisyFeatures,
    batch_sec: float,
    num_workers: int,
) -> None:
    """Write the fields of one shard's cuts."""
    recording = cuts.with_name(f"recording{suffix}.tar")
    shard = {"cuts": [cuts], "recording": [recording]} if recording.exists() else {"cuts": [cuts]}
    with SharWriter(
        out,
        {field: FIELDS[field] for field in fields},
        shard_size=None,
        shard_suffix=suffix,
        include_cuts=False,
        warn_unused_fields=False,
    ) as writer:
        for cut in encode_cuts(
            CutSet.from_shar(fields=shard),
            extractor,
            MemoryRawWriter() if "features" in fields else None,
            MemoryRawWriter() if "units" in fields else None,
            batch_sec=batch_sec,
            num_workers=num_workers,
        ):
            writer.write(cut)
