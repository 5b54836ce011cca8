"""Builds the tasks' corpora from the shared recordings, in the layouts that s3prl's tasks read.

Training audio is clean (except for enhancement, whose input is noisy), or noisy at the ratios of the test audio. Test
audio is clean and at 20, 10 and 0 dB of recorded noise that no training audio contains.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from benchmarks.minisuperb.draft import Draft
from benchmarks.minisuperb.labelled import build_commands, build_keywords, build_recognition, build_speakers
from benchmarks.minisuperb.mixtures import build_enhancement, build_separation
from daisy import _files
from daisy.errors import OutputError, UsageError

RECIPE = 2
"""Increased whenever the same seed makes other corpora."""
BUILDERS: dict[str, Callable[[Draft], None]] = {
    "asr": build_recognition("mboshi"),
    "asr_english": build_recognition("robotutor", "speechocean762", max_train=900),
    "sid": build_speakers,
    "se": build_enhancement,
    "ss": build_separation,
    "ks": build_keywords,
    "ic": build_commands,
}


def build_corpus(
    task: str,
    root: Path,
    seed: int = 0,
    limit: int | None = None,
    overwrite: bool = False,
    training: str = "clean",
) -> Path:
    """Build a task's corpus in a temporary folder and rename it when it is complete; keep one with the same settings.

    Args:
        task: name of a task in `BUILDERS`.
        root: folder of all tasks' corpora.
        seed: seed of pieces, noise excerpts and pairs.
        limit: maximum number of recordings per split, for trials.
        overwrite: whether to replace a corpus that was built with other settings.
        training: "clean", or "noisy": train and dev audio is, at random, clean or at one of the test sets' ratios, with
            noise of the train split. Enhancement always has noise.

    Returns:
        Path of the corpus.

    Raises:
        OutputError: if a corpus with other settings exists, or the folder cannot be written.
        UsageError: if there is no such task.
    """
    if task not in BUILDERS:
        raise UsageError(f"no corpus for {task!r}: there are {', '.join(BUILDERS)}")
    final = (root / task).resolve()
    settings = {
        "format_version": 1,
        "recipe": RECIPE,
        "task": task,
        "seed": seed,
        "limit": limit,
        "folder": str(final),
        **({"training": training} if training != "clean" else {}),
    }
    written = final / "corpus.json"
    if written.is_file():
        if json.loads(written.read_text(encoding="utf-8")) == settings:
            return final
        if not overwrite:
            raise OutputError(f"{final}: built or lying elsewhere with other settings; remove it or give --overwrite")

    def fill(folder: Path) -> None:
        BUILDERS[task](Draft(out=folder, final=final, seed=seed, limit=limit, training=training))
        _files.write_json(folder / "corpus.json", settings)

    return replace_folder(final, fill)


def replace_folder(final: Path, fill: Callable[[Path], None]) -> Path:
    """Fill a temporary folder that then replaces another, so that the latter is either complete or unchanged.

    Args:
        final: folder to replace.
        fill: function that fills an empty folder.

    Raises:
        OutputError: if the folder cannot be written.
    """
    beside = final.with_name(f".{final.name}.part")
    try:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        fill(beside)
        shutil.rmtree(final, ignore_errors=True)
        beside.rename(final)
    except OSError as error:
        raise OutputError(f"{final}: cannot be written ({error.strerror or error})") from None
    return final
