"""Many recordings to features on disk: batched by length, atomic, going on where a stopped run ended."""

from __future__ import annotations

import csv
import io
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, BinaryIO

import numpy
import torch
from torch import Tensor

from daisy import _files, audio
from daisy.audio import Recording
from daisy.encoder import EarlyExitEncoder, ExitOutput
from daisy.errors import AudioError, OutputError, UsageError
from daisy.extraction import windows
from daisy.extraction.journal import DTYPES, FORMAT_VERSION, Journal, Row, Settings, stamp
from daisy.policies.scores import to_json


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
            "mean_exit_layer": sum(row.mean_exit_layer for row in self.rows) / count if count else None,
            "depth": sum(row.mean_exit_layer / row.num_layers for row in self.rows) / count if count else None,
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
    window_sec: float | None = None,
    context_sec: float = 2.0,
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
        batch_sec: seconds of audio in a batch. On CPUs small batches are the fastest.
        max_sec: recordings longer than this are refused, unless there are windows: attention's cost grows with the
            square of the length.
        window_sec: recordings longer than this run in windows of so many seconds, see `daisy.extraction.windows`; their
            exit layer's states only.
        context_sec: of each window, computed on either side and dropped.
        overwrite: begin again where the folder holds another run.
        progress: called with the number of recordings just dealt with.

    Raises:
        OutputError: where the folder cannot be written or holds a run with other settings.
        UsageError: where two recordings would have the same output file, or on an impossible option.
    """
    if not batch_sec > 0 or not max_sec > 0:
        raise UsageError(f"batch_sec and max_sec must be above 0 s, found {batch_sec} and {max_sec}")
    if math.isinf(batch_sec):
        raise UsageError("batch_sec must be a number of seconds, found inf")
    if window_sec is not None and encoder.keep != "last":
        raise UsageError("windows leave at layers of their own: they go with layers last, not all")
    settings = Settings(
        checkpoint=checkpoint,
        policy=encoder.policy.to_config(),
        layers=encoder.keep,
        scores=encoder.score_names,
        score_stride=encoder.score_stride,
        format=format,
        dtype=dtype,
        window_sec=window_sec,
        context_sec=context_sec if window_sec is not None else Settings.context_sec,
        precision=encoder.dtype,
    )
    if window_sec is not None:
        windows.check(window_sec, context_sec, encoder.backbone.config)
    outputs = _outputs(recordings, settings.format)
    journal = Journal(out, settings, overwrite)
    journal.check_outputs(outputs)
    rate = encoder.backbone.config.sample_rate
    hint = (
        "--window SEC with another --out, or raise --max-sec"
        if encoder.keep == "last"
        else "split it, or raise --max-sec"
    )
    failed: dict[str, str] = {}
    pending: list[Recording] = []
    lengths: list[int] = []
    for recording in recordings:
        if journal.has(recording):
            continue
        try:
            lengths.append(_checked_length(recording, rate, math.inf if window_sec else max_sec, hint))
            pending.append(recording)
        except AudioError as error:
            failed[str(recording.path)] = _without_path(error, recording)
    num_resumed = len(recordings) - len(pending) - len(failed)
    progress(num_resumed + len(failed))
    most = int(min(batch_sec, window_sec or batch_sec) * rate)  # so that what needs windows is by itself
    for indices in audio.batch_by_length(lengths, most):
        batch = [pending[i] for i in indices]
        if window_sec is not None and lengths[indices[0]] > window_sec * rate:
            rows = _run_in_windows(batch[0], encoder, out, outputs, settings, failed, batch_sec)
        else:
            rows = _run_batch(batch, encoder, out, outputs, settings, failed)
        for row in rows:
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
    _files.write_json(
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


def _run_in_windows(
    recording: Recording,
    encoder: EarlyExitEncoder,
    out: Path,
    outputs: dict[Path, str],
    settings: Settings,
    failed: dict[str, str],
    batch_sec: float,
) -> Iterator[Row]:
    """One long recording; its states go to the disk window by window."""
    assert settings.window_sec is not None
    config = encoder.backbone.config
    start, exits, silent, scores = time.perf_counter(), [], True, []
    path = out / outputs[recording.path]

    def read(first: int, last: int) -> Tensor:
        nonlocal silent
        waveform = source.read(first, last)
        silent = silent and not bool(waveform.any())
        return waveform

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        source = audio.AudioFile(recording.path, config.sample_rate)
        with tempfile.TemporaryFile(dir=path.parent) as states:
            for piece in windows.run(
                encoder,
                read,
                source.num_samples,
                window_sec=settings.window_sec,
                context_sec=settings.context_sec,
                batch_sec=batch_sec,
            ):
                states.write(piece.states.to("cpu", DTYPES[settings.dtype]).contiguous().numpy().data)
                exits.append(piece.exit_layer)
                scores.append(piece.scores)
            deepest = max(exits)
            row = Row(
                path=str(recording.path),
                output=outputs[recording.path],
                duration_sec=source.num_samples / config.sample_rate,
                exit_layer=deepest,
                num_layers=config.num_layers,
                seconds=time.perf_counter() - start,
                scores={name: to_json(_mean_over(scores, name)[:deepest]) for name in scores[0]},
                window_exits=exits,
                silent=silent,
                source=stamp(recording),
            )
            _write_streamed(states, config.width, path, settings, row)
    except AudioError as error:
        failed[str(recording.path)] = _without_path(error, recording)
        return
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror or error})") from None
    yield row


def _mean_over(scores: list[dict[str, Tensor]], name: str) -> Tensor:
    """(L,) of the windows that executed a layer."""
    return torch.stack([each[name] for each in scores]).nanmean(0)


def _write_streamed(states: IO[bytes], width: int, path: Path, settings: Settings, row: Row) -> None:
    """A file as `_write_states` makes it, from states that lie on the disk."""
    kind = numpy.dtype(settings.dtype)
    shape = (states.tell() // kind.itemsize // width, width)
    states.seek(0)

    def write(stream: BinaryIO) -> None:
        if settings.format == "npy":
            described = {"descr": kind.str, "fortran_order": False, "shape": shape}
            numpy.lib.format.write_array_header_1_0(stream, described)
        else:
            stream.write(_files.tensor_header("states", settings.dtype, shape, _metadata(settings, row)))
        shutil.copyfileobj(states, stream, 2**22)

    _files.write(path, write)


def _executed_scores(result: ExitOutput, index: int) -> dict[str, list[float | None]]:
    last = int(result.exit_layer[index])
    return {name: to_json(values[index, :last]) for name, values in result.scores.items()}


def _write_states(states: Tensor, path: Path, settings: Settings, row: Row) -> None:
    states = (states[-1] if settings.layers == "last" else states).to(DTYPES[settings.dtype]).contiguous()
    if settings.format == "npy":
        _files.write(path, lambda stream: numpy.save(stream, states.numpy()))
        return
    _files.save_tensors({"states": states}, path, _metadata(settings, row))


def _metadata(settings: Settings, row: Row) -> dict:
    return {"format_version": FORMAT_VERSION, **asdict(settings), **row.public()}


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


def _checked_length(recording: Recording, rate: int, max_sec: float, hint: str) -> int:
    """Samples by the header; a file without a readable one gets `audio.read`'s fuller reason."""
    try:
        length = audio.num_samples(recording.path, rate)
    except AudioError:
        audio.read(recording.path, rate)
        raise
    if length > max_sec * rate:
        raise AudioError(f"lasts {length / rate:.0f} s, more than {max_sec:.0f} s: {hint}")
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
