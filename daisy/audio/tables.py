"""Recognise tables that look like fairseq manifests because they end in ``.tsv`` too."""

from __future__ import annotations

import os

COMMON_VOICE = frozenset(["client_id", "path", "sentence"])
SPEECH_TO_TEXT = frozenset(["id", "audio", "n_frames"])
SHOWN = 6


def describe_table(first_line: str) -> str | None:
    """Describe a file whose first line names columns.

    Args:
        first_line: first line of the file; in a manifest, the root folder.

    Returns:
        What the file is, and where its recordings are; None where it may be a manifest.
    """
    columns = first_line.strip("\ufeff\r\n").split("\t")
    if len(columns) < 2 or os.path.isdir(first_line):  # Path.is_dir() raises on long lines
        return None
    if set(columns) >= COMMON_VOICE:
        return "Common Voice's table of clips: its column path names files in the folder clips beside it"
    if set(columns) >= SPEECH_TO_TEXT:
        return "a table of fairseq's speech-to-text tasks: its column audio names the recordings"
    more = ", …" if len(columns) > SHOWN else ""
    return f"a table with the columns {', '.join(columns[:SHOWN])}{more}"
