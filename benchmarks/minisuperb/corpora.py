"""The tasks' corpora, built from the shared recordings in the layouts that s3prl's tasks read.

Training audio is clean (but for enhancement, whose input is noisy), or at the ratios of the test audio; test audio
comes clean and at 20, 10 and 0 dB of recorded noise that no training audio holds.
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
"""Goes up when the same seed makes other corpora."""
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
    """Build a task's corpus, whole or absent: beside, then renamed. One that is there with the same settings stays.

    Args:
        task: of `BUILDERS`.
        root: folder that holds the tasks' corpora.
        seed: of pieces, noise excerpts and pairs.
        limit: recordings a split at most, to try things out.
        overwrite: build again what other settings built.
        training: "clean", or "noisy": train and dev audio clean and at the test sets' ratios, by chance, with noise of
            the train split. Enhancement's has noise anyway.

    Returns:
        The corpus's folder.

    Raises:
        OutputError: where a corpus with other settings is there, or the folder cannot be written.
        UsageError: where there is no such task.
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
    """Fill a folder beside the one that it then replaces, so that this is whole or as it was.

    Args:
        final: the folder.
        fill: called with an empty folder.

    Raises:
        OutputError: where it cannot be written.
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
