"""Encode recordings and write their files: several together, or one long recording in windows."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from daisy import audio
from daisy.audio import Recording
from daisy.encoder import EarlyExitEncoder
from daisy.errors import AudioError
from daisy.extraction import windows
from daisy.extraction.feature_files import StreamedFeatures, write_features
from daisy.extraction.journal import Row, Settings, Stamp, stamp
from daisy.models.kinds import AnyBackboneConfig
from daisy.policies.scores import list_by_layer
from daisy.runtime.exit_output import ExitOutput
from daisy.runtime.memory import run_if_it_fits

Outcome = tuple[Recording, Row | AudioError]
"""A recording with its row, or with the error that left it without one."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Recordings that are encoded together."""

    recordings: Sequence[Recording]
    """A recording that runs in windows is in a batch of its own."""
    outputs: Sequence[str]
    """File of each recording, a path relative to the run's folder; empty if recordings have no files."""
    num_samples: int
    """Number of samples of the longest recording."""


class Gathering(Protocol):
    """Collects the output of a long recording's windows."""

    def append(self, states: Tensor, layer: int) -> None:
        """Add the next states (T, D), from ``layer``."""

    def finish(self, row: Row) -> Row:
        """Store the collected states, and return the row to note for the recording."""


class BatchEncoder:
    """Encode batches of recordings and write a feature file for each; subclasses keep something else.

    Args:
        encoder: encoder to run.
        out: folder to write to.
        settings: settings of the run.
        batch_sec: seconds of audio in windows that run together.
    """

    def __init__(self, encoder: EarlyExitEncoder, out: Path, settings: Settings, batch_sec: float):
        self.encoder, self.out, self.settings, self.batch_sec = encoder, out, settings, batch_sec
        self.outputs: Mapping[str, str] = {}
        """For the current batch: a recording's label to its file's path relative to the folder, or to ""."""
        self.stamps: Mapping[str, Stamp] = {}
        """For the current batch, read before its audio: a file that changes later counts as another recording."""

    def encode(self, batch: Batch) -> Iterator[Outcome]:
        """Encode recordings together and write their files, one after the other.

        Yields:
            Each recording with its row, or with the error that left it without one.

        Raises:
            OutputError: if a file cannot be written.
        """
        recordings, window_sec = batch.recordings, self.settings.window_sec
        self.outputs = {one.label: output for one, output in zip(recordings, batch.outputs, strict=True)}
        self.stamps = {one.label: stamp(one) for one in recordings}
        if window_sec is not None and batch.num_samples > window_sec * self.encoder.backbone.config.sample_rate:
            try:
                yield recordings[0], self._encode_in_windows(recordings[0], window_sec)
            except AudioError as error:
                yield recordings[0], error
        else:
            yield from self._encode_together(recordings)

    def _encode_together(self, batch: Sequence[Recording]) -> Iterator[Outcome]:
        readable: list[tuple[Recording, Tensor]] = []
        for recording in batch:
            try:
                readable.append((recording, read_for(self.encoder.backbone.config, recording)))
            except AudioError as error:
                yield recording, error
        if readable:
            yield from self._encode_waveforms(readable)

    def _encode_waveforms(self, readable: Sequence[tuple[Recording, Tensor]]) -> Iterator[Outcome]:
        """Encode waveforms together; halve the batch if it does not fit into memory."""
        start = time.perf_counter()
        result = run_if_it_fits(self.encoder, [waveform for _, waveform in readable])
        if result is None:
            if len(readable) == 1:
                yield readable[0][0], AudioError("it does not fit into memory", remedy="in_windows")
                return
            middle = len(readable) // 2
            yield from self._encode_waveforms(readable[:middle])
            yield from self._encode_waveforms(readable[middle:])
            return
        kept = self.take(result)
        seconds = time.perf_counter() - start
        total = sum(len(waveform) for _, waveform in readable)
        for index, (recording, waveform) in enumerate(readable):
            row = self._make_row(
                recording,
                num_samples=len(waveform),
                exit_layer=int(result.exit_layer[index]),
                seconds=seconds * len(waveform) / total,
                scores=executed_scores(result, index),
                silent=not bool(waveform.any()),
            )
            try:
                yield recording, self.finish(row, kept[index])
            except AudioError as error:
                yield recording, error

    def take(self, result: ExitOutput) -> Sequence[Any]:
        """Take what is kept of each utterance from the encoder's output; this waits for a GPU."""
        return [states.cpu() for states in result.states]

    def finish(self, row: Row, kept: Any) -> Row:
        """Store what was kept of a recording, and return the row to note for it.

        Raises:
            AudioError: if it cannot be stored.
            OutputError: if a file cannot be written.
        """
        write_features(kept, self.out / row.output, self.settings, row)
        return row

    def gather(self, recording: Recording) -> AbstractContextManager[Gathering]:
        """Open a collector of a long recording's states, window by window."""
        width = self.encoder.backbone.config.width
        return StreamedFeatures(self.out / self.outputs[recording.label], self.settings, width)

    def _encode_in_windows(self, recording: Recording, window_sec: float) -> Row:
        """Encode one long recording; its states go to disk window by window."""
        start, config = time.perf_counter(), self.encoder.backbone.config
        source = audio.AudioFile(recording.path, config.sample_rate, recording.channel)
        silence = SilenceWatch(source)
        exits: list[int] = []
        scores: list[dict[str, Tensor]] = []
        with self.gather(recording) as gathering:
            for piece in windows.run(
                self.encoder,
                silence.read,
                source.num_samples,
                window_sec=window_sec,
                context_sec=self.settings.context_sec,
                batch_sec=self.batch_sec,
            ):
                gathering.append(piece.states, piece.exit_layer)
                exits.append(piece.exit_layer)
                scores.append(piece.scores)
            row = self._make_row(
                recording,
                num_samples=source.num_samples,
                exit_layer=max(exits),
                seconds=time.perf_counter() - start,
                scores={
                    name: list_by_layer(_mean_over_windows(scores, name), self.encoder.exits, max(exits))
                    for name in scores[0]
                },
                silent=silence.is_silent,
                window_exits=exits,
            )
            return gathering.finish(row)

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
            channel=recording.channel,
            output=self.outputs[recording.label],
            duration_sec=num_samples / config.sample_rate,
            exit_layer=exit_layer,
            num_layers=config.num_layers,
            seconds=seconds,
            scores=scores,
            window_exits=list(window_exits),
            silent=silent,
            source=self.stamps[recording.label],
        )


