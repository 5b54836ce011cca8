"""The tasks: s3prl's downstream for each, the paths of its test sets, and how to read its results from the output."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.minisuperb.sources import CONDITIONS
from daisy.errors import OutputError
from daisy.evaluation.figures import format_snr

HERE = Path(__file__).parent
NUMBER = r"([-+]?(?:\d+\.?\d*(?:e[-+]?\d+)?|inf|nan))"
DEV_CHECKPOINTS = ("dev-best.ckpt", "dev-clean-best.ckpt", "best-states-dev.ckpt")
EVALUATED = "config.downstream_expert."


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A number that s3prl prints at the end of a split."""

    name: str
    pattern: str
    """Regular expression of a whole line, with ``{split}``; its last group is the number."""
    higher_is_better: bool
    unit: float = 1.0
    """Divisor of s3prl's number: 100 for percent."""
    at_hand: bool = True
    """Whether the score counts it on the shared recordings."""
    published: bool = True
    """Whether the score counts it on the published corpora."""

    def read_all(self, text: str, split: str) -> list[float]:
        """Read all values for a split from a log, in order."""
        line = re.compile(f"^{self.pattern.format(split=re.escape(split))}$", re.MULTILINE | re.IGNORECASE)
        return [float(match.group(line.groups)) / self.unit for match in line.finditer(text)]

    def read_last(self, text: str, split: str, where: Path) -> float:
        """Read the last value for a split from a log.

        Raises:
            OutputError: if the log has none.
        """
        values = self.read_all(text, split)
        if not values:
            raise OutputError(f"{where}: no line with {self.name} of {split}; s3prl stopped before its result")
        return values[-1]


def _make_accuracy() -> tuple[Metric, ...]:
    return (Metric(name="accuracy", pattern="{split} acc: " + NUMBER, higher_is_better=True),)


def _make_average(name: str, shown: str) -> Metric:
    return Metric(name=shown, pattern=rf"Average {name} of (\d+) utts(?: is|:) " + NUMBER, higher_is_better=True)


def score_slots(folder: Path, split: str) -> dict[str, float]:
    """Compute the share of slots that are right: of a few dozen orders, hardly any has all three right.

    Args:
        folder: folder of s3prl's tables of predictions and truth; each line begins with an utterance's name.
        split: s3prl's name of the split.

    Raises:
        OutputError: if the tables are missing or do not match.
    """
    try:
        predicted, true = (
            [line.split(",") for line in (folder / f"{split}_{kind}.csv").read_text(encoding="utf-8").splitlines()]
            for kind in ("predict", "truth")
        )
        right = [a == b for p, t in zip(predicted, true, strict=True) for a, b in zip(p[1:], t[1:], strict=True)]
        return {"slot_accuracy": sum(right) / len(right)}
    except (OSError, ValueError, ZeroDivisionError) as error:
        raise OutputError(f"{folder}: no predictions of {split} to score ({error})") from None


@dataclass(frozen=True, kw_only=True)
class Task:
    """One task of the table."""

    name: str
    downstream: str
    """s3prl's name, or the name of a folder in ``downstream/``."""
    metrics: tuple[Metric, ...]
    """The dev curve shows the first."""
    where: Callable[[str], tuple[str, Mapping[str, str]]]
    """Maps a condition to s3prl's split, and to the configuration's keys for other audio: paths below the corpus."""
    test_audio: str = ""
    """Pattern of the test recordings below the corpus of shared recordings."""
    pooled: bool = False
    """Whether the downstream model's mean over time can be taken first without changing its output."""
    in_score: bool = False
    """Whether MiniSUPERB's score counts it."""
    published_split: str = "test"
    score_more: Callable[[Path, str], dict[str, float]] | None = None
    """Computes further metrics from s3prl's files in a test set's folder."""
    needs: str = ""
    """A module that s3prl's wheel may lack."""
    config: str = ""
    """Task whose configuration is used, if that is another's."""

    def locate_test_set(self, condition: str | None, corpus: Path, folder: Path) -> tuple[str, str]:
        """Return s3prl's split and overrides for a test set.

        Args:
            condition: a key of `CONDITIONS`, or None for the published corpus's own test set.
            corpus: folder of the task's corpus.
            folder: folder for s3prl's output.
        """
        split, places = (self.published_split, {}) if condition is None else self.where(condition)
        changes = [f"args.expdir={str(folder)!r}"]
        changes += [f"{EVALUATED}{key}={str(corpus / place)!r}" for key, place in places.items()]
        return split, ",,".join(changes)


