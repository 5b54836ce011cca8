"""Read fairseq's manifests as cuts."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import lhotse

from daisy import audio
from daisy.audio.archives import find_member
from daisy.errors import UsageError


def read_manifest(path: str | Path) -> lhotse.CutSet:
    """Make cuts of the recordings in a fairseq manifest.

    Args:
        path: path of the manifest.

    Returns:
        A cut for each whole recording, in the manifest's order. Its id is the recording's path below the manifest's
        root, without its ending and with - for /, as lhotse's writers name files by ids. If it is listed again, as by
        `daisy manifest --weight`, its further cuts end in _2, _3 and so on.

    Raises:
        UsageError: where it is not a manifest, two recordings share an id, or one is in a zip archive.
    """
    cuts: dict[str, lhotse.cut.Cut] = {}
    named: dict[str, Path] = {}
    times: Counter[str] = Counter()
    for recording in audio.read_manifest(path):
        name = str(Path(recording.name).with_suffix("")).replace(os.sep, "-")
        if named.setdefault(name, recording.path) != recording.path:
            raise UsageError(f"{path}: {named[name]} and {recording.path} would both be called {name}")
        times[name] += 1
        if times[name] > 1:
            name = f"{name}_{times[name]}"
            if name in cuts:
                raise UsageError(f"{path}: two recordings would be called {name}")
        if find_member(recording.path):
            raise UsageError(f"{recording.path}: is in an archive, which lhotse does not read")
        cuts[name] = lhotse.Recording.from_file(recording.path, recording_id=name).to_cut()
    return lhotse.CutSet.from_cuts(cuts.values())
