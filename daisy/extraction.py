"""Many recordings to features on disk: batched by length, atomic, going on where a stopped run ended."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy
from torch import Tensor

from daisy import audio, files
from daisy.audio import Recording
from daisy.encoder import EarlyExitEncoder, ExitOutput
from daisy.errors import AudioError, UsageError
from daisy.journal import DTYPES, FORMAT_VERSION, Journal, Row, Settings, stamp
from daisy.scores import for_json


@dataclass(kw_only=True)
class Report:
    """What a run has produced, earlier sittings included."""

    settings: Settings
    rows: list[Row]
    failed: dict[str, str]
    """Path to the reason."""
    num_resumed: int = 0
    """Rows that an earlier sitting had finished."""

    def totals(self) -> dict[str, float | int | None]:
        """Mean exit layer, executed share of layers (over utterances), real-time factor; None where nothing ran."""
        audio_sec = sum(row.duration_sec for row in self.rows)
        seconds = sum(row.seconds for row in self.rows)
        count = len(self.rows)
        return {
            "num_recordings": count,
            "num_failed": len(self.failed),
            "audio_sec": round(audio_sec, 3),
            "mean_exit_layer": sum(row.exit_layer for row in self.rows) / count if count else None,
            "depth": sum(row.exit_layer / row.num_layers for row in self.rows) / count if count else None,
            "seconds": round(seconds, 3),
            "real_time_factor": seconds / audio_sec if audio_sec else None,
        }


def extract(
    recordings: Sequence[Recording],
    encoder: EarlyExitEncoder,
    out: Path,
    *,
    checkpoint: str,
    format: str = "safetensors",
    dtype: str = "float32",
    batch_sec: float = 30.0,
    max_sec: float = 600.0,
    overwrite: bool = False,
    progress: Callable[[int], None] = lambda count: None,
) -> Report:
    """Write one feature file per recording, then ``index.json`` and ``index.csv``.

    Unreadable recordings do not stop the run; they are in the report, and tried again by the next sitting.

    Args:
        recordings: what to encode.
        encoder: its policy decides the exits, its ``keep`` what is written.
        out: the folder; each file lies at the recording's name, with the format's ending.
        checkpoint: digest of the encoder's checkpoint, which a run that goes on must share.
        format: safetensors or npy.
        dtype: float32 or float16, of the states on disk.
        batch_sec: seconds of audio in a batch, padding included. On CPUs small batches are the fastest.
        max_sec: recordings longer than this are refused: attention's cost grows with the square of the length.
        overwrite: begin again where the folder holds another run.
        progress: called with the number of recordings just dealt with.

    Raises:
        OutputError: where the folder cannot be written or holds a run with other settings.
        UsageError: where two recordings would have the same output file, or on an impossible option.
    """
    if not batch_sec > 0 or not max_sec > 0:
        raise UsageError(f"batch_sec and max_sec must be above 0 s, found {batch_sec} and {max_sec}")
    settings = Settings(
        checkpoint=checkpoint,
        policy=encoder.policy.to_config(),
        layers=encoder.keep,
        scores=encoder.score_names,
        score_stride=encoder.score_stride,
        format=format,
        dtype=dtype,
    )
    outputs = _outputs(recordings, settings.format)
    journal = Journal(out, settings, overwrite)
    journal.check_outputs(outputs)
    rate = encoder.backbone.config.sample_rate
    failed: dict[str, str] = {}
    pending: list[Recording] = []
    lengths: list[int] = []
    for recording in recordings:
        if journal.has(recording):
            continue
        try:
            lengths.append(_checked_length(recording, rate, max_sec))
            pending.append(recording)
        except AudioError as error:
            failed[str(recording.path)] = _without_path(error, recording)
    num_resumed = len(recordings) - len(pending) - len(failed)
    progress(num_resumed + len(failed))
    for indices in audio.batches(lengths, int(batch_sec * rate)):
        batch = [pending[i] for i in indices]
        for row in _run_batch(batch, encoder, out, outputs, settings, failed):
            journal.add(row)
        progress(len(batch))
    report = Report(
        settings=settings,
        rows=sorted((row for row in journal.rows.values() if row.path not in failed), key=lambda row: row.path),
        failed=failed,
        num_resumed=num_resumed,
    )
    write_index(report, out)
    return report


def write_index(report: Report, out: Path) -> None:
    """``index.json`` (settings, totals, one object per recording, failures) and ``index.csv`` (one line each)."""
    files.write_json(
        out / "index.json",
        {
            "format_version": FORMAT_VERSION,
            "settings": asdict(report.settings),
            "totals": report.totals(),
            "recordings": [row.public() for row in report.rows],
            "failed": [{"path": path, "reason": reason} for path, reason in report.failed.items()],
        },
    )
    num_layers = max((row.num_layers for row in report.rows), default=0)
    losses = [f"predicted_loss_{layer}" for layer in range(1, num_layers + 1)]
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["path", "output", "duration_sec", "exit_layer", "num_layers", "seconds", *losses])
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
                *cells,
            ]
        )
    files.write(out / "index.csv", text.getvalue().encode(errors="surrogateescape"))


def _run_batch(
    batch: list[Recording],
    encoder: EarlyExitEncoder,
    out: Path,
    outputs: dict[Path, str],
    settings: Settings,
    failed: dict[str, str],
) -> Iterator[Row]:
    rate, num_layers = encoder.backbone.config.sample_rate, encoder.backbone.config.num_layers
    start = time.perf_counter()
    readable: list[tuple[Recording, Tensor]] = []
    for recording in batch:
        try:
            waveform = audio.read(recording.path, rate)
            _check_span(len(waveform), encoder)
            readable.append((recording, waveform))
        except AudioError as error:
            failed[str(recording.path)] = _without_path(error, recording)
    if not readable:
        return
    result = encoder([waveform for _, waveform in readable])
    states = [kept.cpu() for kept in result.states]  # also waits for a GPU
    seconds = time.perf_counter() - start
    total = sum(len(waveform) for _, waveform in readable)
    for index, (recording, waveform) in enumerate(readable):
        row = Row(
            path=str(recording.path),
            output=outputs[recording.path],
            duration_sec=len(waveform) / rate,
            exit_layer=int(result.exit_layer[index]),
            num_layers=num_layers,
            seconds=seconds * len(waveform) / total,
            scores=_executed_scores(result, index),
            silent=not bool(waveform.any()),
            source=stamp(recording),
        )
        _write_states(states[index], out / row.output, settings, row)
        yield row


def _executed_scores(result: ExitOutput, index: int) -> dict[str, list[float | None]]:
    last = int(result.exit_layer[index])
    return {name: for_json(values[index, :last]) for name, values in result.scores.items()}


def _write_states(states: Tensor, path: Path, settings: Settings, row: Row) -> None:
    states = (states[-1] if settings.layers == "last" else states).to(DTYPES[settings.dtype]).contiguous()
    if settings.format == "npy":
        files.write(path, lambda stream: numpy.save(stream, states.numpy()))
        return
    files.save_tensors({"states": states}, path, {"format_version": FORMAT_VERSION, **asdict(settings), **row.public()})


def _outputs(recordings: Sequence[Recording], format: str) -> dict[Path, str]:
    """Path to output name.

    Raises:
        UsageError: where two recordings share one.
    """
    taken: dict[str, Path] = {}
    for recording in recordings:
        name = Path(recording.name)
        relative = name if not name.is_absolute() and ".." not in name.parts else Path(name.name)
        output = str(relative.with_suffix(f".{format}"))
        if output in taken:
            raise UsageError(
                f"{taken[output]} and {recording.path} would both be written to {output}: give them separate --out"
            )
        taken[output] = recording.path
    return {path: output for output, path in taken.items()}


def _checked_length(recording: Recording, rate: int, max_sec: float) -> int:
    """Samples by the header; a file without a readable one gets `audio.read`'s fuller reason."""
    try:
        length = audio.num_samples(recording.path, rate)
    except AudioError:
        audio.read(recording.path, rate)
        raise
    if length > max_sec * rate:
        raise AudioError(f"lasts {length / rate:.0f} s, more than {max_sec:.0f} s: split it, or raise --max-sec")
    return length


def _check_span(num_samples: int, encoder: EarlyExitEncoder) -> None:
    config = encoder.backbone.config
    if num_samples < config.frame_span:
        milliseconds = 1000 * config.frame_span / config.sample_rate
        raise AudioError(
            f"too short: {num_samples} samples at {config.sample_rate} Hz, "
            f"one frame needs {config.frame_span} ({milliseconds:.0f} ms)"
        )


def _without_path(error: AudioError, recording: Recording) -> str:
    return str(error).removeprefix(f"{recording.path}: ")
