"""Long recordings in overlapping windows: time is linear rather than quadratic in the length, memory constant.

The differences from a single run: attention and the positional convolution see at most the window; statistics over time
(group norm, the waveform's normalisation) are the window's own; and each window exits at its own layer. The frames near
a window's ends, its context, are computed and dropped, so that all kept frames have context on both sides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor

from daisy.encoder import EarlyExitEncoder
from daisy.errors import AudioError, UsageError
from daisy.models import WhisperConfig
from daisy.models.kinds import AnyBackboneConfig
from daisy.models.lengths import count_frames
from daisy.runtime.memory import run_if_it_fits

Result = TypeVar("Result")


@dataclass(frozen=True)
class Window:
    """Frames ``start`` to ``stop`` of a recording, of which ``first`` to ``last`` are kept."""

    start: int
    first: int
    last: int
    stop: int


@dataclass(frozen=True, kw_only=True)
class Piece:
    """The output of a window."""

    states: Tensor
    """States of the exit layer, (kept frames, D)."""
    exit_layer: int
    scores: dict[str, Tensor]
    """Scores, (L,) each, over all frames of the window; NaN where not executed."""


def to_frames(window_sec: float, context_sec: float, config: AnyBackboneConfig) -> tuple[int, int]:
    """Convert a window and its context to frames.

    Raises:
        UsageError: if the context leaves nothing to keep, or the window is too long for Whisper.
    """
    if not (math.isfinite(window_sec) and math.isfinite(context_sec)):
        raise UsageError(f"window and context must be seconds, found {window_sec:g} and {context_sec:g}")
    per_second = config.sample_rate / config.frame_hop
    length, context = round(window_sec * per_second), round(context_sec * per_second)
    if length < 1 or context < 0:
        given = f"found {window_sec:g} s and {context_sec:g} s"
        raise UsageError(f"a window must have a frame ({1 / per_second:g} s), and its context none or more, {given}")
    if length - 2 * context < 1:
        raise UsageError(f"a window of {window_sec:g} s with {context_sec:g} s of context on each side keeps nothing")
    if isinstance(config, WhisperConfig) and length > config.window_frames:
        raise UsageError(
            f"a window of {window_sec:g} s, more than the {config.max_samples / config.sample_rate:g} s that Whisper "
            "hears at once"
        )
    return length, context


def cut(num_frames: int, length: int, context: int) -> list[Window]:
    """Cut a recording into windows of at most ``length`` frames whose kept parts are contiguous.

    Args:
        num_frames: frames of the recording.
        length: frames of a window, including context.
        context: frames computed and dropped on either side, less than half of ``length``; none at the recording's own
            ends.
    """
    if num_frames <= length:
        return [Window(0, 0, num_frames, num_frames)]
    step = length - 2 * context
    *firsts, last = range(0, num_frames - context, step)
    windows = [Window(max(0, first - context), first, first + step, first + step + context) for first in firsts]
    return [*windows, Window(num_frames - length, last, num_frames, num_frames)]  # as long as the others


def span(window: Window, config: AnyBackboneConfig) -> tuple[int, int]:
    """Return the first sample that a window's frames see, and the one after the last."""
    return window.start * config.frame_hop, (window.stop - 1) * config.frame_hop + config.frame_span


def run(
    encoder: EarlyExitEncoder,
    read: Callable[[int, int], Tensor],
    num_samples: int,
    *,
    window_sec: float,
    context_sec: float,
    batch_sec: float = 30.0,
) -> Iterator[Piece]:
    """Run a recording window by window.

    Args:
        encoder: encoder to run.
        read: function that returns samples ``start`` to ``stop`` of the recording, (stop - start,) float32 at the
            backbone's rate.
        num_samples: samples of the recording, at least one frame.
        window_sec: seconds of a window, including context.
        context_sec: seconds of context on either side.
        batch_sec: seconds of audio that run together; fewer if they do not fit into memory.

    Yields:
        The pieces in order; together they have as many frames as the recording in a single run.

    Raises:
        UsageError: if the context leaves nothing of the window.
        AudioError: as ``read`` and the encoder do, and if one window does not fit into memory.
    """
    config = encoder.backbone.config
    windows = cut(count_frames(num_samples, config.conv_layers), *to_frames(window_sec, context_sec, config))
    for batch, out in run_together(encoder, read, windows, config, int(batch_sec / window_sec)):
        for row, window in enumerate(batch):
            yield Piece(
                states=out.states[row][-1, window.first - window.start : window.last - window.start],
                exit_layer=int(out.exit_layer[row]),
                scores={name: values[row] for name, values in out.scores.items()},
            )


def run_together(
    run: Callable[[Sequence[Tensor]], Result],
    read: Callable[[int, int], Tensor],
    windows: Sequence[Window],
    config: AnyBackboneConfig,
    at_once: int,
) -> Iterator[tuple[Sequence[Window], Result]]:
    """Run a function on windows, several at once; halve their number if they do not fit into memory.

    Args:
        run: function to call with the windows' waveforms.
        read: function that returns samples ``start`` to ``stop`` of the recording.
        windows: windows of a recording.
        config: configuration of the network.
        at_once: number of windows to run together, at least 1.

    Yields:
        Windows that ran together, and their result.

    Raises:
        AudioError: if one window does not fit into memory; as ``read`` and ``run`` do.
    """
    index, at_once = 0, max(1, at_once)
    while batch := windows[index : index + at_once]:
        result = run_if_it_fits(run, [read(*span(window, config)) for window in batch])
        if result is not None:
            index += len(batch)
            yield batch, result
        elif len(batch) > 1:
            at_once = len(batch) // 2
        else:
            raise AudioError("one of its windows does not fit into memory: shorter ones need less")
