"""Make full runs of recordings under every condition: the table for calibrating and evaluating policies."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from daisy import audio
from daisy.audio import Recording, mixing
from daisy.audio.conditions import CLEAN, GENERATED, RESERVED, Condition, apply_condition
from daisy.calibration import traces, tracing
from daisy.calibration.kept_runs import KeptRuns
from daisy.calibration.text_tracing import TextTask, trace_texts
from daisy.calibration.traces import Traces
from daisy.checkpoints import Model
from daisy.errors import AudioError, UsageError, unknown_name
from daisy.models.lengths import MIN_SAMPLES
from daisy.version import __version__


@dataclass(frozen=True, kw_only=True)
class Speech:
    """Recordings in memory."""

    waveforms: list[Tensor]
    names: list[str]
    groups: list[str]
    """Speaker of each recording."""
    failed: dict[str, str]
    """Reason by path."""

    @functools.cached_property
    def _digest(self) -> str:
        state = hashlib.sha256()
        for waveform in self.waveforms:
            state.update(waveform.numpy().tobytes())
        return state.hexdigest()

    def digest(self) -> str:
        """Compute the SHA-256 of all samples in order."""
        return self._digest


@dataclass(frozen=True, kw_only=True)
class Noises:
    """Kinds of noise, and the recordings of the recorded kinds."""

    kinds: list[str]
    recorded: dict[str, mixing.NoiseBank]
    failed: dict[str, str]
    """Reason why a recording is left out, by its path."""

    def count(self) -> int:
        """Count the recordings."""
        return sum(len(bank.recordings) for bank in self.recorded.values())


def read_speech(
    recordings: Sequence[Recording],
    speakers: Path | None,
    root: Path,
    sample_rate: int,
    min_samples: int = MIN_SAMPLES,
    max_samples: int | None = None,
    *,
    strict: bool = False,
) -> Speech:
    """Read recordings; unreadable ones are left out and listed.

    Args:
        recordings: recordings to read.
        speakers: CSV file of path and speaker; None: each recording has its own speaker.
        root: folder that the paths there are relative to.
        sample_rate: sample rate of the backbone in Hz.
        min_samples: samples that one frame of the backbone sees.
        max_samples: samples that the backbone takes at once; None: any number.
        strict: refuse the first unreadable recording, and leave none out.

    Raises:
        UsageError: where a recording has no speaker in the file, or no recording can be read.
        AudioError: where one cannot be read, if ``strict``.
    """
    names = audio.assign_speakers(recordings, speakers, root)
    speech = Speech(waveforms=[], names=[], groups=[], failed={})
    for recording, speaker in zip(recordings, names, strict=True):
        try:
            waveform = audio.read_recording(recording, sample_rate, min_samples=min_samples, max_samples=max_samples)
        except AudioError as error:
            if strict:
                raise
            speech.failed[recording.label] = str(error)
            continue
        speech.waveforms.append(waveform)
        speech.names.append(recording.label)
        speech.groups.append(speaker)
    if not speech.waveforms:
        raise UsageError("no recording could be read: " + next(iter(speech.failed.values()), "none was given"))
    return speech


def read_noises(given: Iterable[str], sample_rate: int, *, strict: bool = False) -> Noises:
    """Read kinds of noise; recordings that cannot be read are left out and listed.

    Args:
        given: "white", "pink", "babble", or paths of recorded noise; its kind is the name of the folder or file.
        sample_rate: sample rate of the backbone in Hz.
        strict: refuse the first unreadable recording, and leave none out.

    Raises:
        UsageError: where a kind has no readable recording, or two kinds have one name.
        AudioError: where one cannot be read, if ``strict``.
    """
    noises = Noises(kinds=[], recorded={}, failed={})
    for text in given:
        if text in noises.kinds:
            raise UsageError(f"noise {text} is given twice")
        if text in GENERATED:
            noises.kinds.append(text)
            continue
        kind = Path(text).stem
        if kind in (*noises.kinds, *RESERVED):
            raise UsageError(f"noise {text}: {kind!r} is the name of another condition; rename the folder")
        if not any(character in text for character in "/.*") and not Path(text).exists():
            raise UsageError(unknown_name("noise", text, GENERATED) + ", or a folder of recordings")
        noises.recorded[kind] = _read_bank(text, sample_rate, noises.failed, strict)
        noises.kinds.append(kind)
    return noises


def _read_bank(text: str, sample_rate: int, failed: dict[str, str], strict: bool) -> mixing.NoiseBank:
    """Read one kind of noise, and record in ``failed`` what cannot be read."""
    waveforms, reasons = [], {}
    for recording in audio.find([text]):
        try:
            waveforms.append(audio.read(recording.path, sample_rate))
        except AudioError as error:
            if strict:
                raise
            reasons[str(recording.path)] = str(error)
    if not waveforms:
        raise UsageError(f"noise {text}: no recording could be read: {next(iter(reasons.values()))}")
    failed |= reasons
    return mixing.NoiseBank(waveforms)


def open_kept_runs(
    path: str | Path,
    checkpoint: str,
    model: Model,
    speech: Speech,
    *,
    scores: Iterable[str] | None,
    score_stride: int,
    task: TextTask | None = None,
) -> KeptRuns:
    """Describe the file that keeps the full runs of recordings, and the settings that determine them.

    Args:
        path: path of the file.
        checkpoint: digest of the model's checkpoint (`daisy.checkpoints.digest`).
        model: model that runs.
        speech: clean recordings.
        scores: scores to compute; None: all.
        score_stride: stride of the frames that the heads look at.
        task: task of a recogniser's runs; the references do not affect the runs.

    Returns:
        The file for `run_conditions`, which is to be entered as a context manager.
    """
    lengths = json.dumps([len(waveform) for waveform in speech.waveforms])
    settings = {
        "daisy": __version__,
        "checkpoint": checkpoint,
        "recordings": hashlib.sha256(f"{speech.digest()} {lengths}".encode()).hexdigest(),
        "scores": None if scores is None else sorted(scores),
        "score_stride": score_stride,
        "losses": list(tracing.LOSSES),
        "full_model": "prediction head" if model.final_head is not None else "last exit head",
        "device": model.device.type,
    }
    if task is not None:
        settings |= {
            "texts": True,
            "unit_scores": task.with_units,
            "scores": None if task.scores is None else sorted(task.scores),
        }
    return KeptRuns(path, settings)


def count_kept(kept: KeptRuns, batches: Sequence[Sequence[int]], kept_as: str) -> int:
    """Count the runs of a condition that are kept."""
    return sum(len(indices) for indices in batches if kept.get(kept_as, indices) is not None)


def run_conditions(
    model: Model,
    speech: Speech,
    conditions: Sequence[Condition],
    recorded: Mapping[str, mixing.NoiseBank],
    *,
    scores: Iterable[str] | None = None,
    score_stride: int = 1,
    seed: int = 0,
    batch_sec: float = tracing.BATCH_SEC,
    task: TextTask | None = None,
    kept: KeptRuns | None = None,
    progress: Callable[[int], None] = lambda count: None,
) -> Traces:
    """Run the full model on every utterance and condition; losses also compare with the clean version's units or text.

    Args:
        model: model with exit heads.
        speech: clean recordings.
        conditions: conditions that the recordings are played under.
        recorded: recorded noise by kind.
        scores: scores to compute; None: all.
        score_stride: heads look at every ``score_stride``-th frame.
        seed: seed of excerpts, talkers and rooms.
        batch_sec: seconds of audio in a batch.
        task: task for running a recogniser and comparing texts (`daisy.calibration.text_tracing`); None: compare units.
        kept: file that keeps runs on the disk as they are made (`open_kept_runs`); runs found there are not made again.
        progress: called with the number of runs just done: first all kept runs, then those of clean speech, which are
            made whether asked for or not.
    """
    # It traces units or texts; what it returns for clean versions is the reference of the other conditions.
    trace_task: Callable[..., tuple[Traces, list[Any]]] = (
        functools.partial(tracing.trace, scores=None if scores is None else list(scores))
        if task is None
        else functools.partial(trace_texts, task=task)
    )
    trace = functools.partial(
        trace_task,
        model,
        names=speech.names,
        groups=speech.groups,
        score_stride=score_stride,
        batch_sec=batch_sec,
        kept=kept,
        progress=progress,
    )
    batches = tracing.make_batches(speech.waveforms, model, batch_sec)
    wanted = [CLEAN, *(condition for condition in conditions if condition != CLEAN)]
    names = {condition: condition.name for condition in wanted}
    if kept is not None:
        digests = {kind: bank.digest() for kind, bank in recorded.items()}
        names = {condition: _name_kept(condition, digests, seed) for condition in wanted}
    num_kept = {c: 0 if kept is None else count_kept(kept, batches, name) for c, name in names.items()}
    if sum(num_kept.values()):
        progress(sum(num_kept.values()))
    clean, reference = trace(speech.waveforms, kept_as=names[CLEAN])
    parts = [clean] if CLEAN in conditions else []
    rate = model.backbone.config.sample_rate
    for condition in wanted[1:]:
        if num_kept[condition] == len(speech.waveforms):
            waveforms = speech.waveforms  # as long as the mixed ones would be, and none of them is run
        else:
            waveforms = apply_condition(condition, speech.waveforms, recorded, seed, rate)
        noisy, _ = trace(waveforms, condition=condition.name, kept_as=names[condition], reference=reference or None)
        parts.append(noisy)
    return traces.join_traces(parts)


def _name_kept(condition: Condition, digests: Mapping[str, str], seed: int) -> str:
    """Name a condition by everything that determines its audio: recorded noise by its samples, and the seed."""
    if condition == CLEAN:
        return condition.name
    parts = [condition.kind, repr(condition.level), f"seed {seed}"]
    if condition.kind in digests:
        parts.append(digests[condition.kind])
    return ", ".join(parts)
