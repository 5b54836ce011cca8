"""Long recordings in overlapping windows: time grows with the length and not with its square, memory not at all.

What changes against one run: attention and the positional convolution see at most the window; statistics over time
(group norm, the waveform's normalisation) are the window's own; and each window leaves at its own layer. The frames
near a window's ends, its context, are computed and dropped, so that those that are kept have seen both sides.
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
    """What a window gives."""

    states: Tensor
    """(frames kept, D), of the exit layer."""
    exit_layer: int
    scores: dict[str, Tensor]
    """Each (L,), NaN where not executed; of all the window's frames."""


def to_frames(window_sec: float, context_sec: float, config: AnyBackboneConfig) -> tuple[int, int]:
    """Convert a window and its context to frames.

    Raises:
        UsageError: where the context leaves nothing to keep, or Whisper cannot hear so long a window.
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
    """Cut a recording into windows of at most ``length`` frames whose kept parts follow one another.

    Args:
        num_frames: of the recording.
        length: of a window, context included.
        context: frames computed on either side and dropped, less than half of them; none at the recording's own ends.
    """
    if num_frames <= length:
        return [Window(0, 0, num_frames, num_frames)]
    step = length - 2 * context
    *firsts, last = range(0, num_frames - context, step)
    windows = [Window(max(0, first - context), first, first + step, first + step + context) for first in firsts]
    return [*windows, Window(num_frames - length, last, num_frames, num_frames)]  # no shorter than the others


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
        encoder: what runs.
        read: gives samples ``start`` to ``stop`` of the recording, (stop - start,) float32 at the backbone's rate.
        num_samples: of the recording, at least one frame.
        window_sec: of a window, context included.
        context_sec: of the context on either side.
        batch_sec: seconds of audio that run together; less where memory does not hold them.

    Yields:
        The pieces in order; their frames are as many as those of the recording in one run.

    Raises:
        UsageError: where the context leaves nothing of the window.
        AudioError: as ``read`` and the encoder do, and where memory does not hold one window.
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
    """Run something on windows, several at once: half as many from where memory does not hold them.

    Args:
        run: what to call with the windows' waveforms.
        read: gives samples ``start`` to ``stop`` of the recording.
        windows: of a recording.
        config: of the network.
        at_once: how many; one at least.

    Yields:
        Windows that ran together, and what came out.

    Raises:
        AudioError: where memory does not hold one window; as ``read`` and ``run`` do.
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
