"""Recognise long recordings in overlapping windows, whose outputs are joined where both windows agree.

Time grows linearly with the length, not quadratically. Each window has its own exit; attention, and statistics over
time, cover at most the window. Windows overlap by twice the context. Neighbours are joined within the overlap, in
the longest stretch in which the best paths of both agree, as near to its middle as possible: no token is lost
there or written twice where the windows place it a frame apart. Decoding, greedy or by beam
search, then runs on the whole recording.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from daisy.extraction import windows
from daisy.extraction.windows import Window
from daisy.models.lengths import count_frames
from daisy.recognition.recogniser import Recogniser, Transcript


def transcribe_in_windows(
    recogniser: Recogniser,
    read: Callable[[int, int], Tensor],
    num_samples: int,
    *,
    window_sec: float,
    context_sec: float,
    batch_sec: float = 30.0,
) -> Transcript:
    """Recognise a long recording.

    Args:
        recogniser: the recogniser to run.
        read: returns samples ``start`` to ``stop`` of the recording, (stop - start,) float32 at the backbone's rate.
        num_samples: length of the recording, at least one frame.
        window_sec: length of a window in seconds, context included.
        context_sec: half of the overlap of two windows, in seconds.
        batch_sec: seconds of audio that run together.

    Returns:
        The transcript; its exit layer is that of the deepest window, and its scores are means over the windows.

    Raises:
        UsageError: where the contexts take up the whole window.
        AudioError: as in ``read`` and the encoder, and where one window does not fit into memory.
    """
    config = recogniser.model.backbone.config
    cuts = windows.cut(
        count_frames(num_samples, config.conv_layers), *windows.to_frames(window_sec, context_sec, config)
    )
    exits: list[int] = []
    log_probs: list[Tensor] = []
    scores: list[dict[str, Tensor]] = []
    for _, (out, of_windows) in windows.run_together(recogniser.run, read, cuts, config, int(batch_sec / window_sec)):
        exits += out.exit_layer.tolist()
        log_probs += of_windows
        scores += [{name: values[row] for name, values in out.scores.items()} for row in range(len(out))]
    means = {name: torch.stack([of_window[name] for of_window in scores]).nanmean(0) for name in scores[0]}
    return recogniser.write(join_windows(cuts, log_probs), exits, means)


def join_windows(cuts: Sequence[Window], log_probs: Sequence[Tensor]) -> Tensor:
    """Join the outputs of overlapping windows.

    Args:
        cuts: the windows, from `daisy.extraction.windows.cut`.
        log_probs: log-probabilities of each window, (stop - start, V).

    Returns:
        Log-probabilities (T, V) of the whole recording.
    """
    parts, begin = [], 0
    for index, (window, frames) in enumerate(zip(cuts, log_probs, strict=True)):
        end = window.stop
        if index + 1 < len(cuts):
            after, frames_after = cuts[index + 1], log_probs[index + 1]
            low = max(begin, 2 * after.first - window.stop, after.start)  # as far from the middle as the window's end
            paths = (
                frames[low - window.start :].argmax(-1),
                frames_after[low - after.start : window.stop - after.start].argmax(-1),
            )
            end = low + find_seam(*paths)
        parts.append(frames[begin - window.start : end - window.start])
        begin = end
    return torch.cat(parts)


def find_seam(before: Tensor, after: Tensor) -> int:
    """Choose where to change from one window's best path to the next one's, over the n frames that they share.

    Args:
        before: (n,) tokens of the earlier window.
        after: (n,) tokens of the later one.

    Returns:
        The later window's first frame, 0 to n. The frame before it has the same token in both, so that repetitions
        collapse as within a window; if no frame has, the middle.
    """
    middle = len(before) // 2
    runs: list[list[int]] = []
    for frame in (before == after).nonzero()[:, 0].tolist():
        if runs and runs[-1][-1] == frame - 1:
            runs[-1].append(frame)
        else:
            runs.append([frame])
    if not runs:
        return middle
    longest = max(runs, key=lambda run: (len(run), -abs(run[len(run) // 2] - middle)))
    return min(max(middle, longest[0] + 1), longest[-1] + 1)
