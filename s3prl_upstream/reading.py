"""torchaudio's reading of files as s3prl's tasks call it: whichever backend reads, a refusal names the file."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torchaudio

from daisy.errors import AudioError

Read = Callable[..., Any]


@contextlib.contextmanager
def name_files() -> Iterator[None]:
    """Make ``torchaudio.load``, ``torchaudio.info`` and sox's ``apply_effects_file`` raise errors that name the file.

    Each backend has errors of its own: libsndfile's sometimes say which file it was, libsox's and FFmpeg's are plain
    RuntimeErrors with pages of C++ behind them. To be entered before a task's module is imported, as `sox.stand_in`.
    """
    effects = torchaudio.sox_effects
    stock = torchaudio.load, torchaudio.info, effects.apply_effects_file
    torchaudio.load, torchaudio.info, effects.apply_effects_file = map(name_file, stock)
    try:
        yield
    finally:
        torchaudio.load, torchaudio.info, effects.apply_effects_file = stock


def name_file(read: Read) -> Read:
    """Wrap a function whose first argument is the file that it reads.

    Returns:
        The same, but raising an `AudioError` of one line where the file cannot be read.
    """

    @functools.wraps(read)
    def read_or_refuse(uri: Any, *arguments: Any, **keywords: Any) -> Any:
        try:
            return read(uri, *arguments, **keywords)
        except (OSError, RuntimeError, TypeError) as error:
            if isinstance(error, TypeError) and "get_src_stream_info" not in str(error):
                raise
            reason = _describe(error)
        named = reason if str(uri) in reason else f"Error opening '{uri}': {reason}"
        raise AudioError(named)

    return read_or_refuse


def _describe(error: Exception) -> str:
    """Return the reason in one line."""
    if isinstance(error, TypeError):  # torchaudio asks FFmpeg about the stream None
        return "there is no audio in it"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].removeprefix("Error : ").rstrip(".")
