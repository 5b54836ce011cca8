"""Read lhotse's manifests of recordings and cuts, one JSON object per line; only the audio files are used."""

from __future__ import annotations

import gzip
import json
import os
import zlib
from pathlib import Path
from typing import Any

from daisy.audio.recordings import Recording, absolute
from daisy.errors import UsageError

SUFFIXES = (".jsonl", ".jsonl.gz")


def read_lhotse_manifest(path: str | Path) -> list[Recording]:
    """Read the files that a lhotse manifest lists as recordings, or as cuts of whole recordings.

    Args:
        path: path of the manifest, ``.jsonl`` or ``.jsonl.gz``.

    Returns:
        The recordings, in the manifest's order, named by their ids there.

    Raises:
        UsageError: where it is not such a manifest, or lists something other than whole, unchanged files: parts of
            files, several files in one recording, single channels, or audio that lhotse changes while it reads.
    """
    path = Path(path)
    open_text = gzip.open if path.suffix == ".gz" else open
    recordings: list[Recording] = []
    try:
        with open_text(path, "rt", encoding="utf-8") as stream:
            for number, line in enumerate(stream, 1):
                recordings.append(_read_line(json.loads(line), f"{path}, line {number}"))
    except UsageError:
        raise
    except (OSError, EOFError, zlib.error, ArithmeticError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{path}: not a manifest of lhotse's recordings or cuts ({error!r})") from None
    return recordings


def _read_line(item: dict[str, Any], place: str) -> Recording:
    recording = item.get("recording") or item
    sources = recording["sources"]
    if len(sources) != 1 or sources[0]["type"] != "file":
        raise UsageError(f"{place}: {item['id']} is not one file of this machine")
    if recording.get("transforms"):
        raise UsageError(f"{place}: {item['id']} is changed while lhotse reads it: cuts.save_audios writes it out")
    if recording is not item:
        whole = item["start"] == 0 and abs(item["duration"] - recording["duration"]) < 1 / recording["sampling_rate"]
        if not whole or item["channel"] != 0 or recording["channel_ids"] != [0]:
            raise UsageError(
                f"{place}: the cut {item['id']} is a part of its recording: cuts.save_audios writes it out, or "
                "daisy.integrations.lhotse encodes it"
            )
    source = absolute(Path(os.fsdecode(sources[0]["source"])))
    if "\0" in str(source):
        raise UsageError(f"{place}: {item['id']} has a zero byte in its path")
    return Recording(path=source, name=item["id"] + source.suffix)
