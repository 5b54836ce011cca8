"""Recordings to full runs under every condition: the table that policies are calibrated on and judged from."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from daisy import audio
from daisy.audio import Recording, mixing
from daisy.audio.conditions import CLEAN, GENERATED, RESERVED, Condition, apply_condition
from daisy.calibration import traces, tracing
from daisy.calibration.traces import Traces
from daisy.checkpoints import Model
from daisy.errors import AudioError, UsageError, unknown_name
from daisy.models.lengths import MIN_SAMPLES


@dataclass(frozen=True, kw_only=True)
class Speech:
    """Recordings in memory."""

    waveforms: list[Tensor]
    names: list[str]
    groups: list[str]
    """The speaker of each."""
    failed: dict[str, str]
    """Path to the reason."""

    def digest(self) -> str:
        """Compute the SHA-256 of all samples in order."""
        state = hashlib.sha256()
        for waveform in self.waveforms:
            state.update(waveform.numpy().tobytes())
        return state.hexdigest()


def read_speech(
    recordings: Sequence[Recording],
    speakers: Path | None,
    root: Path,
    sample_rate: int,
    min_samples: int = MIN_SAMPLES,
) -> Speech:
    """Read recordings; unreadable ones are left out and listed.

    Args:
        recordings: what to read.
        speakers: CSV file of path and speaker; None: each recording is its own.
        root: what the paths there are relative to.
        sample_rate: of the backbone.
        min_samples: that one frame of the backbone sees.

    Raises:
        UsageError: where the speakers are not all given, or nothing can be read.
    """
    names = audio.assign_speakers(recordings, speakers, root)
    speech = Speech(waveforms=[], names=[], groups=[], failed={})
    for recording, speaker in zip(recordings, names, strict=True):
        try:
            waveform = audio.read(recording.path, sample_rate)
            if len(waveform) < min_samples:
                raise AudioError(f"{recording.path}: too short for one frame")
        except AudioError as error:
            speech.failed[str(recording.path)] = str(error)
            continue
        speech.waveforms.append(waveform)
        speech.names.append(str(recording.path))
        speech.groups.append(speaker)
    if not speech.waveforms:
        raise UsageError("no recording could be read: " + next(iter(speech.failed.values()), "none was given"))
    return speech


def read_noises(given: Iterable[str], sample_rate: int) -> tuple[list[str], dict[str, mixing.NoiseBank]]:
    """Read kinds of noise: their names, and the recordings of those that are folders, files or manifests.

    Args:
        given: "white", "pink", "babble", or where recorded noise lies; its kind is the folder's or file's name.
        sample_rate: of the backbone.

    Raises:
        UsageError, AudioError: where there is none, or where two kinds have one name.
    """
    kinds, banks = [], {}
    for text in given:
        if text in GENERATED:
            kinds.append(text)
            continue
        kind = Path(text).stem
        if kind in (*kinds, *RESERVED):
            raise UsageError(f"noise {text}: {kind!r} is the name of another condition; rename the folder")
        if not any(character in text for character in "/.*") and not Path(text).exists():
            raise UsageError(unknown_name("noise", text, GENERATED) + ", or a folder of recordings")
        banks[kind] = mixing.NoiseBank([audio.read(recording.path, sample_rate) for recording in audio.find([text])])
        kinds.append(kind)
    return kinds, banks


def run_conditions(
    model: Model,
    speech: Speech,
    conditions: Sequence[Condition],
    recorded: Mapping[str, mixing.NoiseBank],
    *,
    scores: Iterable[str] | None = None,
    score_stride: int = 1,
    seed: int = 0,
    progress: Callable[[int], None] = lambda count: None,
) -> Traces:
    """Run the full model on every utterance and condition; losses against the clean version's units too.

    Args:
        model: with exit heads.
        speech: clean recordings.
        conditions: what the recordings are heard through.
        recorded: noise by kind.
        scores: which to compute; all where None.
        score_stride: heads look at every ``score_stride``-th frame.
        seed: of excerpts, talkers and rooms.
        progress: called with the number of runs just done; those of clean speech come first, asked for or not.
    """
    trace = functools.partial(
        tracing.trace,
        model,
        names=speech.names,
        groups=speech.groups,
        scores=None if scores is None else list(scores),
        score_stride=score_stride,
        progress=progress,
    )
    clean, reference = trace(speech.waveforms)
    parts = [clean] if CLEAN in conditions else []
    for condition in conditions:
        if condition != CLEAN:
            rate = model.backbone.config.sample_rate
            waveforms = apply_condition(condition, speech.waveforms, recorded, seed, rate)
            parts.append(trace(waveforms, condition=condition.name, reference=reference or None)[0])
    return traces.join_traces(parts)