def read_for(config: AnyBackboneConfig, recording: Recording) -> Tensor:
    """Read a recording on which a network runs as a whole, (N,).

    Args:
        config: configuration of the network.
        recording: recording to read.

    Raises:
        AudioError: if it cannot be read, or is too short or too long.
    """
    return audio.read_recording(
        recording,
        config.sample_rate,
        min_samples=config.frame_span,
        max_samples=config.max_samples,
        remedy="in_windows",
    )


class SilenceWatch:
    """Read a file, and remember whether everything read so far was silent."""

    def __init__(self, source: audio.AudioFile):
        self._source, self.is_silent = source, True

    def read(self, start: int, stop: int) -> Tensor:
        waveform = self._source.read(start, stop)
        self.is_silent = self.is_silent and not bool(waveform.any())
        return waveform


def _mean_over_windows(scores: list[dict[str, Tensor]], name: str) -> Tensor:
    """Average each exit's score (E,) over the windows that reached the exit."""
    return torch.stack([of_window[name] for of_window in scores]).nanmean(0)


def executed_scores(result: ExitOutput, index: int) -> dict[str, list[float | None]]:
    """Return an utterance's scores as lists over layers 1 to its exit layer; None for layers without an exit."""
    last = int(result.exit_layer[index])
    return {name: list_by_layer(values[index], result.exits, last) for name, values in result.scores.items()}
