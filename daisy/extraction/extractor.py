"""Many recordings to features on disk: batched by length, atomic, going on where a stopped run ended."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from daisy import audio
from daisy.audio import Recording
from daisy.encoder import EarlyExitEncoder
from daisy.errors import AudioError, Remedy, UsageError
from daisy.extraction import windows
from daisy.extraction.feature_files import StreamedFeatures, name_outputs, write_features
from daisy.extraction.index import ExtractionReport, write_index
from daisy.extraction.journal import Journal, Row, Settings, stamp
from daisy.policies.scores import to_json
from daisy.runtime.exit_output import ExitOutput


class Extractor:
    """Writes one feature file per recording into a folder, then ``index.json`` and ``index.csv``.

    Args:
        encoder: its policy decides the exits, its ``keep`` what is written.
        out: the folder; each file lies at the recording's name, with the format's ending.
        checkpoint: digest of the encoder's checkpoint (`daisy.checkpoints.digest`), which a run that goes on must
            share.
        format: of the files.
        dtype: of the states on disk.
        batch_sec: seconds of audio in a batch. On CPUs small batches are the fastest.
        max_sec: recordings longer than this are refused, unless there are windows: attention's cost grows with the
            square of the length.
        window_sec: recordings longer than this run in windows of so many seconds, see `daisy.extraction.windows`; their
            exit layer's states only.
        context_sec: of each window, computed on either side and dropped.

    Raises:
        UsageError: on an impossible setting.

    Example:
        >>> import daisy, daisy.audio, tempfile
        >>> from daisy.extraction import Extractor
        >>> encoder = daisy.load("daisy-mini").encoder("fixed", layer=3, keep="last")
        >>> digest = daisy.checkpoints.digest("daisy-mini")
        >>> recordings = daisy.audio.find([str(daisy.checkpoints.format.ASSETS / "demo")])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     report = Extractor(encoder, folder, checkpoint=digest).run(recordings[:2])
        >>> len(report.rows), report.totals()["mean_exit_layer"]
        (2, 3.0)
    """

    def __init__(
        self,
        encoder: EarlyExitEncoder,
        out: str | Path,
        *,
        checkpoint: str,
        format: Literal["safetensors", "npy"] = "safetensors",
        dtype: Literal["float32", "float16"] = "float32",
        batch_sec: float = 30.0,
        max_sec: float = 600.0,
        window_sec: float | None = None,
        context_sec: float = Settings.context_sec,
    ):
        _check_seconds(batch_sec, max_sec)
        if window_sec is not None:
            if encoder.keep != "last":
                raise UsageError("windows leave at layers of their own: they go with layers last, not all")
            windows.to_frames(window_sec, context_sec, encoder.backbone.config)
        self.encoder, self.out = encoder, Path(out)
        self.batch_sec, self.max_sec, self.window_sec = batch_sec, max_sec, window_sec
        self.checkpoint, self.format, self.dtype = checkpoint, format, dtype
        self.context_sec = Settings.context_sec if window_sec is None else context_sec
        self.settings = self._make_settings()
        self.outputs: dict[Path, str] = {}
        self.failed: dict[str, AudioError] = {}

    def run(
        self,
        recordings: Sequence[Recording],
        *,
        overwrite: bool = False,
        progress: Callable[[int], None] = lambda count: None,
    ) -> ExtractionReport:
        """Extract what is not finished already.

        Unreadable recordings do not stop the run; they are in the report, and tried again by the next run.

        Args:
            recordings: what to encode.
            overwrite: begin again where the folder holds another run.
            progress: called with the number of recordings just dealt with.

        Raises:
            OutputError: where the folder cannot be written or holds a run with other settings.
            UsageError: where two recordings would have the same output file.
        """
        self.settings = self._make_settings()
        self.outputs = name_outputs(recordings, self.settings.format)
        journal = Journal(self.out, self.settings, overwrite)
        journal.check_outputs(self.outputs)
        self.failed = {}
        unfinished = [recording for recording in recordings if not journal.has(recording)]
        pending, lengths = self._measure(unfinished)
        progress(len(recordings) - len(pending))
        for indices in audio.batch_by_length(lengths, self._max_batch_samples()):
            batch = [pending[index] for index in indices]
            for row in self._encode(batch, lengths[indices[0]]):
                journal.add(row)
            progress(len(batch))
        report = ExtractionReport(
            settings=self.settings,
            rows=sorted((r for r in journal.rows.values() if r.path not in self.failed), key=lambda row: row.path),
            failed=self.failed,
            num_resumed=len(recordings) - len(unfinished),
        )
        write_index(report, self.out)
        return report

    def _make_settings(self) -> Settings:
        """With the encoder's policy as it is now."""
        return Settings(
            checkpoint=self.checkpoint,
            policy=self.encoder.policy.to_config(),
            layers=self.encoder.keep,
            scores=self.encoder.score_names,
            score_stride=self.encoder.score_stride,
            format=self.format,
            dtype=self.dtype,
            window_sec=self.window_sec,
            context_sec=self.context_sec,
            precision=self.encoder.dtype,
        )

    def _measure(self, recordings: Sequence[Recording]) -> tuple[list[Recording], list[int]]:
        """The recordings that can be encoded, by their headers, and their numbers of samples."""
        pending, lengths = [], []
        for recording in recordings:
            try:
                lengths.append(self._read_length(recording))
                pending.append(recording)
            except AudioError as error:
                self._fail(recording, error)
        return pending, lengths

    def _read_length(self, recording: Recording) -> int:
        """Samples by the header; a file without a readable one gets `audio.read`'s fuller reason."""
        rate = self.encoder.backbone.config.sample_rate
        try:
            length = audio.num_samples(recording.path, rate)
        except AudioError:
            audio.read(recording.path, rate)
            raise
        if self.window_sec is None and length > self.max_sec * rate:
            remedy: Remedy = "window" if self.encoder.keep == "last" else "max_sec"
            raise AudioError(f"lasts {length / rate:.0f} s, more than {self.max_sec:.0f} s", remedy=remedy)
        return length

    def _max_batch_samples(self) -> int:
        """A batch's samples; what needs windows is by itself."""
        seconds = min(self.batch_sec, self.window_sec or self.batch_sec)
        return int(seconds * self.encoder.backbone.config.sample_rate)

    def _fail(self, recording: Recording, error: AudioError) -> None:
        message = error.message.removeprefix(f"{recording.path}: ")
        self.failed[str(recording.path)] = AudioError(message, remedy=error.remedy, path=error.path)

    def _encode(self, batch: list[Recording], longest: int) -> Iterator[Row]:
        """Encode a batch and write its files, one after the other."""
        if self.window_sec is not None and longest > self.window_sec * self.encoder.backbone.config.sample_rate:
            try:
                yield self._encode_in_windows(batch[0], self.window_sec)
            except AudioError as error:
                self._fail(batch[0], error)
        else:
            yield from self._encode_batch(batch)

    def _encode_batch(self, batch: list[Recording]) -> Iterator[Row]:
        start = time.perf_counter()
        readable: list[tuple[Recording, Tensor]] = []
        for recording in batch:
            try:
                readable.append((recording, self._read(recording)))
            except AudioError as error:
                self._fail(recording, error)
        if not readable:
            return
        result = self.encoder([waveform for _, waveform in readable])
        states = [kept.cpu() for kept in result.states]  # also waits for a GPU
        seconds = time.perf_counter() - start
        total = sum(len(waveform) for _, waveform in readable)
        for index, (recording, waveform) in enumerate(readable):
            row = self._make_row(
                recording,
                num_samples=len(waveform),
                exit_layer=int(result.exit_layer[index]),
                seconds=seconds * len(waveform) / total,
                scores=_executed_scores(result, index),
                silent=not bool(waveform.any()),
            )
            write_features(states[index], self.out / row.output, self.settings, row)
            yield row

    def _read(self, recording: Recording) -> Tensor:
        config = self.encoder.backbone.config
        waveform = audio.read(recording.path, config.sample_rate)
        if len(waveform) < config.frame_span:
            milliseconds = 1000 * config.frame_span / config.sample_rate
            raise AudioError(
                f"too short: {len(waveform)} samples at {config.sample_rate} Hz, "
                f"one frame needs {config.frame_span} ({milliseconds:.0f} ms)"
            )
        return waveform

    def _encode_in_windows(self, recording: Recording, window_sec: float) -> Row:
        """Encode one long recording, whose states go to the disk window by window."""
        start, config = time.perf_counter(), self.encoder.backbone.config
        source = audio.AudioFile(recording.path, config.sample_rate)
        silence = _SilenceWatch(source)
        exits: list[int] = []
        scores: list[dict[str, Tensor]] = []
        with StreamedFeatures(self.out / self.outputs[recording.path], self.settings, config.width) as features:
            for piece in windows.run(
                self.encoder,
                silence.read,
                source.num_samples,
                window_sec=window_sec,
                context_sec=self.settings.context_sec,
                batch_sec=self.batch_sec,
            ):
                features.append(piece.states)
                exits.append(piece.exit_layer)
                scores.append(piece.scores)
            row = self._make_row(
                recording,
                num_samples=source.num_samples,
                exit_layer=max(exits),
                seconds=time.perf_counter() - start,
                scores={name: to_json(_mean_over_windows(scores, name)[: max(exits)]) for name in scores[0]},
                silent=silence.is_silent,
                window_exits=exits,
            )
            features.finish(row)
        return row

    def _make_row(
        self,
        recording: Recording,
        *,
        num_samples: int,
        exit_layer: int,
        seconds: float,
        scores: dict[str, list[float | None]],
        silent: bool,
        window_exits: Sequence[int] = (),
    ) -> Row:
        config = self.encoder.backbone.config
        return Row(
            path=str(recording.path),
            output=self.outputs[recording.path],
            duration_sec=num_samples / config.sample_rate,
            exit_layer=exit_layer,
            num_layers=config.num_layers,
            seconds=seconds,
            scores=scores,
            window_exits=list(window_exits),
            silent=silent,
            source=stamp(recording),
        )


class _SilenceWatch:
    """Reads a file, and tells whether all that was read was silent."""

    def __init__(self, source: audio.AudioFile):
        self._source, self.is_silent = source, True

    def read(self, start: int, stop: int) -> Tensor:
        waveform = self._source.read(start, stop)
        self.is_silent = self.is_silent and not bool(waveform.any())
        return waveform


def _check_seconds(batch_sec: float, max_sec: float) -> None:
    if not batch_sec > 0 or not max_sec > 0:
        raise UsageError(f"batch_sec and max_sec must be above 0 s, found {batch_sec} and {max_sec}")
    if math.isinf(batch_sec):
        raise UsageError("batch_sec must be a number of seconds, found inf")


def _mean_over_windows(scores: list[dict[str, Tensor]], name: str) -> Tensor:
    """(L,) means over the windows that executed a layer."""
    return torch.stack([of_window[name] for of_window in scores]).nanmean(0)


def _executed_scores(result: ExitOutput, index: int) -> dict[str, list[float | None]]:
    last = int(result.exit_layer[index])
    return {name: to_json(values[index, :last]) for name, values in result.scores.items()}