TASKS = {
    task.name: task
    for task in (
        Task(
            name="asr",
            test_audio="test-{condition}/**/*.flac",
            downstream="asr",
            metrics=(
                Metric(
                    name="cer",
                    pattern="{split} uer: " + NUMBER,
                    higher_is_better=False,
                    unit=100,
                    published=False,
                ),
                Metric(name="wer", pattern="{split} wer: " + NUMBER, higher_is_better=False, unit=100, at_hand=False),
            ),
            where=lambda condition: (f"test-{condition}", {}),
            in_score=True,
            published_split="test-clean",
        ),
        Task(
            name="sid",
            test_audio="{condition}/dev/wav/*/3/*.wav",
            downstream="voxceleb1",
            metrics=_make_accuracy(),
            where=lambda c: ("test", {"datarc.file_path": c, "datarc.meta_data": f"{c}/split.txt"}),
            pooled=True,
            in_score=True,
        ),
        Task(
            name="se",
            test_audio="test-{condition}/wav/noisy/*.wav",
            downstream="enhancement_stft2",
            metrics=(_make_average("pesq", "pesq"), _make_average("stoi", "stoi")),
            where=lambda condition: ("test", {"loaderrc.test_dir": f"test-{condition}"}),
            in_score=True,
        ),
        Task(
            name="ss",
            test_audio="test-{condition}/wav/mix_clean/*.wav",
            downstream="separation_stft2",
            metrics=(_make_average("si_sdr", "si_sdri_db"),),
            where=lambda condition: ("test", {"loaderrc.test_dir": f"test-{condition}"}),
            in_score=True,
        ),
        Task(
            name="ks",
            test_audio="test-{condition}/*/*.wav",
            downstream="keywords",
            metrics=_make_accuracy(),
            where=lambda condition: ("test", {"datarc.speech_commands_test_root": f"test-{condition}"}),
            pooled=True,
        ),
        Task(
            name="ic",
            test_audio="{condition}/wavs/test/*.wav",
            downstream="fluent_commands",
            metrics=_make_accuracy(),
            where=lambda condition: ("test", {"datarc.file_path": condition}),
            pooled=True,
            score_more=score_slots,
        ),
        Task(
            name="pr",
            downstream="ctc",
            metrics=(Metric(name="per", pattern="{split} per: " + NUMBER, higher_is_better=False),),
            where=lambda condition: ("test", {}),
            needs="s3prl.downstream.ctc.corpus",
        ),
    )
}
TASKS["asr_english"] = replace(TASKS["asr"], name="asr_english", in_score=False, config="asr")
AT_HAND = tuple(name for name in TASKS if name != "pr")
"""Tasks with a corpus made of shared recordings, none of which have phonemes."""
USUAL = tuple(name for name in AT_HAND if name != "asr_english")
"""Those of them that run by default."""
TITLES = {"test": "test", **{name: format_snr(snr_db) for name, snr_db in CONDITIONS.items()}}
"""Names of test sets in tables; "test" is a published corpus's own."""
UNSCORED = {("se", "clean")}
"""Test sets without anything to do: there is no noise to remove."""


def list_conditions(published: bool) -> list[str | None]:
    """List a task's test sets: those of the shared recordings, or None for a published corpus's own."""
    return [None] if published else list(CONDITIONS)


def read_configuration(task: Task, corpus: Path, published: bool) -> str:
    """Read the task's s3prl configuration as YAML text, with the corpus's paths.

    Raises:
        OutputError: if there is none.
    """
    path = HERE / "config" / ("published" if published else "small") / f"{task.config or task.name}.yaml"
    if not path.is_file():
        raise OutputError(f"{path}: there is no such configuration")
    return path.read_text(encoding="utf-8").replace("{corpus}", str(corpus))


def choose_checkpoint(folder: Path, total_steps: int, published: bool) -> Path:
    """Return the checkpoint that s3prl saved as best on dev, or the last one on the shared recordings.

    Their dev sets are so small that ties or luck would decide, and s3prl keeps the earliest of equals.

    Raises:
        OutputError: if the training did not finish.
    """
    end = folder / f"states-{total_steps}.ckpt"
    if not end.is_file():
        raise OutputError(f"{folder}: the training did not reach step {total_steps}")
    best = (folder / name for name in DEV_CHECKPOINTS if published and (folder / name).is_file())
    return next(best, end)
