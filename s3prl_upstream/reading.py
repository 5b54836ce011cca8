"""Read audio for s3prl's tasks: at the upstream's rate, with one channel, and with errors that name the file.

Most tasks drop the rate that ``torchaudio.load`` returns, and treat two channels as one that is twice as long, or as a
batch. Therefore every recording is returned at one rate, with this rate, which suits tasks that look at the rate and
those that do not.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import multiprocessing
from collections.abc import Callable
from types import ModuleType, TracebackType
from typing import Any

import soundfile
import torch
import torchaudio
from torch import Tensor

from daisy import audio
from daisy.errors import AudioError

Read = Callable[..., Any]

RESAMPLE_THEMSELVES = frozenset(["audio_snips", "speech_translation"])
"""Tasks that require the original rate of their files, and resample themselves."""
AVERAGE_CHANNELS = frozenset(["speech_translation"])
"""Tasks that are meant to accept several channels."""


class Reading:
    """A context in which s3prl's tasks read audio through this module.

    Enter it before a task's module is imported, like `sox.stand_in`, and after `sox.stand_in`.

    Args:
        sample_rate: sample rate of the upstream in Hz.
    """

    def __init__(self, sample_rate: int):
        self.sample_rate = sample_rate
        self.task = ""
        self._stock: list[tuple[ModuleType, str, Read]] = []
        self._said = multiprocessing.Value("b", False)  # a task's worker processes are forks

    def __reduce__(self) -> tuple[Callable[[int, str], Reading], tuple[int, str]]:
        """Leave out this process's state, as joblib sends wrapped functions to workers that are not forks."""
        return _remake, (self.sample_rate, self.task)

    def __enter__(self) -> Reading:
        effects = torchaudio.sox_effects
        self._replace(torchaudio, "load", lambda load: name_file(self._fit(load)))
        self._replace(torchaudio, "info", name_file)
        self._replace(effects, "apply_effects_file", lambda apply: name_file(self._fit(apply)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._stock:
            module, name, read = self._stock.pop()
            setattr(module, name, read)

    def begin(self, task: str) -> None:
        """Set the task that will read, before it is imported."""
        self.task = task
        if task == "diarization":  # reads ranges of samples, which would differ at another rate
            self._replace(soundfile, "read", lambda read: name_file(self._refuse_other_rates(read)))
        elif task in ("separation_stft", "separation_stft2"):  # at the files' own rate, which they compare
            librosa = importlib.import_module("librosa")
            self._replace(librosa, "load", lambda load: name_file(self._refuse_other_rates(load)))

    def _replace(self, module: ModuleType, name: str, wrap: Callable[[Read], Read]) -> None:
        stock = getattr(module, name)
        self._stock.append((module, name, stock))
        setattr(module, name, wrap(stock))

    def _fit(self, read: Read) -> Read:
        """Wrap a function that returns samples and their rate, as torchaudio's do.

        ``frame_offset`` and ``num_frames`` keep their meaning in torchaudio, samples of the file.
        """
        signature = inspect.signature(read)

        @functools.wraps(read)
        def read_and_fit(uri: Any, *arguments: Any, **keywords: Any) -> tuple[Tensor, int]:
            given = signature.bind(uri, *arguments, **keywords)
            channels_first = given.arguments.get("channels_first", True)
            given.arguments["channels_first"] = True
            samples, rate = read(*given.args, **given.kwargs)
            if len(samples) != 1 and self.task not in AVERAGE_CHANNELS:
                raise _refuse_channels(uri, len(samples))
            if rate != self.sample_rate and self.task not in RESAMPLE_THEMSELVES:
                self._say(uri, rate)
                resampled = [audio.resample(channel, rate, self.sample_rate) for channel in samples.float()]
                samples, rate = torch.stack(resampled).to(samples.dtype), self.sample_rate
            return samples if channels_first else samples.T, rate

        return read_and_fit

    def _refuse_other_rates(self, read: Read) -> Read:
        """Wrap a function that returns an array (N,) or (N, channels) and its rate."""

        @functools.wraps(read)
        def read_and_check(uri: Any, *arguments: Any, **keywords: Any) -> tuple[Any, int]:
            samples, rate = read(uri, *arguments, **keywords)
            if rate != self.sample_rate:
                raise AudioError(f"{uri}: {rate} Hz, and -d {self.task} takes {self.sample_rate} Hz only: resample it")
            if samples.ndim > 1:
                raise _refuse_channels(uri, samples.shape[-1])
            return samples, rate

        return read_and_check

    def _say(self, uri: Any, rate: int) -> None:
        with self._said.get_lock():
            said, self._said.value = bool(self._said.value), True
        if not said:
            print(
                f"[daisy] {uri}: {rate} Hz; recordings of other rates are brought to {self.sample_rate} Hz",
                flush=True,
            )


def _remake(sample_rate: int, task: str) -> Reading:
    """Make the context again in a worker, which stays silent, as it cannot know whether another has reported."""
    reading = Reading(sample_rate)
    reading.task = task
    reading._said.value = True
    return reading


def _refuse_channels(uri: Any, count: int) -> AudioError:
    return AudioError(f"{uri}: {count} channels, and s3prl's tasks take one: mix them, or write one channel out")


def name_file(read: Read) -> Read:
    """Wrap a function whose first argument is the file that it reads.

    Each backend has its own errors: libsndfile's sometimes name the file, libsox's and FFmpeg's are plain
    RuntimeErrors with pages of C++ trace.

    Returns:
        The wrapped function, which raises an `AudioError` of one line where the file cannot be read.
    """

    @functools.wraps(read)
    def read_or_refuse(uri: Any, *arguments: Any, **keywords: Any) -> Any:
        try:
            return read(uri, *arguments, **keywords)
        except AudioError:
            raise
        except (OSError, RuntimeError, TypeError) as error:
            if isinstance(error, TypeError) and "get_src_stream_info" not in str(error):
                raise
            reason = _describe(error)
        named = reason if str(uri) in reason else f"Error opening '{uri}': {reason}"
        raise AudioError(named)

    return read_or_refuse


def _describe(error: Exception) -> str:
    """Return the reason for an error in one line."""
    if isinstance(error, TypeError):  # torchaudio asks FFmpeg about the stream None
        return "there is no audio in it"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].removeprefix("Error : ").rstrip(".")
