"""Recognise many recordings: several of similar length at once, or a long one in windows."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence

from torch import Tensor

from daisy import audio
from daisy.audio import Recording
from daisy.audio.recordings import drop_path
from daisy.errors import AudioError, UsageError
from daisy.extraction import windows
from daisy.extraction.batch_encoder import SilenceWatch, read_for
from daisy.extraction.journal import Stamp, stamp
from daisy.recognition.long_audio import transcribe_in_windows
from daisy.recognition.recogniser import Recogniser, Transcript
from daisy.recognition.transcript_rows import TranscriptRow
from daisy.runtime.memory import run_if_it_fits

BATCH_SEC = 30.0
CONTEXT_SEC = 2.0
Outcome = tuple[Recording, TranscriptRow | AudioError]


def transcribe(
    recogniser: Recogniser,
    recordings: Sequence[Recording],
    batch_sec: float = BATCH_SEC,
    *,
    window_sec: float | None = None,
    context_sec: float = CONTEXT_SEC,
) -> Iterator[Outcome]:
    """Recognise recordings.

    Args:
        recogniser: the recogniser to run.
        recordings: recordings in any order.
        batch_sec: seconds of audio in a batch; a longer recording is run by itself.
        window_sec: longer recordings run in windows of this many seconds, see `daisy.recognition.long_audio`; None: in
            one run, where memory and time grow with the square of the length.
        context_sec: half of the overlap of two windows, in seconds.

    Yields:
        Each recording with its text, or the error; in the order in which they are finished.

    Raises:
        UsageError: on invalid windows or batches, or windows for attention decoders.
    """
    config = recogniser.model.backbone.config
    if not 0 < batch_sec < math.inf:
        raise UsageError(f"batch_sec must be above 0 s and finite, found {batch_sec}")
    if window_sec is not None:
        if recogniser.reads_attention:
            raise UsageError("attention decoders read a recording as a whole, not in windows")
        windows.to_frames(window_sec, context_sec, config)
    readable, lengths = [], []
    for recording in recordings:
        try:
            lengths.append(audio.measure_recording(recording, config.sample_rate))
        except AudioError as error:
            yield recording, drop_path(recording, error)
        else:
            readable.append(recording)
    longest = min(batch_sec, window_sec or batch_sec)  # recordings that need windows run by themselves
    for indices in audio.batch_by_length(lengths, int(longest * config.sample_rate)):
        batch = [readable[index] for index in indices]
        if window_sec is not None and lengths[indices[0]] > window_sec * config.sample_rate:
            yield batch[0], _transcribe_long(recogniser, batch[0], window_sec, context_sec, batch_sec)
        else:
            yield from _transcribe_batch(recogniser, batch)


def _transcribe_batch(recogniser: Recogniser, batch: Sequence[Recording]) -> Iterator[Outcome]:
    readable: list[tuple[Recording, Stamp, Tensor]] = []
    for recording in batch:
        source = stamp(recording)  # before it is read: if the file changes meanwhile, it is another recording
        try:
            readable.append((recording, source, read_for(recogniser.model.backbone.config, recording)))
        except AudioError as error:
            yield recording, drop_path(recording, error)
    if readable:
        yield from _transcribe_waveforms(recogniser, readable)


def _transcribe_waveforms(
    recogniser: Recogniser, readable: Sequence[tuple[Recording, Stamp, Tensor]]
) -> Iterator[Outcome]:
    """Recognise the waveforms; halve the batch where it does not fit into memory."""
    start = time.perf_counter()
    transcripts = run_if_it_fits(recogniser, [waveform for _, _, waveform in readable])
    if transcripts is None:
        if len(readable) == 1:
            yield readable[0][0], AudioError("it does not fit into memory", remedy="in_windows")
            return
        middle = len(readable) // 2
        yield from _transcribe_waveforms(recogniser, readable[:middle])
        yield from _transcribe_waveforms(recogniser, readable[middle:])
        return
    seconds = time.perf_counter() - start
    total = sum(len(waveform) for _, _, waveform in readable)
    for (recording, source, waveform), transcript in zip(readable, transcripts, strict=True):
        yield (
            recording,
            _make_row(
                recogniser,
                recording,
                transcript,
                source=source,
                num_samples=len(waveform),
                seconds=seconds * len(waveform) / total,
                silent=not bool(waveform.any()),
            ),
        )


def _transcribe_long(
    recogniser: Recogniser, recording: Recording, window_sec: float, context_sec: float, batch_sec: float
) -> TranscriptRow | AudioError:
    start, source = time.perf_counter(), stamp(recording)
    try:
        file = audio.AudioFile(recording.path, recogniser.model.backbone.config.sample_rate, recording.channel)
        silence = SilenceWatch(file)
        transcript = transcribe_in_windows(
            recogniser,
            silence.read,
            file.num_samples,
            window_sec=window_sec,
            context_sec=context_sec,
            batch_sec=batch_sec,
        )
    except AudioError as error:
        return drop_path(recording, error)
    return _make_row(
        recogniser,
        recording,
        transcript,
        source=source,
        num_samples=file.num_samples,
        seconds=time.perf_counter() - start,
        silent=silence.is_silent,
    )


def _make_row(
    recogniser: Recogniser,
    recording: Recording,
    transcript: Transcript,
    *,
    source: Stamp,
    num_samples: int,
    seconds: float,
    silent: bool,
) -> TranscriptRow:
    return TranscriptRow(
        path=str(recording.path),
        channel=recording.channel,
        output="",
        duration_sec=num_samples / recogniser.model.backbone.config.sample_rate,
        exit_layer=transcript.exit_layer,
        num_layers=transcript.num_layers,
        seconds=seconds,
        scores=transcript.scores,
        window_exits=transcript.window_exits if len(transcript.window_exits) > 1 else [],
        silent=silent,
        source=source,
        text=transcript.text,
        confidence=transcript.confidence,
        words=transcript.words,
    )
