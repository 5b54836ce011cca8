"""New fields beside what a Shar folder has."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lhotse import CutSet
from lhotse.features.io import MemoryRawWriter
from lhotse.shar import SharWriter

from daisy.errors import OutputError, UsageError, unknown_name
from daisy.integrations.lhotse.exits import encode_cuts
from daisy.integrations.lhotse.extractor import DaisyFeatures
from daisy.integrations.lhotse.resuming import check_settings, describe_settings, note_settings

FIELDS = {"features": "numpy", "exit_layer": "jsonl", "predicted_loss": "jsonl", "units": "numpy"}
"""Fields, and the kind of shards that lhotse writes of each: arrays without loss, or lines."""
ENDINGS = {"numpy": ".tar", "jsonl": ".jsonl.gz"}


def extend_shar(
    folder: str | Path,
    extractor: DaisyFeatures,
    fields: Sequence[str] = ("features", "exit_layer", "predicted_loss"),
    *,
    batch_sec: float = 600.0,
    num_workers: int = 0,
    overwrite: bool = False,
) -> CutSet:
    """Encode the cuts of a Shar folder, and write new fields beside those that it has; nothing else is touched.

    Shards are done one after the other, each is whole or absent, and those that have all the fields are left: a stopped
    run goes on. ``NAME.daisy.json`` beside the folder notes what they are made with.

    Args:
        folder: of ``cuts.to_shar``; its cuts have recordings, in shards or elsewhere.
        extractor: says what runs.
        fields: of `add_exits`, "features" and "units" among them if wanted.
        batch_sec: see `add_exits`.
        num_workers: likewise.
        overwrite: write fields anew that are there; with other settings than before, the fields not asked for go, too.

    Returns:
        The folder's cuts, read as they are asked for.

    Raises:
        UsageError: where there is no Shar folder, or a field is unknown, and as `add_exits` does.
        AudioError: as `add_exits` does.
        OutputError: where the folder has fields that were made with other settings.
    """
    folder = Path(folder).resolve()  # "." has no name to put the note beside
    for field in fields:
        if field not in FIELDS:
            raise UsageError(unknown_name("field", field, FIELDS))
    shards = sorted(folder.glob("cuts*.jsonl*"))
    if not shards:
        raise UsageError(f"{folder}: no Shar folder: it has no cuts.000000.jsonl.gz")
    _begin(folder, fields, describe_settings(extractor), overwrite=overwrite)
    for cuts in shards:
        suffix = cuts.name.removeprefix("cuts").partition(".jsonl")[0]
        names = [f"{field}{suffix}{ENDINGS[FIELDS[field]]}" for field in fields]
        if not overwrite and all((folder / name).exists() for name in names):
            continue
        # Beside the folder, as lhotse takes whatever is in it for fields.
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as part:
            _write_fields(cuts, part, suffix, fields, extractor, batch_sec, num_workers)
            for name in names:
                os.replace(Path(part) / name, folder / name)
    return CutSet.from_shar(in_dir=folder)


def _begin(folder: Path, fields: Sequence[str], settings: Mapping[str, Any], *, overwrite: bool) -> None:
    """Remove the fields that are to be overwritten, and note the settings, which are those of all that are left."""
    gone = fields if overwrite else ()
    try:
        check_settings(folder, settings)
    except OutputError:
        if not overwrite:
            raise
        gone = tuple(FIELDS)
    for field in gone:  # before the note: a run that is stopped goes on beside no field of other settings
        for path in folder.glob(f"{field}.*{ENDINGS[FIELDS[field]]}"):
            path.unlink()
    note_settings(folder, settings)


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
