"""Transcripts as JSON, CSV and subtitles, with error rates where references are known."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from daisy.errors import DaisyError
from daisy.extraction.index import format_value
from daisy.recognition.decoding import Word
from daisy.recognition.error_rates import ErrorRates, count_errors, measure_error_rates
from daisy.recognition.transcript_rows import TranscriptRow, TranscriptSettings

FORMAT_VERSION = 1
"""Version of the JSON file's format."""
CUE_SEC, CUE_CHARACTERS, PAUSE_SEC = 6.0, 80, 1.0
"""Longest duration of a subtitle, most characters, and the pause at which it ends."""
SHORTEST_CUE_SEC = 1.0
"""Shortest duration of a subtitle, so that it can be read, unless the next one begins earlier."""


@dataclass(kw_only=True)
class TranscriptReport:
    """The results of a run, earlier runs included."""

    settings: TranscriptSettings
    rows: list[TranscriptRow]
    failed: Mapping[str, DaisyError]
    """Reason by recording, which the reason does not name again."""
    num_resumed: int = 0
    """Rows that an earlier run had finished."""
    num_changed: int = 0
    """Recordings that an earlier run had finished but that have changed since; they were recognised again."""
    num_gone: int = 0
    """Rows of an earlier run whose recordings no longer exist."""
    references: Mapping[str, str] = field(default_factory=dict)
    """Spoken texts, by `Recording.label`, for some, all or no recordings."""
    subtitles: Sequence[str] = ()
    """Subtitle files below the folder, also from earlier runs; starting again removes them."""

    def totals(self) -> dict[str, float | int | None]:
        """Sum up mean exit layer, executed share of layers (over recordings), real-time factor; None if nothing ran."""
        audio_sec, seconds = sum(row.duration_sec for row in self.rows), sum(row.seconds for row in self.rows)
        count = len(self.rows)
        return {
            "num_recordings": count,
            "num_failed": len(self.failed),
            "audio_sec": round(audio_sec, 3),
            "mean_exit_layer": sum(row.mean_exit_layer for row in self.rows) / count if count else None,
            "depth": sum(row.mean_exit_layer / row.num_layers for row in self.rows) / count if count else None,
            "seconds": round(seconds, 3),
            "real_time_factor": seconds / audio_sec if audio_sec else None,
        }

    def rates(self) -> dict[int | str, ErrorRates]:
        """Measure error rates over all recordings with a reference ("all"), and over those that exited at each layer.

        Returns:
            The rates, without layers whose references are empty; empty without references.

        Raises:
            UsageError: where jiwer is missing.
        """
        rows = [row for row in self.rows if row.label in self.references]
        by_layer: dict[int | str, list[TranscriptRow]] = {"all": rows}
        for row in sorted(rows, key=lambda row: row.exit_layer):
            by_layer.setdefault(row.exit_layer, []).append(row)
        return {
            layer: measure_error_rates([self.references[row.label] for row in some], [row.text for row in some])
            for layer, some in by_layer.items()
            if any(self.references[row.label].strip() for row in some)
        }


def format_json(report: TranscriptReport) -> str:
    """Write settings, totals, error rates, recordings with their words, and failures, with one line per recording."""
    content: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "settings": asdict(report.settings),
        "totals": report.totals(),
        "recordings": [_describe(row, report) for row in report.rows],
        "failed": [{"path": label, "reason": error.message} for label, error in report.failed.items()],
    }
    if report.references:
        content["error_rates"] = {str(layer): asdict(rates) for layer, rates in report.rates().items()}
    if report.subtitles:
        content["subtitles"] = list(report.subtitles)
    members = (f" {json.dumps(name)}: {format_value(value)}" for name, value in content.items())
    return "{\n" + ",\n".join(members) + "\n}\n"


def _describe(row: TranscriptRow, report: TranscriptReport) -> dict[str, Any]:
    reference = report.references.get(row.label)
    return row.public() if reference is None else {**row.public(), "reference": reference}


def format_csv(report: TranscriptReport) -> str:
    """Write one line per recording; with references, also the reference, and counts of errors, words and characters."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    channel = ["channel"] if report.settings.channel != "mean" else []
    counted = ["reference", "word_errors", "words", "character_errors", "characters"] if report.references else []
    columns = ["path", *channel, "duration_sec", "exit_layer", "num_layers", "confidence", "seconds", "window_exits"]
    writer.writerow([*columns, "text", *counted])
    for row in report.rows:
        cells: list[object] = [row.path, *([row.channel] if channel else []), f"{row.duration_sec:.4f}", row.exit_layer]
        cells += [row.num_layers, f"{row.confidence:.4f}", f"{row.seconds:.4f}", " ".join(map(str, row.window_exits))]
        cells.append(row.text)
        reference = report.references.get(row.label)
        if counted and reference is None:
            cells += [""] * len(counted)
        elif reference is not None:
            words, characters = (count_errors(reference, row.text, unit) for unit in ("words", "characters"))
            cells += [reference, *words, *characters]
        writer.writerow(cells)
    return text.getvalue()


def format_srt(words: Sequence[Word]) -> str:
    """Write a recording's words as SubRip subtitles, which end at pauses or before they become too long."""
    cues: list[list[Word]] = []
    for word in words:
        if not cues or _must_end(cues[-1], word):
            cues.append([])
        cues[-1].append(word)
    starts = [*(cue[0].start_sec for cue in cues), math.inf]
    blocks = [
        f"{number}\n{_format_time(cue[0].start_sec)} --> {_format_time(_find_end(cue, starts[number]))}\n"
        f"{' '.join(word.text for word in cue)}\n"
        for number, cue in enumerate(cues, 1)
    ]
    return "\n".join(blocks)


def _find_end(cue: Sequence[Word], next_start: float) -> float:
    """Return the end of a subtitle in seconds."""
    return max(cue[-1].end_sec, min(cue[0].start_sec + SHORTEST_CUE_SEC, next_start))


def _must_end(cue: Sequence[Word], word: Word) -> bool:
    """Tell whether a subtitle must end before a word."""
    length = sum(len(before.text) + 1 for before in cue) + len(word.text)
    late = word.start_sec - cue[-1].end_sec > PAUSE_SEC or word.end_sec - cue[0].start_sec > CUE_SEC
    return late or length > CUE_CHARACTERS


def _format_time(seconds: float) -> str:
    """Format hours, minutes, seconds and milliseconds as in SubRip."""
    milliseconds = round(1000 * seconds)
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{rest // 1000:02},{rest % 1000:03}"
