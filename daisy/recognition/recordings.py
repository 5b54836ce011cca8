"""Many recordings to text, in batches of similar length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from daisy import audio
from daisy.audio import Recording
from daisy.errors import AudioError
from daisy.recognition.recogniser import Recogniser, Transcript

BATCH_SEC = 30.0


def transcribe(
    recogniser: Recogniser, recordings: Sequence[Recording], batch_sec: float = BATCH_SEC
) -> Iterator[tuple[Recording, Transcript | AudioError]]:
    """Recognise recordings.

    Args:
        recogniser: what runs.
        recordings: in any order.
        batch_sec: seconds of audio in a batch; a longer recording is by itself.

    Yields:
        Each recording and its transcript, or why there is none; in the order in which they come out.
    """
    sample_rate = recogniser.model.backbone.config.sample_rate
    readable, lengths = [], []
    for recording in recordings:
        try:
            lengths.append(audio.num_samples(recording.path, sample_rate))
        except AudioError as error:
            yield recording, _without_path(recording, error)
        else:
            readable.append(recording)
    for indices in audio.batch_by_length(lengths, int(batch_sec * sample_rate)):
        yield from _transcribe_batch(recogniser, [readable[index] for index in indices])


def _transcribe_batch(
    recogniser: Recogniser, batch: Sequence[Recording]
) -> Iterator[tuple[Recording, Transcript | AudioError]]:
    waveforms: list[tuple[Recording, Tensor]] = []
    for recording in batch:
        try:
            waveforms.append((recording, read(recogniser, recording)))
        except AudioError as error:
            yield recording, _without_path(recording, error)
    if waveforms:
        transcripts = recogniser([waveform for _, waveform in waveforms])
        for (recording, _), transcript in zip(waveforms, transcripts, strict=True):
            yield recording, transcript


def _without_path(recording: Recording, error: AudioError) -> AudioError:
    """The reason alone: who reports it names the recording."""
    return AudioError(error.message.removeprefix(f"{recording.path}: "), remedy=error.remedy, path=error.path)


def read(recogniser: Recogniser, recording: Recording) -> Tensor:
    """Read a recording at the recogniser's rate, (N,).

    Raises:
        AudioError: where it cannot be read, or is shorter than one frame.
    """
    config = recogniser.model.backbone.config
    waveform = audio.read(recording.path, config.sample_rate, recording.channel)
    if len(waveform) < config.frame_span:
        raise AudioError(
            f"too short: {len(waveform)} samples at {config.sample_rate} Hz, one frame needs {config.frame_span} "
            f"({1000 * config.frame_span / config.sample_rate:.0f} ms)"
        )
    return waveform
