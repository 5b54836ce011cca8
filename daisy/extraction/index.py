"""What an extraction produced, and its index files."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict, dataclass
from pathlib import Path

from daisy import _files
from daisy.errors import AudioError
from daisy.extraction.journal import FORMAT_VERSION, Row, Settings


@dataclass(kw_only=True)
class ExtractionReport:
    """What a run has produced, earlier runs included."""

    settings: Settings
    rows: list[Row]
    failed: dict[str, AudioError]
    """Path to the reason, which does not name it again."""
    num_resumed: int = 0
    """Rows that an earlier run had finished."""

    def totals(self) -> dict[str, float | int | None]:
        """Sum up mean exit layer, executed share of layers (over utterances), real-time factor; None if nothing ran."""
        audio_sec = sum(row.duration_sec for row in self.rows)
        seconds = sum(row.seconds for row in self.rows)
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


def write_index(report: ExtractionReport, out: Path) -> None:
    """Write ``index.json`` (settings, totals, one object per recording, failures) and ``index.csv`` (one line each)."""
    _files.write_json(
        out / "index.json",
        {
            "format_version": FORMAT_VERSION,
            "settings": asdict(report.settings),
            "totals": report.totals(),
            "recordings": [row.public() for row in report.rows],
            "failed": [{"path": path, "reason": error.message} for path, error in report.failed.items()],
        },
    )
    num_layers = max((row.num_layers for row in report.rows), default=0)
    losses = [f"predicted_loss_{layer}" for layer in range(1, num_layers + 1)]
    text = io.StringIO()
    writer = csv.writer(text)
    columns = ["path", "output", "duration_sec", "exit_layer", "num_layers", "seconds", "window_exits"]
    writer.writerow([*columns, *losses])
    for row in report.rows:
        cells = [f"{value:.4f}" for value in row.predicted_loss] + [""] * (num_layers - len(row.predicted_loss))
        writer.writerow(
            [
                row.path,
                row.output,
                f"{row.duration_sec:.4f}",
                row.exit_layer,
                row.num_layers,
                f"{row.seconds:.4f}",
                " ".join(map(str, row.window_exits)),
                *cells,
            ]
        )
    _files.write(out / "index.csv", text.getvalue().encode(errors="surrogateescape"))
